"""Run folders: where each stage of a run keeps its files, its lock and, last, its manifest.

What the stages do is `pipeline.py`'s.
"""

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from reactune import __version__
from reactune.config.settings import masked
from reactune.errors import DataError
from reactune.records import sha256_of, write_atomically
from reactune.runs.locks import lease
from reactune.runs.manifest import Manifest, Outcome, ending, read_manifest, write_manifest
from reactune.runs.remote import HERE, RunRoot, digest_of, fetch, forget_manifest, pull, push

RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-z]{1,16}")
PACKAGES = ("torch", "transformers", "trl", "peft", "mlflow", "ibis-framework", "pyarrow", "gguf")


@dataclass(frozen=True)
class StageResult:
    """What a stage hands to its manifest. `outputs` are files in the stage's folder."""

    summary: str
    outputs: tuple[str, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)
    outcome: Outcome = "done"


def run_id_at(now: datetime) -> str:
    """The name of a run that starts now. Names sort by time, to the tenth of a millisecond."""
    now = now.astimezone(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 100:04}"


def new_run(root: Path, settings: Mapping[str, Any], *, run_id: str) -> Path:
    """Make the folder of a new run, with the resolved settings in it.

    Raises:
        DataError: the name is none that `run_id_at` could have given.
    """
    if not RUN_ID.fullmatch(run_id):
        raise DataError(
            f"{run_id!r} is no name of a run: write it as 20261123-101500-0000 "
            "(date, time, and a number), so that names sort by time"
        )
    run = root / run_id
    write_atomically(run / "config.json", json.dumps(settings, indent=2, default=str))
    return run


def all_runs(root: Path) -> list[Path]:
    """The run folders, oldest first."""
    return sorted(path.parent for path in root.glob("*/config.json"))


def find_run(root: Path, run_id: str) -> Path:
    """The folder of a run.

    Raises:
        DataError: there is no such run.
    """
    run = root / run_id
    if not (run / "config.json").is_file():
        known = ", ".join(path.name for path in all_runs(root)[-5:]) or "none yet"
        raise DataError(f"no run {run_id!r} in {root}; the latest: {known}")
    return run


def unfinished_run(root: Path) -> Path | None:
    """The newest run, if it was interrupted."""
    runs = all_runs(root)
    return runs[-1] if runs and ending(runs[-1]) is None else None


def run_stage(
    run: Path,
    stage: str,
    work: Callable[[Path], StageResult],
    *,
    inputs: Mapping[str, Path],
    settings: Mapping[str, Any],
    reads: Iterable[str] = (),
    root: RunRoot = HERE,
) -> tuple[Manifest, bool]:
    """The stage's manifest, and whether the work was done now.

    A stage with a valid manifest of the same inputs and settings is not done again. A killed
    stage left none, and is done again. One process at a time may be in a stage. Where runs are
    kept at a URL, the files of the stages it `reads` are fetched before the work, and its own
    are uploaded after it, the manifest last.

    Raises:
        DataError: another process is in this stage, or an input is missing.
    """
    folder = run / stage
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock"), lease(root, f"{run.name}/{stage}") as require_held:
        pull(root, run.name)
        digests = input_digests(root, stage, inputs)
        plain_settings = json.loads(json.dumps(settings, default=str))
        manifest = read_manifest(folder)
        if manifest and is_up_to_date(manifest, digests, plain_settings):
            return manifest, False
        forget_manifest(root, folder)
        for earlier in reads:
            fetch(root, run.name, earlier)
        started = time.monotonic()
        result = work(folder)
        manifest = Manifest(
            stage=stage,
            outcome=result.outcome,
            summary=result.summary,
            inputs=digests,
            outputs={name: sha256_of(folder / name) for name in result.outputs},
            counts=result.counts,
            settings=plain_settings,
            versions=versions(),
            seconds=round(time.monotonic() - started, 3),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        require_held()
        push(root, folder, manifest.outputs)
        require_held()
        write_manifest(folder, manifest)
        push(root, folder, ["manifest.json"])
        return manifest, True


def is_up_to_date(
    manifest: Manifest, inputs: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether all that a manifest says was read is the same now.

    Inputs and settings that its version of reactune did not record, or that this one no longer
    has, do not count, so that a run that an earlier version did stays done.
    """
    return manifest.inputs.items() <= inputs.items() and all(
        settings.get(section, {}).get(key, value) == value
        for section, values in masked(manifest.settings).items()
        for key, value in values.items()
    )


def input_digests(root: RunRoot, stage: str, inputs: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each input of a stage.

    Raises:
        DataError: one is missing.
    """
    found = {name: digest_of(root, path) for name, path in inputs.items()}
    if missing := [str(inputs[name]) for name, digest in found.items() if digest is None]:
        raise DataError(f"stage {stage} lacks {', '.join(missing)}; run the stages before it")
    return {name: digest for name, digest in found.items() if digest is not None}


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file; the system releases it when its owner ends, however that ends.

    Raises:
        DataError: another process holds it.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise DataError(f"{path.parent} is in use by {file.read().strip()}") from error
        file.seek(0)
        file.truncate()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        file.flush()
        yield


def versions() -> dict[str, str]:
    """Versions of reactune and of the libraries that can change a result."""
    found = {"reactune": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
