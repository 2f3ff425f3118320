"""Makes the environments of back-ends that cannot live in ours, and says which are there.

What a back-end needs is in `backends.py` and in the files of pinned requirements.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from reactune.config import TrainConfig
from reactune.errors import TrainingError
from reactune.process import child_environment
from reactune.records import write_atomically
from reactune.runs import lock
from reactune.train.backends import (
    BACKENDS,
    MADE,
    digest_of,
    folder_of,
    is_made,
    python_in,
    requirements_of,
)

OWN = tuple(name for name, backend in BACKENDS.items() if backend.torch)


def install(name: str, settings: TrainConfig, *, say: Callable[[str], None]) -> Path:
    """Make the back-end's environment, unless it is there and whole; its folder is returned.

    torch comes first and alone, so that this machine's own build is kept; the rest is pinned and
    taken as it is. One that was being made when this was killed is made anew.

    Raises:
        TrainingError: pip failed, or another process makes it at this moment.
    """
    folder = folder_of(name, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{name}.lock")):
        if is_made(name, folder):
            say(f"{name}: {folder} is there already")
            return folder
        say(f"{name}: making {folder} with Python {sys.version.split()[0]}")
        venv.create(folder, clear=True, with_pip=True)
        say(f"{name}: {' and '.join(BACKENDS[name].torch)} (gigabytes)")
        _pip(folder, BACKENDS[name].torch)
        say(f"{name}: {requirements_of(name).name}")
        _pip(folder, ("--no-deps", "-r", str(requirements_of(name))))
        write_atomically(folder / MADE, json.dumps({"backend": name, "digest": digest_of(name)}))
    say(f"{name}: ready")
    return folder


def _pip(folder: Path, wanted: Sequence[str]) -> None:
    """Run the environment's pip; it writes to our terminal and dies with us."""
    python = str(python_in(folder))
    call = [sys.executable, "-m", "reactune.process", python, "-m", "pip", "install", *wanted]
    done = subprocess.run([*call, "--no-input"], env=child_environment(), check=False)
    if done.returncode != 0:
        raise TrainingError(
            f"pip ended with code {done.returncode}, see above; run the same command again"
        )


def states(settings: TrainConfig) -> list[str]:
    """One line for each back-end: where it is, and whether it can be used."""
    lines = []
    for name in BACKENDS:
        folder = folder_of(name, settings)
        if name not in OWN:
            state = f"part of reactune[train], {sys.prefix}"
        elif is_made(name, folder):
            state = f"installed, {folder}"
        elif (folder / MADE).is_file():
            state = f"out of date, {folder}; run `reactune backend install {name}`"
        else:
            state = f"not installed; run `reactune backend install {name}`"
        lines.append(f"{name:8} {state}")
    return lines
