"""Is the challenger better than the champion? Bounds and guardrails that may be read at any time.

Plain arithmetic on the outcomes: no database, no clock. `docs/statistics.md` says why it holds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from math import inf, isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reactune.canary.guardrails import Guardrail, rate, watch
from reactune.canary.outcomes import Booleans, KindCounts, Outcomes
from reactune.canary.routing import propensity
from reactune.canary.sequential import (
    PROMOTION,
    Effect,
    Floats,
    effect,
    foreseen_differences,
    mismatch_evidence,
)
from reactune.config.sections import CanaryConfig
from reactune.records import Phase, Verdict

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


# GrowthBook calls an experiment unhealthy beyond both of these.
MOVED_AWAY_SHARE, MOVED_AWAY_UNITS = 0.01, 10
# Beyond this the arm says more about the champion, who answered, than about the challenger.
MOST_FALLBACKS = 0.2


@dataclass(frozen=True)
class Comparison:
    """Challenger against champion, as far as is known.

    Rates are positives per tip as counted; while the share changes, only `estimate` and its
    bounds compare like with like. `progress` is the share of the planned information.
    `moved_away` counts units that met the champion after the challenger, which routing never
    does; `moved_in` those that a growing share moved.
    """

    units: int
    tips: int
    challenger_units: int
    challenger_tips: int
    champion_rate: float
    challenger_rate: float
    estimate: float
    low: float
    high: float
    progress: float
    is_ready: bool
    is_hopeless: bool
    guardrails: tuple[Guardrail, ...]
    mismatch: float
    moved_away: int
    moved_in: int
    fallback_share: float
    units_at_share: dict[float, int]


@dataclass(frozen=True)
class Decision:
    """A verdict, why, and the numbers it was taken on (plain JSON values).

    `is_hold` marks a wait in which somebody should look: the data cannot be trusted, or what
    follows is only proposed. The share stays meanwhile.
    """

    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]
    is_hold: bool = False


def compare(outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int) -> Comparison:
    """Everything a verdict needs; too few reactions give infinite bounds, not an error.

    `planned_units` was fixed when the rollout opened: with as many, all at its first share, it
    ends.
    """
    path = follow(outcomes, settings=settings, planned_units=planned_units)
    challenger, tips = outcomes.challenger, outcomes.tips
    known = len(path.estimate) > 0
    shares, units = np.unique(outcomes.share, return_counts=True)
    return Comparison(
        units=len(tips),
        tips=int(tips.sum()),
        challenger_units=int(challenger.sum()),
        challenger_tips=int(tips[challenger].sum()),
        champion_rate=rate(outcomes.positives[~challenger], tips[~challenger]),
        challenger_rate=rate(outcomes.positives[challenger], tips[challenger]),
        estimate=float(path.estimate[-1]) if known else 0.0,
        low=float(path.low[-1]) if known else -inf,
        high=float(path.high[-1]) if known else inf,
        progress=float(path.progress[-1]) if known else 0.0,
        is_ready=bool(path.is_ready[-1]) if known else False,
        is_hopeless=bool(path.is_hopeless[-1]) if known else False,
        guardrails=guard(outcomes, settings=settings, planned_units=planned_units),
        mismatch=float(path.mismatch[-1]) if known else 0.0,
        moved_away=int((outcomes.both_arms & challenger).sum()),
        moved_in=int((outcomes.both_arms & ~challenger).sum()),
        fallback_share=rate(outcomes.fallbacks[challenger], tips[challenger]),
        units_at_share={float(share): int(n) for share, n in zip(shares, units, strict=True)},
    )


def decide(
    comparison: Comparison, *, settings: CanaryConfig, phase: Phase, age_days: float
) -> Decision:
    """Promote, roll back or wait; the same comparison always gives the same decision.

    A challenger that is not better (by less than -margin) is promoted with chance at most
    `PROMOTION` of alpha; one that does no harm is rolled back on evidence with chance at most the
    rest, half of it for the bounds and half for the guardrails. An inconclusive rollout ends with
    the champion. Where the settings only let propose, everything but shown harm waits for a person.
    """
    if phase == "holdback":
        # It is there to see how large the gain is, not whether the former champion has prospects.
        comparison = replace(comparison, is_hopeless=False)
    found = _judge(comparison, settings, age_days)
    if phase not in ("canary", "ramp", "holdback"):
        found = Decision("wait", f"no rollout is open (phase {phase})", {})
    elif (
        found.verdict == "wait"
        and comparison.units >= settings.max_units
        and comparison.low <= -settings.margin
    ):
        found = _inconclusive(comparison, found.reason)
    if settings.decides == "propose" and found.verdict != "wait" and not _harms(comparison):
        found = _proposed(found)
    return replace(found, numbers=_numbers(comparison, settings, age_days))


def _judge(seen: Comparison, settings: CanaryConfig, age_days: float) -> Decision:
    bounds = _bounds(seen)
    if fault := _fault(seen, settings):
        return _hold(fault)
    if harms := _harms(seen):
        return Decision("roll back", "; ".join(harms), {})
    if not seen.is_ready:
        return Decision("wait", f"too few reactions to decide ({seen.units:,} units)", {})
    if seen.low > seen.high:
        return _hold(
            f"what was shown to be so ({bounds}) is so no more; look at what changed meanwhile"
        )
    if seen.low > -settings.margin:
        return _promotion(seen, settings, age_days, bounds)
    if seen.progress >= 1:
        return _inconclusive(seen, bounds)
    if seen.is_hopeless and age_days >= settings.min_days:
        return _inconclusive(seen, f"no gain is in prospect, {bounds}")
    return Decision("wait", f"undecided: {bounds} after {seen.units:,} units", {})


def _promotion(seen: Comparison, settings: CanaryConfig, age_days: float, bounds: str) -> Decision:
    if seen.fallback_share > MOST_FALLBACKS:
        missing = f"the champion answered {seen.fallback_share:.0%} of the challenger's tips"
        return _hold(f"{missing}; repair its server")
    if age_days < settings.min_days:
        left = f"promoted when the rollout is {settings.min_days:g} days old"
        return Decision("wait", f"the challenger is better ({bounds}), {left}", {})
    return Decision("promote", f"the challenger is better: {bounds}", {})


def _inconclusive(seen: Comparison, why: str) -> Decision:
    reason = f"inconclusive after {seen.units:,} units, the champion stays: {why}"
    return Decision("roll back", reason, {})


def _hold(why: str) -> Decision:
    return Decision("wait", f"hold: {why}", {}, is_hold=True)


def _proposed(found: Decision) -> Decision:
    command = "promote" if found.verdict == "promote" else "rollback"
    reason = f"{found.verdict} is proposed: {found.reason}; `reactune {command}` does it"
    return Decision("wait", reason, {}, is_hold=True)


def _harms(seen: Comparison) -> list[str]:
    """What is shown to be worse."""
    harms = [f"the challenger is worse: {_bounds(seen)}"] if seen.low <= seen.high < 0 else []
    if broken := [each for each in seen.guardrails if each.is_broken]:
        harms.append(f"harm is shown: {_told(broken)}")
    return harms


def _bounds(seen: Comparison) -> str:
    return f"{100 * seen.low:+.2f} to {100 * seen.high:+.2f} points"


def _told(broken: list[Guardrail]) -> str:
    return "; ".join(
        f"{each.name} {each.challenger_rate:.1%} instead of {each.champion_rate:.1%}"
        for each in broken
    )


def _fault(seen: Comparison, settings: CanaryConfig) -> str:
    if seen.mismatch >= log(1 / settings.srm_alpha):
        return (
            f"{seen.challenger_units:,} of {seen.units:,} units on the challenger do not fit the "
            "shares they were routed by; look for exposures that get lost"
        )
    if seen.moved_away >= max(MOVED_AWAY_UNITS, MOVED_AWAY_SHARE * seen.units):
        return f"{seen.moved_away:,} units met the champion after the challenger; look at routing"
    return ""


def next_share(
    comparison: Comparison, decision: Decision, *, share: float, settings: CanaryConfig
) -> float | None:
    """The next step of the ramp, or None while it has to wait or has no further step.

    A step needs `min_units_per_step` units at the current share, and a decision that shows
    neither harm nor a fault.
    """
    routed = propensity("challenger", share)
    here = sum(
        units for other, units in comparison.units_at_share.items() if abs(other - routed) < 1e-6
    )
    if decision.verdict != "wait" or decision.is_hold or here < settings.min_units_per_step:
        return None
    return min((step for step in settings.ramp if step > share), default=None)


def _numbers(comparison: Comparison, settings: CanaryConfig, age_days: float) -> dict[str, Any]:
    numbers = asdict(comparison) | {
        "units_at_share": {str(k): n for k, n in comparison.units_at_share.items()},
        "guardrails": [asdict(each) for each in comparison.guardrails],
        "age_days": age_days,
        "alpha": settings.alpha,
        "promotion_alpha": PROMOTION * settings.alpha,
        "margin": settings.margin,
        "mismatch_alarm": log(1 / settings.srm_alpha),
    }
    endless = [name for name in ("low", "high") if not isfinite(numbers[name])]
    return numbers | dict.fromkeys(endless)
