"""A review in steps, for a scheduler: compare, decide, then what was decided, each done once.

Every step has a folder and a manifest, as stages have. What it finds and does is `review.py`'s.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from pydantic import TypeAdapter

from reactune import deployment
from reactune.canary import rollout as rollouts
from reactune.canary.compare import Comparison, Decision, age_days, compare, decide, next_share
from reactune.canary.outcomes import read_outcomes
from reactune.canary.rollout import Holdback, Silence, first_share, judge_silence, read_silence
from reactune.config.sections import CanaryConfig
from reactune.config.settings import Config, deciding, without_passwords
from reactune.errors import CanaryError
from reactune.records import Reason, Rollout, Verdict, write_atomically
from reactune.runs.folders import StageResult, find_run, new_run, run_stage
from reactune.runs.manifest import Manifest, read_manifest
from reactune.runs.remote import RunRoot, pull, push, run_root
from reactune.store import queries
from reactune.store.database import reading


@dataclass(frozen=True)
class Look:
    """A rollout as it was at one moment, and how its arms compared; None without a challenger.

    In the shadow phase there is `silence` to compare, in a holdback the gain that was `promised`.
    """

    rollout: Rollout
    comparison: Comparison | None
    age_days: float = 0.0
    silence: Silence | None = None
    promised: float | None = None

    def line(self) -> str:
        """One line for the person at the terminal."""
        if self.comparison is None:
            return f"version {self.rollout.champion} is champion, none is on trial"
        if self.silence is not None:
            return f"version {self.rollout.challenger} answers beside the champion, unseen"
        told = (
            f"champion {self.comparison.champion_rate:.1%}, "
            f"challenger {self.comparison.challenger_rate:.1%} of tips"
        )
        if self.promised is not None:
            told += (
                f"; kept back: version {self.rollout.champion} was promoted at "
                f"{100 * self.promised:+.1f} points and stands at "
                f"{-100 * self.comparison.estimate:+.1f}"
            )
        return told


@dataclass(frozen=True)
class Review:
    """What a review found and did. `rollout` is what is live after it."""

    verdict: Verdict
    line: str
    rollout: Rollout
    comparison: Comparison | None = None


def review(config: Config, *, now: datetime) -> Review:
    """Compare, decide, act on it, record it with its numbers, and repair the projections.

    Safe to call as often as one likes, and by two at once. Without a challenger only the
    projections are looked after.

    Raises:
        CanaryError: nothing is live yet.
    """
    seen = look(config, now=now)
    if seen.comparison is None:
        repaired = deployment.repair_projections(config)
        return Review("wait", "; ".join([seen.line(), *repaired]), seen.rollout)
    decision = judge(config, seen)
    found = act(config, seen, decision, now=now)
    told = f"{decision.verdict}: {decision.reason}; {seen.line()}"
    return replace(found, line="; ".join([told, found.line] if found.line else [told]))


def look(config: Config, *, now: datetime) -> Look:
    """What is live, and how its arms compare by now; changes nothing.

    Raises:
        CanaryError: nothing is live yet.
    """
    current = deployment.live(config)
    if current.challenger is None:
        return Look(current, None)
    with deployment.database(config) as engine, reading(engine) as connection:
        outcomes = read_outcomes(
            connection,
            current.rollout_id,
            labels=config.labels,
            settings=config.canary,
            now=now,
        )
        silence, promised = None, None
        if current.phase == "shadow":
            slow_ms = config.canary.slow_ms
            silence = read_silence(connection, current.rollout_id, slow_ms=slow_ms)
        if current.phase == "holdback":
            promised = queries.last_estimate(
                connection, current.rollout_id.removesuffix(queries.AFTER)
            )
    comparison = compare(outcomes, settings=config.canary, planned_units=current.planned_units)
    return Look(current, comparison, age_days(outcomes, now=now), silence, promised)


def judge(config: Config, seen: Look) -> Decision:
    """What follows from a comparison; the same look gives the same decision.

    Raises:
        CanaryError: nobody was on trial then.
    """
    if seen.silence is not None:
        return judge_silence(seen.silence, settings=config.canary)
    return decide(
        _comparison_of(seen),
        settings=config.canary,
        phase=seen.rollout.phase,
        age_days=seen.age_days,
    )


def act(config: Config, seen: Look, decision: Decision, *, now: datetime) -> Review:
    """Do what was decided, record it with its numbers, and repair the projections.

    What was decided on a rollout that has ended or grown since is not done any more, so that
    repeating it changes nothing. The line says what changed, or nothing.

    Raises:
        CanaryError: nobody was on trial then, or nothing is live.
    """
    share = _share_after(config.canary, seen, decision)
    with deployment.database(config) as engine:
        after = _act(engine, seen.rollout, decision, share, config.canary, now=now)
    changes = deployment.repair_projections(config)
    if after.share != seen.rollout.share and after.challenger is not None:
        changes.insert(0, f"share {seen.rollout.share:.0%} -> {after.share:.0%}")
    return Review(decision.verdict, "; ".join(changes), after, seen.comparison)


def promote(config: Config, *, now: datetime) -> Review:
    """Make the challenger the champion, by hand.

    Raises:
        CanaryError: there is no challenger.
    """
    current = deployment.live(config)
    with deployment.database(config) as engine:
        why = Reason("hand", "by hand", {}, now)
        after = rollouts.promote(engine, current, why, holdback=_holdback(config.canary, current))
    repaired = deployment.repair_projections(config)
    line = f"version {after.champion} is champion now"
    return Review("promote", "; ".join([line, *repaired]), after)


def roll_back(config: Config, *, now: datetime) -> Review:
    """Take the challenger back, by hand.

    Raises:
        CanaryError: there is no challenger.
    """
    with deployment.database(config) as engine:
        why = Reason("hand", "by hand", {}, now)
        after = rollouts.roll_back(engine, deployment.live(config), why)
    repaired = deployment.repair_projections(config)
    line = f"the challenger is withdrawn, version {after.champion} stays champion"
    return Review("roll back", "; ".join([line, *repaired]), after)


def _act(
    engine: sa.Engine,
    seen: Rollout,
    decision: Decision,
    share: float | None,
    settings: CanaryConfig,
    *,
    now: datetime,
) -> Rollout:
    why = Reason("review", decision.reason, decision.numbers, now)
    if decision.verdict == "promote":
        return rollouts.promote(engine, seen, why, holdback=_holdback(settings, seen))
    if decision.verdict == "roll back":
        return rollouts.roll_back(engine, seen, why)
    if share is None:
        return rollouts.record_wait(engine, seen, why)
    return rollouts.set_share(engine, seen, share, why=why)


def _share_after(settings: CanaryConfig, seen: Look, decision: Decision) -> float | None:
    """The next share that the decision allows; a holdback does not grow."""
    if seen.silence is not None:
        return first_share(seen.silence, decision, settings=settings)
    if seen.rollout.phase == "holdback":
        return None
    return next_share(_comparison_of(seen), decision, share=seen.rollout.share, settings=settings)


def _holdback(settings: CanaryConfig, seen: Rollout) -> Holdback | None:
    """Who keeps the former champion after a promotion; not where that one itself comes back."""
    if not settings.holdback or seen.phase == "holdback":
        return None
    return Holdback(settings.holdback, secrets.token_hex(8))


def _comparison_of(seen: Look) -> Comparison:
    if seen.comparison is None:
        raise CanaryError(f"{seen.line()}: there is nothing to decide")
    return seen.comparison


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
        summary = "; ".join([f"waiting: {seen.line()}", *deployment.repair_projections(config)])
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
