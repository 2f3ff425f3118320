"""A training job on disk: its settings, its rows in training order, and how far it got.

The processes of all back-ends read it, so nothing is imported here that their environments lack.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from reactune.errors import TrainingError
from reactune.records import write_atomically

SCHEMA = 1
JobMethod = Literal["sft", "kto", "dpo"]
METHODS: tuple[JobMethod, ...] = ("sft", "kto", "dpo")
EXIT_BAD_JOB = 3
EXIT_DIVERGED = 4
COLUMNS: dict[JobMethod, tuple[str, ...]] = {
    "sft": ("prompt_ids", "completion_ids"),
    "kto": ("prompt_ids", "completion_ids", "label"),
    "dpo": ("prompt_ids", "chosen_ids", "rejected_ids"),
}
WINDOW = 8  # batches whose rows are sorted by length together
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """All that a trainer process is given; paths are relative to the folder of `job.json`."""

    schema: int
    method: JobMethod
    base_folder: str
    rows: str
    adapter: str
    steps: int
    batch_size: int
    learning_rate: float
    beta: float
    kto_loss: str
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    lora_layers: int
    checkpoint_steps: int
    max_seconds: float
    seed: int
    threads: int
    dtype: str
    backend: str = "trl"
    mlflow_experiment: str = ""
    load_in_4bit: bool = False
    start: str = ""
    """Adapter that the training goes on from, which is DPO's and KTO's reference; empty: none."""


def write_job(folder: Path, job: Job, rows: Sequence[Row]) -> Path:
    """Write the rows in training order and, last, `job.json`; the path of the latter is returned.

    Raises:
        TrainingError: there are no rows, or a row lacks what the method needs.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        raise TrainingError(
            f"no rows to train {job.method!r} on: the dataset holds none of its kind"
        )
    if missing := [name for name in COLUMNS[job.method] if name not in rows[0]]:
        raise TrainingError(f"rows for {job.method!r} lack {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    ordered = in_training_order(rows, steps=job.steps, batch_size=job.batch_size, seed=job.seed)
    table = pa.Table.from_pylist(
        [{name: row[name] for name in COLUMNS[job.method]} for row in ordered]
    )
    pq.write_table(table, folder / job.rows)
    path = folder / "job.json"
    write_atomically(path, json.dumps(asdict(job), indent=2))
    return path


def read_job(path: Path) -> Job:
    """The job, checked.

    Raises:
        TrainingError: the file is missing, no job, or of another schema version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        job = Job(**values)
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path} is no training job: {error}") from error
    if job.schema != SCHEMA:
        raise TrainingError(f"{path} has schema {job.schema}; this trainer reads {SCHEMA}")
    return job


def read_rows(folder: Path, job: Job) -> list[Row]:
    """The job's rows, in the order in which they are trained, as dictionaries of token id lists."""
    import pyarrow.parquet as pq

    rows: list[Row] = pq.read_table(folder / job.rows).to_pylist()
    return rows


def tokens_of(row: Row) -> int:
    """Tokens a trainer reads for one row: a pair counts its prompt twice."""
    if "chosen_ids" in row:
        return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def in_training_order(rows: Sequence[Row], *, steps: int, batch_size: int, seed: int) -> list[Row]:
    """`steps * batch_size` rows: epoch after epoch, each in an order drawn anew from the seed.

    Rows of a batch are of like length, since a batch is padded to its longest row: padding that
    would be half of what a random order computes is a tenth then. Batches come in random order,
    and liked and disliked rows are spread evenly over them.
    """
    draw = random.Random(seed)
    return list(islice(_epochs(rows, batch_size, draw), steps * batch_size))


def _epochs(rows: Sequence[Row], batch_size: int, draw: random.Random) -> Iterator[Row]:
    while True:
        shuffled = list(rows)
        draw.shuffle(shuffled)
        for start in range(0, len(shuffled), WINDOW * batch_size):
            window = _by_length(shuffled[start : start + WINDOW * batch_size])
            batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
            draw.shuffle(batches)
            for batch in batches:
                yield from batch


def _by_length(rows: Sequence[Row]) -> list[Row]:
    """By length, within each label; a row's place is its rank's share of those of its label."""
    placed: list[tuple[float, Row]] = []
    for label in (True, False):
        same = sorted((r for r in rows if r.get("label", True) is label), key=tokens_of)
        placed += [((rank + 0.5) / len(same), row) for rank, row in enumerate(same)]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


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


def keep_lines_until(file: Path, step: int) -> None:
    """Drop the progress lines of steps that came after the checkpoint of a killed trainer."""
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        write_atomically(file, "".join(f"{line}\n" for line in kept))
