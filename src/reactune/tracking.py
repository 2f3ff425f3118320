"""What a run records: the training's report, pictures, and what MLflow keeps of the run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from reactune import deployment
from reactune.config.settings import Config, without_passwords
from reactune.data.dataset.exports import EXAMPLES
from reactune.errors import hide_passwords
from reactune.evaluate.gate import Estimate, GateReport
from reactune.pages import plots
from reactune.records import Counts, write_atomically
from reactune.release.registry import Record
from reactune.runs.folders import all_runs, new_run, run_id_at
from reactune.runs.manifest import manifests, recorded_manifests
from reactune.runs.remote import fetch, push, run_root
from reactune.train.trainer import Trained, read_log

Curve = Sequence[tuple[int, float]]
LOGGED = ("labels", "dataset", "prompt", "model", "train", "gate", "export")  # sections
TEXTS = {
    "loss.svg": "train/loss.svg",
    "trainer.log": "train/trainer.log",
    "gate.svg": "evaluate/gate.svg",
    "gate.json": "evaluate/gate.json",
    "parity.json": "export/parity.json",
    "dataset.md": "dataset/README.md",
}


def write_training(
    folder: Path, best: Trained, trained: Sequence[Trained], reports: Mapping[str, GateReport]
) -> None:
    """Write `training.json`, `loss.svg`, `trainer.log`: what was tried and what is kept."""
    curves: dict[str, Curve] = {each.method: each.curve for each in trained}
    record = {
        "method": best.method,
        "seconds": {each.method: each.seconds for each in trained},
        "curves": curves,
        "validation": {method: asdict(report) for method, report in reports.items()},
    }
    write_atomically(folder / "training.json", json.dumps(record))
    write_atomically(folder / "loss.svg", plots.loss_curves(curves))
    logs = (f"== {each.method}\n{read_log(folder / each.method)}" for each in trained)
    write_atomically(folder / "trainer.log", hide_passwords("\n".join(logs)))


def gate_picture(report: GateReport) -> str:
    """Preference accuracy of every model, with intervals."""
    rows = [
        (row.model, row.accuracy.value, row.accuracy.low, row.accuracy.high) for row in report.rows
    ]
    return plots.intervals("preference accuracy on held-out users", rows, reference=0.5)


def gate_table(gate: Mapping[str, object]) -> list[tuple[str, ...]]:
    """Rows of a gate report that was read from `gate.json`: model, loss, accuracy, by gain."""

    def shown(values: Mapping[str, float] | None) -> str:
        return str(Estimate(**values)) if values else ""

    rows = gate["rows"]
    assert isinstance(rows, list)  # as `evaluate` wrote it
    return [
        (row["model"], shown(row["loss"]), shown(row["accuracy"]), shown(row["gain_accuracy"]))
        for row in rows
    ]


def record_of(run: Path) -> Record:
    """What MLflow keeps of a run: the settings it was done with, curves, gate, parity, pictures."""
    training = json.loads((run / "train" / "training.json").read_text(encoding="utf-8"))
    gate = json.loads((run / "evaluate" / "gate.json").read_text(encoding="utf-8"))
    parity = json.loads((run / "export" / "parity.json").read_text(encoding="utf-8"))
    done = recorded_manifests(run)  # the stage has verified the files that it reads
    dataset = done.get("dataset")
    counts = dict(dataset.counts) if dataset else {}
    params = {
        f"{section}.{name}": value
        for manifest in done.values()
        for section, values in manifest.settings.items()
        if section in LOGGED
        for name, value in values.items()
    }
    metrics = {f"parity/{k}": v for k, v in parity.items() if isinstance(v, int | float)}
    for row in gate["rows"]:
        metrics[f"gate/{row['model']}/loss"] = row["loss"]["value"]
        metrics[f"gate/{row['model']}/preference_accuracy"] = row["accuracy"]["value"]
    texts = {name: run / place for name, place in TEXTS.items()}
    return Record(
        run_id=run.name,
        params={**params, "method": training["method"]},
        metrics=metrics,
        curves={f"loss/{method}": curve for method, curve in training["curves"].items()},
        texts={name: path.read_text(encoding="utf-8") for name, path in texts.items()},
        tags={"dataset": str(counts.get("fingerprint", "")), "method": training["method"]},
    )


def start_run(config: Config, run_id: str | None = None) -> Path:
    """Make the folder of a new run, named after the present moment unless a name is given."""
    now = datetime.now(UTC)
    run_id = run_id or run_id_at(now)
    day = config.prompt.date or now.date().isoformat()
    prompt = config.prompt.model_copy(update={"date": day})
    config = config.model_copy(update={"prompt": prompt})
    run = new_run(config.run_root, without_passwords(config), run_id=run_id)
    push(run_root(config), run, ["config.json"])
    return run


def last_trained(config: Config, run: Path) -> Path | None:
    """The examples that were trained last, before this run.

    None before the first, and where a model that is live must be replaced: then a training is as
    urgent as the first, and does not wait for new tips.
    """
    if deployment.must_retrain(config):
        return None
    for other in reversed(all_runs(config.run_root)):
        if other.name < run.name and "train" in manifests(other):
            fetch(run_root(config), other.name, "dataset", under=EXAMPLES)
            return other / "dataset" / EXAMPLES
    return None


def earlier_counts(run: Path) -> dict[str, Counts]:
    """What the stage before the dataset counted, for the dataset's card."""
    extracted = manifests(run)["extract"].counts
    return {name: Counts(**extracted[name]) for name in ("labels", "de-identification")}
