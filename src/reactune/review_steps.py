"""A review in steps, for a scheduler: compare, decide, then what was decided, each done once.

Every step has a folder and a manifest, as stages have. What it finds and does is `review.py`'s.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from reactune import live
from reactune.canary.compare import Decision
from reactune.config import Config, deciding, without_passwords
from reactune.records import Manifest, Verdict, read_manifest, write_atomically
from reactune.review import Look, act, judge, look
from reactune.run_root import RunRoot, pull, push, run_root
from reactune.runs import StageResult, find_run, new_run, run_stage

LOOK, DECISION = "compare/look.json", "decide/decision.json"
VERDICTS: dict[str, Verdict] = {"promote": "promote", "rollback": "roll back", "wait": "wait"}


def run_step(
    config: Config, step: str, review_id: str, *, now: datetime, say: Callable[[str], None]
) -> bool:
    """Do one step of a review, unless it is done; whether there was something to do.

    `compare` starts the review where there is none of this name. The other steps have nothing
    to do where nobody was on trial, and the last three where another verdict was found.

    Raises:
        DataError: the step before it is not done, or another process is in this step.
    """
    root = reviews(config)
    pull(root)
    if step == "compare" and not (root.folder / review_id / "config.json").exists():
        folder = new_run(root.folder, without_passwords(config), run_id=review_id)
        push(root, folder, ["config.json"])
    folder = find_run(root.folder, review_id)
    why_not = None if step == "compare" else reason_to_skip(folder, step)
    if why_not:
        say(f"{step:9} not done: {why_not}")
        return False
    manifest = do(config, step, folder, now=now)
    say(f"{step:9} {manifest.summary}")
    return manifest.outcome == "done"


def reviews(config: Config) -> RunRoot:
    """Where reviews are kept: beside the runs, on this machine or at the URL."""
    runs = run_root(config)
    url = f"{runs.url}/reviews" if runs.url else ""
    return replace(runs, folder=runs.folder / "reviews", url=url)


def reason_to_skip(folder: Path, step: str) -> str | None:
    """Why this step has nothing to do after what the steps before it found, or None."""
    compared, decided = read_manifest(folder / "compare"), read_manifest(folder / "decide")
    if compared and compared.outcome == "waiting":
        return compared.summary
    if step in VERDICTS and decided and decided.counts["verdict"] != VERDICTS[step]:
        return decided.summary
    return None


def do(config: Config, step: str, folder: Path, *, now: datetime) -> Manifest:
    """The manifest of a step that there is reason to do."""
    work = {"compare": compare_arms, "decide": take_decision}.get(step, do_as_decided)
    inputs = {"compare": (), "decide": (LOOK,)}.get(step, (LOOK, DECISION))
    manifest, _ = run_stage(
        folder,
        step,
        lambda own: work(config, folder, own, now),
        inputs={name: folder / name for name in inputs},
        settings=deciding(config, ("canary",)),
        reads=[Path(name).parent.name for name in inputs],
        root=reviews(config),
    )
    return manifest


def compare_arms(config: Config, review: Path, folder: Path, now: datetime) -> StageResult:
    """Reactions to both arms -> a comparison. With nobody on trial, projections are put right."""
    seen = look(config, now=now)
    write_atomically(folder / "look.json", json.dumps(asdict(seen), indent=2, default=str))
    if seen.comparison is None:
        summary = "; ".join([f"waiting: {seen.line()}", *live.repair_projections(config)])
        return StageResult(summary, outputs=("look.json",), outcome="waiting")
    counts = {"units": seen.comparison.units, "tips": seen.comparison.tips}
    return StageResult(seen.line(), outputs=("look.json",), counts=counts)


def take_decision(config: Config, review: Path, folder: Path, now: datetime) -> StageResult:
    """Comparison -> a verdict, with its reason and numbers."""
    decision = judge(config, read_look(review))
    write_atomically(folder / "decision.json", json.dumps(asdict(decision), indent=2))
    return StageResult(
        summary=f"{decision.verdict}: {decision.reason}",
        outputs=("decision.json",),
        counts={"verdict": decision.verdict},
    )


def do_as_decided(config: Config, review: Path, folder: Path, now: datetime) -> StageResult:
    """Verdict -> what is live, unless the rollout has ended or grown since."""
    decision = Decision(**json.loads((review / DECISION).read_text(encoding="utf-8")))
    found = act(config, read_look(review), decision, now=now)
    after = found.rollout
    trial = "none" if after.challenger is None else f"version {after.challenger}"
    line = f"version {after.champion} is champion, {trial} is on trial"
    return StageResult("; ".join([line, found.line] if found.line else [line]))


def read_look(review: Path) -> Look:
    """What `compare` saw."""
    return TypeAdapter(Look).validate_json((review / LOOK).read_text(encoding="utf-8"))
