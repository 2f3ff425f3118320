"""Files of runs are changed or removed after the fact, here and at the URL; manifests stay true.

What is taken out of the files is left to others. Where runs are kept is `run_root.py`'s.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reactune.records import STAGES, sha256_of, write_atomically
from reactune.runs.folders import lock, versions
from reactune.runs.locks import lease
from reactune.runs.manifest import (
    MANIFEST,
    Manifest,
    recorded_manifests,
    recorded_outputs,
    write_manifest,
)
from reactune.runs.remote import ERASED, RunRoot, forget_manifest, push, reach

DATA_STAGES = ("extract", "dataset")
"""Stages whose outputs say what people did."""

Note = Mapping[str, Any]
"""What a manifest says of one erasure: its id, when, and how many rows went."""


@contextmanager
def keep_out_others(root: RunRoot, run: Path, stages: Iterable[str]) -> Iterator[None]:
    """Hold stages of a run, so that nobody reads or writes them meanwhile.

    Raises:
        DataError: another process, here or on another worker, is in one of them.
    """
    with ExitStack() as held:
        for stage in stages:
            folder = run / stage
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(folder / ".lock"))
            held.enter_context(lease(root, f"{run.name}/{stage}"))
        yield


def bring(root: RunRoot, run: Path, names: Iterable[str]) -> None:
    """Make files of a run here what they are at the URL, whatever the manifests say.

    Raises:
        DataError: the URL does not answer.
    """
    if not root.url:
        return
    with reach(root) as (files, top):
        for name in names:
            path, local = f"{top}/{run.name}/{name}", run / name
            local.unlink(missing_ok=True)
            if files.exists(path):
                local.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(path, str(local))


def unlike_stated(run: Path, names: Iterable[str]) -> list[str]:
    """Which of the outputs are not here as their manifest states them."""
    stated = recorded_outputs(run, STAGES)
    return [
        name
        for name in names
        if name in stated and not ((run / name).is_file() and sha256_of(run / name) == stated[name])
    ]


def unstated(root: RunRoot, run: Path) -> list[str]:
    """Files of the data stages that no manifest names: a killed or repeated stage left them.

    Raises:
        DataError: the URL does not answer.
    """
    stated = recorded_outputs(run, DATA_STAGES)
    return [
        name
        for name in all_files(root, run)
        if name.startswith(tuple(f"{stage}/" for stage in DATA_STAGES))
        and name not in stated
        and not Path(name).name.startswith((MANIFEST, ".lock"))
    ]


def all_files(root: RunRoot, run: Path) -> list[str]:
    """Every file of a run, here and at the URL, from the run's folder.

    Raises:
        DataError: the URL does not answer.
    """
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    if root.url:
        with reach(root) as (files, top):
            below = f"{top}/{run.name}"
            names |= {path.removeprefix(f"{below}/") for path in files.find(below)}
    return sorted(names)


def remove_files(root: RunRoot, run: Path, names: Iterable[str]) -> None:
    """Remove files of a run, here and at the URL, in this order; those that are gone are fine.

    Raises:
        DataError: the URL does not answer.
    """
    for name in names:
        (run / name).unlink(missing_ok=True)
        if root.url:
            with reach(root) as (files, top):
                path = f"{top}/{run.name}/{name}"
                if files.exists(path):
                    files.rm_file(path)


def amend(root: RunRoot, run: Path, notes: Sequence[Note]) -> None:
    """Let manifests state the files of the data stages as they are now, and why they changed.

    The files go to the URL first, then the manifests. Safe to repeat after a kill.

    Raises:
        DataError: the URL does not answer.
    """
    now = {
        name: sha256_of(run / name) if (run / name).is_file() else digest
        for name, digest in recorded_outputs(run, DATA_STAGES).items()
    }
    for stage in DATA_STAGES:
        changed = [name for name in unlike_stated(run, now) if name.startswith(f"{stage}/")]
        push(root, run / stage, [name.removeprefix(f"{stage}/") for name in changed])
    for stage, manifest in recorded_manifests(run).items():
        amended = _amended(manifest, now, notes)
        if amended != manifest:
            write_manifest(run / stage, amended)
            push(root, run / stage, [MANIFEST])
    note_in_run(root, run, notes)


def end_refused(root: RunRoot, run: Path, notes: Sequence[Note], *, why: str) -> None:
    """End an unfinished run: all that its stages made goes, and the first says why.

    Raises:
        DataError: the URL does not answer.
    """
    first = recorded_manifests(run).get(STAGES[0])
    made = all_files(root, run)
    for stage in reversed(STAGES[1:]):
        forget_manifest(root, run / stage)
    kept = ("config.json", ERASED, f"{STAGES[0]}/{MANIFEST}")
    remove_files(root, run, [name for name in made if name not in kept and "/.lock" not in name])
    refused = Manifest(
        stage=STAGES[0],
        outcome="refused",
        summary=f"refused: {why}",
        inputs={},
        outputs={},
        counts={},
        settings=first.settings if first else {},
        versions=versions(),
        seconds=0.0,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        erased=list(notes),
    )
    write_manifest(run / STAGES[0], refused)
    push(root, run / STAGES[0], [MANIFEST])
    note_in_run(root, run, notes)


def remove_run(root: RunRoot, run: Path) -> None:
    """Remove a run, here and at the URL; its settings last, so that a kill leaves it known.

    Raises:
        DataError: the URL does not answer.
    """
    if root.url:
        with reach(root) as (files, top):
            below = f"{top}/{run.name}"
            paths = sorted(files.find(below), key=lambda path: path == f"{below}/config.json")
            for path in paths:
                files.rm_file(path)
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    shutil.rmtree(run)


def note_in_run(root: RunRoot, run: Path, notes: Sequence[Note]) -> None:
    """Where runs are kept at a URL: let every worker drop its copies of this run's files.

    Raises:
        DataError: the URL does not answer.
    """
    if root.url:
        known = _notes(run)
        new = [note for note in notes if note["erasure"] not in {each["erasure"] for each in known}]
        write_atomically(run / ERASED, json.dumps([*known, *new], indent=2))
        push(root, run, [ERASED])


def _amended(manifest: Manifest, now: Mapping[str, str], notes: Sequence[Note]) -> Manifest:
    """The manifest with today's digests of the data stages, and the notes on why."""
    own = {name: now.get(f"{manifest.stage}/{name}", was) for name, was in manifest.outputs.items()}
    read = {name: now.get(name, was) for name, was in manifest.inputs.items()}
    if own == manifest.outputs and read == manifest.inputs:
        return manifest
    before = {**manifest.inputs, **manifest.outputs}
    after = {**read, **own}
    was = {name: digest for name, digest in before.items() if after[name] != digest}
    new = [{**note, "digests_before": was} for note in notes]
    return replace(manifest, inputs=read, outputs=own, erased=[*manifest.erased, *new])


def _notes(run: Path) -> list[dict[str, Any]]:
    file = run / ERASED
    found: list[dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.is_file() else []
    return found
