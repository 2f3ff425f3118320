"""The course of a comparison: how it stood after each unit that was drawn by lot.

Outcomes in, paths out; what is done about the last entry is for `compare.py`.
"""

from dataclasses import dataclass, fields
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from reactune.canary.bounds import Floats
from reactune.canary.evidence import (
    Effect,
    effect,
    foreseen_differences,
    mismatch_evidence,
)
from reactune.canary.guardrails import Guardrail, watch
from reactune.canary.outcomes import Booleans, KindCounts, Outcomes
from reactune.config import CanaryConfig

DAY = np.timedelta64(1, "D")


@dataclass(frozen=True)
class Path:
    """The comparison as it stood after each unit; one entry per unit, oldest first.

    `estimate`, `low` and `high` are in positives per tip, challenger minus champion; see `Effect`
    for the rest. `mismatch` is the largest log e-value so far of the sample-ratio check.
    """

    first_shown_at: NDArray[np.datetime64]
    estimate: Floats
    low: Floats
    high: Floats
    progress: Floats
    is_ready: Booleans
    is_hopeless: Booleans
    mismatch: Floats


def follow(outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int) -> Path:
    """The comparison after each unit; units not drawn by lot (share 0 or 1) are left out."""
    drawn = by_lot(outcomes)
    if not len(drawn.tips):
        nothing, never = np.zeros(0), np.zeros(0, np.bool_)
        return Path(drawn.first_shown_at, nothing, nothing, nothing, nothing, never, never, nothing)
    seen = judge_effect(drawn, settings=settings, planned_units=planned_units)
    return Path(
        first_shown_at=drawn.first_shown_at,
        **{each.name: getattr(seen, each.name) for each in fields(Effect)},
        mismatch=mismatch_evidence(drawn.challenger, drawn.share),
    )


def judge_effect(drawn: Outcomes, *, settings: CanaryConfig, planned_units: int) -> Effect:
    """Bounds on the difference over units drawn by lot, each foreseen by its person's past."""
    found, is_ready = foreseen_differences(
        drawn.tips,
        drawn.positives,
        drawn.challenger,
        drawn.share,
        earlier_tips=drawn.earlier_tips,
        earlier_positives=drawn.earlier_positives,
        settings=settings,
    )
    return effect(
        found,
        is_ready,
        alpha=settings.alpha,
        planned=planned_weight(drawn, planned_units),
        margin=settings.margin,
    )


def guard(
    outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int
) -> tuple[Guardrail, ...]:
    """The guardrails over the units drawn by lot."""
    drawn = by_lot(outcomes)
    if not len(drawn.tips):
        return ()
    return watch(drawn, settings=settings, planned=planned_weight(drawn, planned_units))


def planned_weight(drawn: Outcomes, planned_units: int) -> float:
    """What the planned units would tell at the share that the first unit had: sum of p (1 - p)."""
    share = float(drawn.share[0])
    return planned_units * share * (1 - share)


def by_lot(outcomes: Outcomes) -> Outcomes:
    """The units whose arm was drawn: those with a share between 0 and 1."""
    drawn = (outcomes.share > 0) & (outcomes.share < 1)
    if drawn.all():
        return outcomes
    place = np.cumsum(drawn) - 1
    kinds = {}
    for kind, of in outcomes.kinds.items():
        kept = drawn[of.unit]
        kinds[kind] = KindCounts(place[of.unit[kept]], of.tips[kept], of.positives[kept])
    columns = {each.name: getattr(outcomes, each.name) for each in fields(Outcomes)}
    kept_columns = {name: values[drawn] for name, values in columns.items() if name != "kinds"}
    return Outcomes(**kept_columns, kinds={k: of for k, of in kinds.items() if len(of.tips)})


def age_days(outcomes: Outcomes, *, now: datetime) -> float:
    """Days since the first tip that was drawn by lot was shown; 0 before that."""
    first = by_lot(outcomes).first_shown_at
    if not len(first):
        return 0.0
    return float((np.datetime64(now.astimezone(UTC).replace(tzinfo=None)) - first.min()) / DAY)


def bounds_over_time(
    outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int, points: int = 200
) -> Path:
    """The path thinned to at most `points` evenly spaced entries (the last included), to draw."""
    path = follow(outcomes, settings=settings, planned_units=planned_units)
    length = len(path.estimate)
    chosen = np.unique(np.linspace(0, max(length - 1, 0), min(points, length)).astype(int))
    return Path(*(getattr(path, each.name)[chosen] for each in fields(Path)))
