"""What a killed training left: its last whole checkpoint, and the progress up to there.

Writing checkpoints is the trainer's.
"""

import json
from pathlib import Path

from reactune.records import write_atomically


def keep_lines_until(file: Path, step: int) -> None:
    """Drop the progress of steps that a killed trainer made after its last checkpoint."""
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_atomically(file, "".join(f"{line}\n" for line in kept))


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole: the trainer's state is written into it last."""
    whole = [
        (int(path.parent.name.rpartition("-")[2]), path.parent)
        for path in folder.glob("checkpoint-*/trainer_state.json")
        if is_json(path)
    ]
    return str(max(whole)[1]) if whole else None


def is_json(path: Path) -> bool:
    """Whether the file holds whole JSON."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
