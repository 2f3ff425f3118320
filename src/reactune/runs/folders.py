"""A stage of a run is done once: its manifest, written last, says what it read and wrote."""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from reactune import __version__
from reactune.config.sections import PromptConfig
from reactune.config.settings import masked
from reactune.errors import DataError
from reactune.records import sha256_of, write_atomically
from reactune.runs.locks import hold_stage
from reactune.runs.manifest import (
    MANIFEST,
    Manifest,
    Outcome,
    ending,
    read_manifest,
    write_manifest,
)
from reactune.runs.remote import LOCAL, RunRoot, digest_of, fetch, pull, push, remove_files

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
        DataError: the name does not have the form that `run_id_at` returns.
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


def prompt_of_run(run: Path, settings: PromptConfig) -> PromptConfig:
    """The prompt settings in a run: the day that templates are told is that of its start.

    Every worker and every stage reads it from `config.json`, on whatever day that is.
    """
    if settings.date:
        return settings
    recorded = json.loads((run / "config.json").read_text(encoding="utf-8"))
    started = f"{run.name[:4]}-{run.name[4:6]}-{run.name[6:8]}"  # in runs of release 0.1
    day = recorded.get("prompt", {}).get("date") or started
    return settings.model_copy(update={"date": day})


def run_stage(
    run: Path,
    stage: str,
    work: Callable[[Path], StageResult],
    *,
    inputs: Mapping[str, Path],
    settings: Mapping[str, Any],
    reads: Iterable[str] = (),
    root: RunRoot = LOCAL,
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
    with hold_stage(root, run, stage) as require_held:
        pull(root, run.name)
        digests = _input_digests(root, stage, inputs)
        plain_settings = json.loads(json.dumps(settings, default=str))
        manifest = read_manifest(folder)
        if manifest and is_up_to_date(manifest, digests, plain_settings):
            return manifest, False
        remove_files(root, run, [f"{stage}/{MANIFEST}"])
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
        push(root, folder, [MANIFEST])
        return manifest, True


def is_up_to_date(
    manifest: Manifest, inputs: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether all inputs and settings that a manifest records are the same now.

    Those that only the other version of reactune records are ignored, so that a stage done by an
    earlier version stays done.
    """
    return manifest.inputs.items() <= inputs.items() and all(
        settings.get(section, {}).get(key, value) == value
        for section, values in masked(manifest.settings).items()
        for key, value in values.items()
    )


def versions() -> dict[str, str]:
    """Versions of reactune and of the libraries that can change a result."""
    found = {"reactune": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _input_digests(root: RunRoot, stage: str, inputs: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of each input of a stage.

    Raises:
        DataError: one is missing.
    """
    found = {name: digest_of(root, path) for name, path in inputs.items()}
    if missing := [str(inputs[name]) for name, digest in found.items() if digest is None]:
        raise DataError(f"stage {stage} lacks {', '.join(missing)}; run the stages before it")
    return {name: digest for name, digest in found.items() if digest is not None}
