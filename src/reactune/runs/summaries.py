"""What the stages of runs came to, as rows of the database: the pages read no run folder.

`reactune run` and `reactune erase` write them, for runs of earlier versions too.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reactune.errors import DataError
from reactune.records import STAGES
from reactune.runs.manifest import Manifest, recorded_manifests
from reactune.runs.remote import RunRoot, fetch
from reactune.store.database import reading, writing
from reactune.store.summaries import Summary, remove_summaries, write_summaries, written_at

MOST_POINTS = 200  # of a curve
FIGURES = {
    "reward": "quality.json",
    "train": "training.json",
    "evaluate": "gate.json",
    "export": "parity.json",
}
"""The file of a stage with its figures."""

log = logging.getLogger(__name__)


def summarise(engine: sa.Engine, root: RunRoot, runs: Iterable[Path]) -> int:
    """Write a row for each stage of these runs that has none, or has changed since; how many.

    The rows of stages that are undone are removed. The figures of a run at a URL are fetched;
    those that are missing there, or cannot be read, are left out, with a warning.

    Raises:
        AwayError: the database went away.
    """
    with reading(engine) as connection:
        known = written_at(connection)
    found, undone = [], []
    for run in runs:
        done = recorded_manifests(run)
        undone += [
            (run.name, stage)
            for stage in STAGES
            if stage not in done and (run.name, stage) in known
        ]
        found += [
            _summary(root, run, each)
            for stage, each in done.items()
            if known.get((run.name, stage)) != (_finished(each), _erased(each))
        ]
    if found or undone:
        with writing(engine) as connection:
            remove_summaries(connection, undone)
            write_summaries(connection, found)
    return len(found)


def _summary(root: RunRoot, run: Path, manifest: Manifest) -> Summary:
    lineage = {
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
        "settings": manifest.settings,
        "versions": manifest.versions,
        "erased": _erased(manifest),
    }
    return Summary(
        subject=run.name,
        stage=manifest.stage,
        outcome=manifest.outcome,
        line=manifest.summary,
        finished_at=_finished(manifest),
        counts=manifest.counts,
        figures=_figures(root, run, manifest),
        lineage=lineage,
        seconds=manifest.seconds,
    )


def _figures(root: RunRoot, run: Path, manifest: Manifest) -> dict[str, Any]:
    name = FIGURES.get(manifest.stage, "")
    if name not in manifest.outputs:
        return {}
    try:
        fetch(root, run.name, manifest.stage, under=name)
        figures = json.loads((run / manifest.stage / name).read_text(encoding="utf-8"))
    except (DataError, OSError, ValueError) as error:
        log.warning("%s/%s: the pages show no figures of it: %s", run.name, manifest.stage, error)
        return {}
    if manifest.stage == "train":
        curves: Mapping[str, Sequence[Any]] = figures["curves"]
        thinned = {method: _thinned(curve) for method, curve in curves.items()}
        return {"method": figures["method"], "seconds": figures["seconds"], "curves": thinned}
    if manifest.stage == "export":
        failures = len(figures.get("failures", ()))
        numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
        return {**numbers, "failures": failures}
    return dict(figures)


def _thinned(curve: Sequence[Any]) -> list[Any]:
    """At most `MOST_POINTS` of the points, evenly spaced, the last included."""
    step = -(-len(curve) // MOST_POINTS) or 1
    return list(curve[::-step])[::-1]


def _finished(manifest: Manifest) -> datetime:
    return datetime.fromisoformat(manifest.finished_at)


def _erased(manifest: Manifest) -> list[str]:
    """The erasures that changed the stage since it was done."""
    return [str(note["erasure"]) for note in manifest.erased]
