"""Is the challenger better than the champion? A comparison and a verdict, valid at any time.

Plain arithmetic on outcomes, without database or clock. `docs/statistics.md` says why it holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from math import inf, isfinite, log
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from reactune.canary.guardrails import Guardrail, check_guardrails, rate
from reactune.canary.outcomes import KindCounts, Outcomes
from reactune.canary.routing import propensity
from reactune.canary.sequential import (
    PROMOTION,
    Effect,
    Floats,
    adjusted_differences,
    effect,
    mismatch_log_e_values,
)
from reactune.config.sections import CanaryConfig
from reactune.records import Phase, Verdict

DAY = np.timedelta64(1, "D")
# GrowthBook calls an experiment unhealthy beyond both of these.
MOVED_AWAY_SHARE, MOVED_AWAY_UNITS = 0.01, 10
# Beyond this the arm measures the champion, who answered, more than the challenger.
MAX_FALLBACK_SHARE = 0.2
# What is known before the first randomised unit.
UNKNOWN: dict[str, Any] = {
    "estimate": 0.0,
    "low": -inf,
    "high": inf,
    "progress": 0.0,
    "is_ready": False,
    "is_futile": False,
}


@dataclass(frozen=True)
class Trajectory:
    """The comparison after each randomised unit, oldest first.

    `effect` is in positives per tip, challenger minus champion. `mismatch` is the largest log
    e-value so far of a sample-ratio mismatch.
    """

    first_shown_at: NDArray[np.datetime64]
    effect: Effect
    mismatch: Floats


@dataclass(frozen=True)
class Comparison:
    """Challenger against champion, as far as is known.

    Rates are positives per tip as counted; while the share changes, only `estimate` and its
    bounds are unbiased. `progress` is the share of the planned information, `mismatch` the log
    e-value of a sample-ratio mismatch.
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
    is_futile: Annotated[bool, Field(alias="is_hopeless")]  # its name in stored numbers
    guardrails: tuple[Guardrail, ...]
    mismatch: float
    moved_away: int
    moved_in: int
    fallback_share: float
    units_at_share: dict[float, int]


@dataclass(frozen=True)
class Decision:
    """A verdict, its reason, and the numbers it was taken on (plain JSON values).

    `is_hold` marks a wait that needs a person: the data cannot be trusted, or the verdict is only
    proposed. The share stays meanwhile.
    """

    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]
    is_hold: bool = False


def compare(outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int) -> Comparison:
    """Everything a verdict needs; too few reactions give infinite bounds, not an error.

    `planned_units` was fixed when the rollout opened: it ends with as many at its first share.
    """
    path = trajectory(outcomes, settings=settings, planned_units=planned_units)
    challenger, tips = outcomes.challenger, outcomes.tips
    is_known = len(path.mismatch) > 0
    last = {name: getattr(path.effect, name)[-1].item() if is_known else UNKNOWN[name]
            for name in UNKNOWN}  # fmt: skip
    shares, units = np.unique(outcomes.share, return_counts=True)
    return Comparison(
        units=len(tips),
        tips=int(tips.sum()),
        challenger_units=int(challenger.sum()),
        challenger_tips=int(tips[challenger].sum()),
        champion_rate=rate(outcomes.positives[~challenger], tips[~challenger]),
        challenger_rate=rate(outcomes.positives[challenger], tips[challenger]),
        **last,
        guardrails=_guardrails(outcomes, settings, planned_units),
        mismatch=float(path.mismatch[-1]) if is_known else 0.0,
        moved_away=int((outcomes.both_arms & challenger).sum()),
        moved_in=int((outcomes.both_arms & ~challenger).sum()),
        fallback_share=rate(outcomes.fallbacks[challenger], tips[challenger]),
        units_at_share={float(share): int(n) for share, n in zip(shares, units, strict=True)},
    )


def trajectory(outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int) -> Trajectory:
    """The comparison after each randomised unit, with its user's past as covariate."""
    units = randomised(outcomes)
    if not len(units.tips):
        nothing, never = np.zeros(0), np.zeros(0, np.bool_)
        unknown = Effect(nothing, nothing, nothing, nothing, never, never)
        return Trajectory(units.first_shown_at, unknown, nothing)
    difference, is_ready = adjusted_differences(
        units.tips,
        units.positives,
        units.challenger,
        units.share,
        earlier_tips=units.earlier_tips,
        earlier_positives=units.earlier_positives,
        settings=settings,
    )
    bounds = effect(
        difference,
        is_ready,
        alpha=settings.alpha,
        planned=_planned_weight(units, planned_units),
        margin=settings.margin,
    )
    mismatch = mismatch_log_e_values(units.challenger, units.share)
    return Trajectory(units.first_shown_at, bounds, mismatch)


def bounds_over_time(
    outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int, points: int = 200
) -> Trajectory:
    """The trajectory at no more than `points` evenly spaced units, the last included, to draw."""
    path = trajectory(outcomes, settings=settings, planned_units=planned_units)
    length = len(path.mismatch)
    chosen = np.unique(np.linspace(0, max(length - 1, 0), min(points, length)).astype(int))
    return Trajectory(
        first_shown_at=path.first_shown_at[chosen],
        effect=Effect(*(getattr(path.effect, each.name)[chosen] for each in fields(Effect))),
        mismatch=path.mismatch[chosen],
    )


def randomised(outcomes: Outcomes) -> Outcomes:
    """The units whose arm was drawn at random: those with a share between 0 and 1."""
    chosen = (outcomes.share > 0) & (outcomes.share < 1)
    if chosen.all():
        return outcomes
    place = np.cumsum(chosen) - 1
    kinds = {}
    for kind, counts in outcomes.kinds.items():
        kept = chosen[counts.unit]
        if kept.any():
            unit = place[counts.unit[kept]]
            kinds[kind] = KindCounts(unit, counts.tips[kept], counts.positives[kept])
    columns = {each.name: getattr(outcomes, each.name) for each in fields(Outcomes)}
    del columns["kinds"]
    return Outcomes(**{name: values[chosen] for name, values in columns.items()}, kinds=kinds)


def age_days(outcomes: Outcomes, *, now: datetime) -> float:
    """Days since the first tip of a randomised unit was shown; 0 before that."""
    first = randomised(outcomes).first_shown_at
    if not len(first):
        return 0.0
    return float((np.datetime64(now.astimezone(UTC).replace(tzinfo=None)) - first.min()) / DAY)


def decide(
    comparison: Comparison, *, settings: CanaryConfig, phase: Phase, age_days: float
) -> Decision:
    """Promote, roll back or wait; the same comparison always gives the same decision.

    A challenger that is not better (by less than -margin) is promoted with chance at most
    `PROMOTION` of alpha; one that does no harm is rolled back for harm with chance at most the
    rest, half of it for the bounds and half for the guardrails. An inconclusive rollout ends with
    the champion. Under `decides = "propose"`, everything but shown harm waits for a person.
    """
    if phase == "holdback":
        # It measures how large the gain is; the former champion is not up for promotion.
        comparison = replace(comparison, is_futile=False)
    decision = _judge(comparison, settings, age_days)
    if phase not in ("canary", "ramp", "holdback"):
        decision = Decision("wait", f"no rollout is open (phase {phase})", {})
    elif (
        decision.verdict == "wait"
        and comparison.units >= settings.max_units
        and comparison.low <= -settings.margin
    ):
        decision = _inconclusive(comparison, decision.reason)
    if settings.decides == "propose" and decision.verdict != "wait" and not _harms(comparison):
        decision = _proposed(decision)
    return replace(decision, numbers=_numbers(comparison, settings, age_days))


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


def _guardrails(
    outcomes: Outcomes, settings: CanaryConfig, planned_units: int
) -> tuple[Guardrail, ...]:
    units = randomised(outcomes)
    if not len(units.tips):
        return ()
    planned = _planned_weight(units, planned_units)
    return check_guardrails(units, settings=settings, planned=planned)


def _planned_weight(units: Outcomes, planned_units: int) -> float:
    """The sum of p (1 - p) over the planned units, at the share of the first unit."""
    share = float(units.share[0])
    return planned_units * share * (1 - share)


def _judge(comparison: Comparison, settings: CanaryConfig, age_days: float) -> Decision:
    bounds = _bounds(comparison)
    if fault := _fault(comparison, settings):
        return _hold(fault)
    if harms := _harms(comparison):
        return Decision("roll back", "; ".join(harms), {})
    if not comparison.is_ready:
        return Decision("wait", f"too few reactions to decide ({comparison.units:,} units)", {})
    if comparison.low > comparison.high:
        return _hold(
            f"the bounds contradict earlier ones ({bounds}); check what has changed meanwhile"
        )
    if comparison.low > -settings.margin:
        return _promotion(comparison, settings, age_days)
    if comparison.progress >= 1:
        return _inconclusive(comparison, bounds)
    if comparison.is_futile and age_days >= settings.min_days:
        return _inconclusive(comparison, f"futile, a promotion is too unlikely, {bounds}")
    return Decision("wait", f"undecided: {bounds} after {comparison.units:,} units", {})


def _fault(comparison: Comparison, settings: CanaryConfig) -> str:
    """Why the data cannot be trusted, or nothing."""
    if comparison.mismatch >= log(1 / settings.srm_alpha):
        return (
            f"sample-ratio mismatch: {comparison.challenger_units:,} of {comparison.units:,} units "
            "on the challenger do not fit the shares they were routed by; check for lost exposures"
        )
    if comparison.moved_away >= max(MOVED_AWAY_UNITS, MOVED_AWAY_SHARE * comparison.units):
        return (
            f"{comparison.moved_away:,} units met the champion after the challenger; check the "
            "routing"
        )
    return ""


def _harms(comparison: Comparison) -> list[str]:
    """What is shown to be worse."""
    harms = []
    if comparison.low <= comparison.high < 0:
        harms.append(f"the challenger is worse: {_bounds(comparison)}")
    broken = [
        f"{each.name} {each.challenger_rate:.1%} instead of {each.champion_rate:.1%}"
        for each in comparison.guardrails
        if each.is_broken
    ]
    if broken:
        harms.append(f"harm is shown: {'; '.join(broken)}")
    return harms


def _promotion(comparison: Comparison, settings: CanaryConfig, age_days: float) -> Decision:
    bounds = _bounds(comparison)
    if comparison.fallback_share > MAX_FALLBACK_SHARE:
        return _hold(
            f"the champion answered {comparison.fallback_share:.0%} of the challenger's tips; "
            "repair its server"
        )
    if age_days < settings.min_days:
        rest = f"promoted when the rollout is {settings.min_days:g} days old"
        return Decision("wait", f"the challenger is better ({bounds}), {rest}", {})
    return Decision("promote", f"the challenger is better: {bounds}", {})


def _inconclusive(comparison: Comparison, why: str) -> Decision:
    reason = f"inconclusive after {comparison.units:,} units, the champion stays: {why}"
    return Decision("roll back", reason, {})


def _hold(why: str) -> Decision:
    return Decision("wait", f"hold: {why}", {}, is_hold=True)


def _proposed(decision: Decision) -> Decision:
    command = "promote" if decision.verdict == "promote" else "rollback"
    reason = f"{decision.verdict} is proposed: {decision.reason}; `reactune {command}` does it"
    return Decision("wait", reason, {}, is_hold=True)


def _bounds(comparison: Comparison) -> str:
    return f"{100 * comparison.low:+.2f} to {100 * comparison.high:+.2f} points"


def _numbers(comparison: Comparison, settings: CanaryConfig, age_days: float) -> dict[str, Any]:
    """The comparison under its stored names, as JSON values: infinite bounds are None."""
    numbers: dict[str, Any] = TypeAdapter(Comparison).dump_python(comparison, by_alias=True)
    numbers |= {
        "units_at_share": {str(k): n for k, n in comparison.units_at_share.items()},
        "guardrails": list(numbers["guardrails"]),
        "age_days": age_days,
        "alpha": settings.alpha,
        "promotion_alpha": PROMOTION * settings.alpha,
        "margin": settings.margin,
        "mismatch_alarm": log(1 / settings.srm_alpha),
    }
    infinite = [name for name in ("low", "high") if not isfinite(numbers[name])]
    return numbers | dict.fromkeys(infinite)
