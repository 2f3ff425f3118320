"""What a run records: the training's report, pictures, and what MLflow keeps of the run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reactune import deployment
from reactune.config.settings import Config, without_passwords
from reactune.data.dataset.exports import EXAMPLES
from reactune.errors import hide_passwords
from reactune.evaluate.gate import GateReport
from reactune.pages import pictures
from reactune.records import Counts, write_atomically
from reactune.release.registry import Record
from reactune.reward import model as reward_model
from reactune.reward.cache import FEATURES
from reactune.reward.learn import Learned, Quality
from reactune.reward.quality import Accuracy
from reactune.runs.folders import all_runs, new_run, run_id_at
from reactune.runs.manifest import manifests, recorded_manifests
from reactune.runs.remote import fetch, push, run_root
from reactune.train.trainer import Trained, read_log

QUALITY = "quality.json"
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
REWARD_TEXTS = {"reward.svg": "reward/reward.svg", "reward-quality.json": f"reward/{QUALITY}"}


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
    write_atomically(folder / "loss.svg", pictures.draw(pictures.loss_curves(curves)))
    logs = (f"== {each.method}\n{read_log(folder / each.method)}" for each in trained)
    write_atomically(folder / "trainer.log", hide_passwords("\n".join(logs)))


def write_reward(folder: Path, learned: Learned, beside: Mapping[str, Accuracy]) -> tuple[str, ...]:
    """Write the reward model, if there is one, and what it is worth; the names of the files.

    `beside` are accuracies on held-out tips that the live generator ranked too.
    """
    record = {
        "reason": learned.reason,
        "quality": asdict(learned.quality),
        "held_out": {name: asdict(each) for name, each in beside.items()},
    }
    write_atomically(folder / QUALITY, json.dumps(record, indent=2))
    write_atomically(folder / "reward.svg", pictures.draw(rankings_picture(learned.quality)))
    saved = reward_model.save(learned.model, folder) if learned.model else ()
    if learned.teacher:
        names = reward_model.save(learned.teacher, folder / reward_model.TEACHER)
        saved += tuple(f"{reward_model.TEACHER}/{name}" for name in names)
    return (*saved, FEATURES, QUALITY, "reward.svg")


def rankings_picture(quality: Quality) -> pictures.Spec:
    """How often each ranking is right on other users, with intervals."""
    rows = [
        (name, each.estimate.value, each.estimate.low, each.estimate.high)
        for name, each in quality.accuracies.items()
    ]
    title = "preference accuracy on other users"
    return pictures.intervals(title, rows, reference=0.5)


def features_before(config: Config, run: Path) -> list[Path]:
    """The file with the features of the last run before this one, if there is one."""
    for other in reversed(all_runs(config.run_root)):
        done = manifests(other) if other.name < run.name else {}
        if "reward" in done:
            fetch(run_root(config), other.name, "reward")
            return [other / "reward" / FEATURES]
    return []


def dataset_fingerprint(run: Path) -> str:
    """The fingerprint of the dataset of a run."""
    return str(manifests(run)["dataset"].counts["fingerprint"])


def gate_picture(report: GateReport) -> str:
    """Preference accuracy of every model, with intervals."""
    rows = [
        (row.model, row.accuracy.value, row.accuracy.low, row.accuracy.high) for row in report.rows
    ]
    title = "preference accuracy on held-out users"
    return pictures.draw(pictures.intervals(title, rows, reference=0.5))


def _judged(gate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The judge's rows; none in a report without a judge."""
    return list((gate.get("judged") or {}).get("rows", ()))


def record_of(run: Path, *, generator: str) -> Record:
    """What MLflow keeps of a run: the settings it was done with, curves, gate, parity, pictures.

    `generator` says which one the run releases.
    """
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
    for row in _judged(gate):
        metrics[f"gate/{row['model']}/win_rate"] = row["beside"]["win_rate"]["value"]
        metrics[f"gate/{row['model']}/gain_by_judge"] = row["beside"]["gain"]["value"]
        metrics[f"gate/{row['model']}/gain_by_reward"] = row["teacher_gain"]
    if agreement := parity.get("reward"):
        metrics["parity/reward_largest"] = agreement["largest"]
    reward = done.get("reward")
    metrics |= reward_metrics(run) if reward else {}
    places = {**TEXTS, **(REWARD_TEXTS if reward else {})}
    texts = {name: run / place for name, place in places.items()}
    models = [name for name in reward_model.FILES if reward and name in reward.outputs]
    return Record(
        run_id=run.name,
        params={**params, "method": training["method"]},
        metrics=metrics,
        curves={f"loss/{method}": curve for method, curve in training["curves"].items()},
        texts={name: path.read_text(encoding="utf-8") for name, path in texts.items()},
        artifacts={run / "reward" / name: "reward" for name in models},
        tags={
            "dataset": str(counts.get("fingerprint", "")),
            "method": training["method"],
            "generator": generator,
        },
    )


def reward_metrics(run: Path) -> dict[str, float]:
    """The figures of a run's reward model for MLflow; those of its rankings by their names."""
    record = json.loads((run / "reward" / QUALITY).read_text(encoding="utf-8"))
    quality = record["quality"]
    found = {f"reward/{name}": float(quality[name]) for name in ("reactions", "users")}
    for name, each in quality["accuracies"].items():
        place = f"reward/{name.replace(' ', '_')}_accuracy"
        found |= {f"{place}": each["estimate"]["value"], f"{place}_low": each["estimate"]["low"]}
    return found


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


def consent_stated(run: Path) -> str:
    """What the dataset's card says of a source without a column of consent; empty of others."""
    return str(manifests(run)["extract"].counts.get("consent", ""))


def earlier_counts(run: Path) -> dict[str, Counts]:
    """What the stage before the dataset counted, for the dataset's card."""
    extracted = manifests(run)["extract"].counts
    return {name: Counts(**extracted[name]) for name in ("labels", "de-identification")}
