"""One review of the open rollout: what is compared, what is decided, and what is done about it.

`review` does it all at once. `run_step` does one step for a scheduler, each once and with a
manifest of its own, as the stages of a run have: `compare`, `decide`, then what was decided.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from reactune import deployment
from reactune.canary import rollout as rollouts
from reactune.canary.compare import (
    Comparison,
    Decision,
    age_days,
    bounds_over_time,
    compare,
    decide,
    next_share,
)
from reactune.canary.outcomes import Outcomes, read_outcomes
from reactune.canary.rollout import (
    Holdback,
    ShadowReport,
    first_share,
    judge_shadow,
    read_shadow,
)
from reactune.canary.sequential import Floats
from reactune.config.sections import CanaryConfig
from reactune.config.settings import Config, deciding, without_passwords
from reactune.errors import CanaryError
from reactune.records import Reason, Rollout, Verdict, write_atomically
from reactune.runs.folders import StageResult, find_run, new_run, run_stage
from reactune.runs.manifest import Manifest, read_manifest
from reactune.runs.remote import RunRoot, pull, push, run_root
from reactune.store import queries
from reactune.store.database import reading, writing
from reactune.store.labels import label_rule
from reactune.store.summaries import RECENT, Summary, recount, write_summaries

SNAPSHOT, DECISION = "compare/look.json", "decide/decision.json"
VERDICTS: dict[str, Verdict] = {"promote": "promote", "rollback": "roll back", "wait": "wait"}


@dataclass(frozen=True)
class Snapshot:
    """A rollout at one moment, and the comparison of its arms; None without a challenger.

    The shadow phase has a report of its answers, a holdback the gain that the promotion `promised`.
    """

    rollout: Rollout
    comparison: Comparison | None
    age_days: float = 0.0
    shadow: Annotated[ShadowReport | None, Field(alias="silence")] = None  # its name in look.json
    promised: float | None = None

    def line(self) -> str:
        """One line for the operator."""
        if self.comparison is None:
            return f"version {self.rollout.champion} is champion, none is on trial"
        if self.shadow is not None:
            return f"version {self.rollout.challenger} is in the shadow phase"
        rates = (
            f"champion {self.comparison.champion_rate:.1%}, "
            f"challenger {self.comparison.challenger_rate:.1%} of tips"
        )
        if self.promised is None:
            return rates
        return (
            f"{rates}; holdback: version {self.rollout.champion} was promoted at "
            f"{100 * self.promised:+.1f} points and is now at "
            f"{-100 * self.comparison.estimate:+.1f}"
        )


@dataclass(frozen=True)
class Review:
    """The verdict of a review and what it changed. `rollout` is what is live after it."""

    verdict: Verdict
    line: str
    rollout: Rollout
    comparison: Comparison | None = None


def review(config: Config, *, now: datetime) -> Review:
    """Compare, decide, act on it, record it with its numbers, and repair the projections.

    Safe to call at any time, and by two at once. Without a challenger it only repairs the
    projections.

    Raises:
        CanaryError: nothing is live yet.
    """
    snapshot, outcomes = _snapshot_of(config, now=now)
    _summarise(config, snapshot, outcomes, now=now)
    if snapshot.comparison is None:
        repaired = deployment.repair_projections(config)
        return Review("wait", "; ".join([snapshot.line(), *repaired]), snapshot.rollout)
    decision = judge(config, snapshot)
    done = act(config, snapshot, decision, now=now)
    line = f"{decision.verdict}: {decision.reason}; {snapshot.line()}"
    return replace(done, line="; ".join([line, done.line] if done.line else [line]))


def promote(config: Config, *, now: datetime) -> Review:
    """Make the challenger the champion, by hand.

    Raises:
        CanaryError: there is no challenger.
    """
    current = deployment.live(config)
    why = Reason("hand", "by hand", {}, now)
    with deployment.database(config) as engine:
        holdback = holdback_after(config.canary, current)
        after = rollouts.promote(engine, current, why, holdback=holdback)
    repaired = deployment.repair_projections(config)
    line = f"version {after.champion} is champion now"
    return Review("promote", "; ".join([line, *repaired]), after)


def roll_back(config: Config, *, now: datetime) -> Review:
    """Withdraw the challenger, by hand.

    Raises:
        CanaryError: there is no challenger.
    """
    current = deployment.live(config)
    with deployment.database(config) as engine:
        after = rollouts.roll_back(engine, current, Reason("hand", "by hand", {}, now))
    repaired = deployment.repair_projections(config)
    line = f"the challenger is withdrawn, version {after.champion} stays champion"
    return Review("roll back", "; ".join([line, *repaired]), after)


def take_snapshot(config: Config, *, now: datetime) -> Snapshot:
    """What is live, and how its arms compare by now; changes nothing.

    Raises:
        CanaryError: nothing is live yet.
    """
    return _snapshot_of(config, now=now)[0]


def _snapshot_of(config: Config, *, now: datetime) -> tuple[Snapshot, Outcomes | None]:
    """The snapshot, and the outcomes that it compares."""
    current = deployment.live(config)
    if current.challenger is None:
        return Snapshot(current, None), None
    with deployment.database(config) as engine, reading(engine) as connection:
        outcomes = read_outcomes(
            connection,
            current.rollout_id,
            labels=config.labels,
            settings=config.canary,
            now=now,
        )
        shadow, promised = None, None
        if current.phase == "shadow":
            slow_ms = config.canary.slow_ms
            shadow = read_shadow(connection, current.rollout_id, slow_ms=slow_ms)
        if current.phase == "holdback":
            trial = current.rollout_id.removesuffix(queries.AFTER)
            promised = queries.last_estimate(connection, trial)
    comparison = compare(outcomes, settings=config.canary, planned_units=current.planned_units)
    age = age_days(outcomes, now=now)
    return Snapshot(current, comparison, age, shadow, promised), outcomes


def _summarise(
    config: Config, snapshot: Snapshot, outcomes: Outcomes | None, *, now: datetime
) -> None:
    """Write what the pages read: the comparison over time, and the latest days' counts."""
    with deployment.database(config) as engine:
        recount(engine, label_rule(config.labels), now=now, back=RECENT)
        if outcomes is None:
            return
        summary = summary_of(snapshot, outcomes, settings=config.canary, now=now)
        with writing(engine) as connection:
            write_summaries(connection, [summary])


def summary_of(
    snapshot: Snapshot, outcomes: Outcomes, *, settings: CanaryConfig, now: datetime
) -> Summary:
    """The comparison after some 200 of the units, with the time at which each was first shown."""
    rollout = snapshot.rollout
    path = bounds_over_time(outcomes, settings=settings, planned_units=rollout.planned_units)
    figures = {
        "at": [f"{at}Z" for at in path.first_shown_at.astype("datetime64[s]")],
        **{name: _finite(getattr(path.effect, name)) for name in ("estimate", "low", "high")},
        "mismatch": _finite(path.mismatch),
    }
    return Summary(rollout.rollout_id, "review", "done", snapshot.line(), now, figures=figures)


def _finite(values: Floats) -> list[float | None]:
    """The values as JSON has them: None for what is infinite."""
    return [value if isfinite(value) else None for value in values.tolist()]


def judge(config: Config, snapshot: Snapshot) -> Decision:
    """The decision on a snapshot; the same snapshot gives the same decision.

    Raises:
        CanaryError: it has no challenger.
    """
    if snapshot.shadow is not None:
        return judge_shadow(snapshot.shadow, settings=config.canary)
    return decide(
        _comparison_of(snapshot),
        settings=config.canary,
        phase=snapshot.rollout.phase,
        age_days=snapshot.age_days,
    )


def act(config: Config, snapshot: Snapshot, decision: Decision, *, now: datetime) -> Review:
    """Do what was decided, record it with its numbers, and repair the projections.

    A decision on a rollout that has ended or grown since is not carried out, so that repeating it
    changes nothing. The line names the changes, if any.

    Raises:
        CanaryError: the snapshot has no challenger, or nothing is live.
    """
    seen, why = snapshot.rollout, Reason("review", decision.reason, decision.numbers, now)
    share = _share_after(config.canary, snapshot, decision)
    with deployment.database(config) as engine:
        if decision.verdict == "promote":
            holdback = holdback_after(config.canary, seen)
            after = rollouts.promote(engine, seen, why, holdback=holdback)
        elif decision.verdict == "roll back":
            after = rollouts.roll_back(engine, seen, why)
        elif share is not None:
            after = rollouts.set_share(engine, seen, share, why=why)
        else:
            after = rollouts.record_wait(engine, seen, why)
    changes = deployment.repair_projections(config)
    if after.share != seen.share and after.challenger is not None:
        changes.insert(0, f"share {seen.share:.0%} -> {after.share:.0%}")
    return Review(decision.verdict, "; ".join(changes), after, snapshot.comparison)


def run_step(
    config: Config, step: str, review_id: str, *, now: datetime, say: Callable[[str], None]
) -> bool:
    """Do one step of a review, unless it is done; whether there was something to do.

    `compare` starts the review if there is none of this name. The other steps have nothing to do
    without a challenger, and the last three under another verdict.

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
    """The folder of reviews beside the runs, on this machine or at the URL."""
    runs = run_root(config)
    url = f"{runs.url}/reviews" if runs.url else ""
    return replace(runs, folder=runs.folder / "reviews", url=url)


def reason_to_skip(folder: Path, step: str) -> str | None:
    """Why this step has nothing to do after the steps before it, or None."""
    compared, decided = read_manifest(folder / "compare"), read_manifest(folder / "decide")
    if compared and compared.outcome == "waiting":
        return compared.summary
    if step in VERDICTS and decided and decided.counts["verdict"] != VERDICTS[step]:
        return decided.summary
    return None


def do(config: Config, step: str, folder: Path, *, now: datetime) -> Manifest:
    """The manifest of a step that has something to do."""
    work = {"compare": compare_arms, "decide": take_decision}.get(step, do_as_decided)
    inputs = {"compare": (), "decide": (SNAPSHOT,)}.get(step, (SNAPSHOT, DECISION))
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
    """Reactions to both arms -> a snapshot. Without a challenger it repairs the projections."""
    snapshot, outcomes = _snapshot_of(config, now=now)
    _summarise(config, snapshot, outcomes, now=now)
    values = TypeAdapter(Snapshot).dump_python(snapshot, by_alias=True)
    write_atomically(folder / "look.json", json.dumps(values, indent=2, default=str))
    if snapshot.comparison is None:
        repaired = deployment.repair_projections(config)
        summary = "; ".join([f"waiting: {snapshot.line()}", *repaired])
        return StageResult(summary, outputs=("look.json",), outcome="waiting")
    counts = {"units": snapshot.comparison.units, "tips": snapshot.comparison.tips}
    return StageResult(snapshot.line(), outputs=("look.json",), counts=counts)


def take_decision(config: Config, review: Path, folder: Path, now: datetime) -> StageResult:
    """Snapshot -> a verdict, with its reason and numbers."""
    decision = judge(config, read_snapshot(review))
    write_atomically(folder / "decision.json", json.dumps(asdict(decision), indent=2))
    return StageResult(
        summary=f"{decision.verdict}: {decision.reason}",
        outputs=("decision.json",),
        counts={"verdict": decision.verdict},
    )


def do_as_decided(config: Config, review: Path, folder: Path, now: datetime) -> StageResult:
    """Verdict -> what is live, unless the rollout has ended or grown since."""
    decision = Decision(**json.loads((review / DECISION).read_text(encoding="utf-8")))
    done = act(config, read_snapshot(review), decision, now=now)
    after = done.rollout
    trial = "none" if after.challenger is None else f"version {after.challenger}"
    line = f"version {after.champion} is champion, {trial} is on trial"
    return StageResult("; ".join([line, done.line] if done.line else [line]))


def read_snapshot(review: Path) -> Snapshot:
    """The snapshot that the step `compare` of this review took."""
    return TypeAdapter(Snapshot).validate_json((review / SNAPSHOT).read_text(encoding="utf-8"))


def _share_after(settings: CanaryConfig, snapshot: Snapshot, decision: Decision) -> float | None:
    """The next share that the decision allows; a holdback does not grow."""
    if snapshot.shadow is not None:
        return first_share(snapshot.shadow, decision, settings=settings)
    if snapshot.rollout.phase == "holdback":
        return None
    share = snapshot.rollout.share
    return next_share(_comparison_of(snapshot), decision, share=share, settings=settings)


def holdback_after(settings: CanaryConfig, rollout: Rollout) -> Holdback | None:
    """The holdback after a promotion; none after that of the former champion itself."""
    if not settings.holdback or rollout.phase == "holdback":
        return None
    return Holdback(settings.holdback, secrets.token_hex(8))


def _comparison_of(snapshot: Snapshot) -> Comparison:
    if snapshot.comparison is None:
        raise CanaryError(f"{snapshot.line()}: there is nothing to decide")
    return snapshot.comparison
