"""What reactions make of the challenger: compare, decide, act, and repair what only follows.

The second half of the loop. The statistics are `canary/`'s; what is live is `live.py`'s.
"""

from dataclasses import dataclass, replace
from datetime import datetime

import sqlalchemy as sa

from reactune import live
from reactune.canary import rollout as rollouts
from reactune.canary.compare import Comparison, Decision, compare, decide, next_share
from reactune.canary.outcomes import read_outcomes
from reactune.config import Config
from reactune.database import reading
from reactune.errors import CanaryError
from reactune.records import Rollout, Verdict


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
    with live.database(config) as engine:
        current = _live(config)
        if current.challenger is None:
            found = Review(
                "wait", f"version {current.champion} is champion, none is on trial", current
            )
        else:
            found = _judge(config, engine, current, now=now)
    repaired = live.repair_projections(config)
    return replace(found, line="; ".join([found.line, *repaired]))


def promote(config: Config, *, now: datetime) -> Review:
    """Make the challenger the champion, by hand.

    Raises:
        CanaryError: there is no challenger.
    """
    with live.database(config) as engine:
        after = rollouts.promote(
            engine, _live(config), actor="hand", reason="by hand", numbers={}, now=now
        )
    repaired = live.repair_projections(config)
    line = f"version {after.champion} is champion now"
    return Review("promote", "; ".join([line, *repaired]), after)


def roll_back(config: Config, *, now: datetime) -> Review:
    """Take the challenger back, by hand.

    Raises:
        CanaryError: there is no challenger.
    """
    with live.database(config) as engine:
        after = rollouts.roll_back(
            engine, _live(config), actor="hand", reason="by hand", numbers={}, now=now
        )
    repaired = live.repair_projections(config)
    line = f"the challenger is withdrawn, version {after.champion} stays champion"
    return Review("roll back", "; ".join([line, *repaired]), after)


def _judge(config: Config, engine: sa.Engine, current: Rollout, *, now: datetime) -> Review:
    """Look at the reactions to both arms and do what follows from them."""
    settings = config.canary
    with reading(engine) as connection:
        outcomes = read_outcomes(
            connection,
            current.rollout_id,
            labels=config.labels,
            window_seconds=settings.window_seconds,
            now=now,
        )
    comparison = compare(outcomes, settings=settings, planned_units=current.planned_units)
    decision = decide(comparison, settings=settings, phase=current.phase)
    after = _act(config, engine, current, comparison, decision, now=now)
    line = (
        f"{decision.verdict}: {decision.reason}; champion {comparison.champion_rate:.1%}, "
        f"challenger {comparison.challenger_rate:.1%} of tips"
    )
    if after.share != current.share and after.challenger is not None:
        line += f"; share {current.share:.0%} -> {after.share:.0%}"
    return Review(decision.verdict, line, after, comparison)


def _act(
    config: Config,
    engine: sa.Engine,
    current: Rollout,
    comparison: Comparison,
    decision: Decision,
    *,
    now: datetime,
) -> Rollout:
    reason, numbers = decision.reason, decision.numbers
    if decision.verdict == "promote":
        return rollouts.promote(
            engine, current, actor="review", reason=reason, numbers=numbers, now=now
        )
    if decision.verdict == "roll back":
        return rollouts.roll_back(
            engine, current, actor="review", reason=reason, numbers=numbers, now=now
        )
    share = next_share(comparison, decision, share=current.share, settings=config.canary)
    if share is None:
        rollouts.note_wait(engine, current, reason=reason, numbers=numbers, now=now)
        return current
    return rollouts.set_share(
        engine, current, share, actor="review", reason=reason, numbers=numbers, now=now
    )


def _live(config: Config) -> Rollout:
    current = live.current(config)
    if current is None:
        raise CanaryError("nothing is live yet; `reactune deploy` makes the base model champion")
    return current
