"""Is the challenger better than the champion? Bounds and guardrails that may be read at any time.

Plain arithmetic on the outcomes: no database, no clock. `docs/statistics.md` says why it holds.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, isfinite, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reactune.canary.bounds import Floats
from reactune.canary.evidence import effect_bounds, harm_evidence, is_burnt_in, mismatch_evidence
from reactune.canary.outcomes import Booleans, Counts, Outcomes
from reactune.canary.routing import propensity
from reactune.config import CanaryConfig
from reactune.records import Phase, Verdict

# GrowthBook calls an experiment unhealthy beyond both of these.
MOVED_AWAY_SHARE, MOVED_AWAY_UNITS = 0.01, 10
# Beyond this the arm says more about the champion, who answered, than about the challenger.
MOST_FALLBACKS = 0.2


@dataclass(frozen=True)
class Path:
    """The comparison as it stood after each unit; one entry per unit, oldest first.

    `estimate`, `low` and `high` are in positives per tip, challenger minus champion. `harm` and
    `mismatch` are the largest log e-values so far, of the guardrail and of the sample-ratio
    check. Until `is_ready` (the burn-in is over) the bounds are infinite.
    """

    first_shown_at: NDArray[np.datetime64]
    estimate: Floats
    low: Floats
    high: Floats
    is_ready: Booleans
    harm: Floats
    mismatch: Floats


@dataclass(frozen=True)
class Comparison:
    """Challenger against champion, as far as is known.

    Rates are positives per tip as counted; while the share changes, only `estimate` and its
    bounds compare like with like. `moved_away` counts units that met the champion after the
    challenger, which routing never does; `moved_in` those that a growing share moved.
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
    is_ready: bool
    harm: float
    mismatch: float
    moved_away: int
    moved_in: int
    fallback_share: float
    units_at_share: dict[float, int]


@dataclass(frozen=True)
class Decision:
    """A verdict, why, and the numbers it was taken on (plain JSON values).

    `is_hold` marks a wait in which the data cannot be trusted: somebody should look.
    """

    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any]
    is_hold: bool = False


def compare(outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int) -> Comparison:
    """Everything a verdict needs; too few reactions give infinite bounds, not an error.

    `planned_units` was fixed when the rollout opened: bounds are tightest there, at the
    opening share.
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
        champion_rate=_ratio(outcomes.positives[~challenger], tips[~challenger]),
        challenger_rate=_ratio(outcomes.positives[challenger], tips[challenger]),
        estimate=float(path.estimate[-1]) if known else 0.0,
        low=float(path.low[-1]) if known else -inf,
        high=float(path.high[-1]) if known else inf,
        is_ready=bool(path.is_ready[-1]) if known else False,
        harm=float(path.harm[-1]) if known else 0.0,
        mismatch=float(path.mismatch[-1]) if known else 0.0,
        moved_away=int((outcomes.both_arms & challenger).sum()),
        moved_in=int((outcomes.both_arms & ~challenger).sum()),
        fallback_share=_ratio(outcomes.fallbacks[challenger], tips[challenger]),
        units_at_share={float(share): int(n) for share, n in zip(shares, units, strict=True)},
    )


def follow(outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int) -> Path:
    """The comparison after each unit; units not drawn by lot (share 0 or 1) are left out."""
    drawn = (outcomes.share > 0) & (outcomes.share < 1)
    challenger, share = outcomes.challenger[drawn], outcomes.share[drawn]
    tips, positives = outcomes.tips[drawn], outcomes.positives[drawn]
    estimate, low, high = effect_bounds(
        tips, positives, challenger, share, alpha=settings.alpha, planned_units=planned_units
    )
    is_ready = is_burnt_in(
        tips,
        positives,
        challenger,
        min_positives=settings.min_positives,
        min_negatives=settings.min_negatives,
    )
    quick = outcomes.quick_dismissals[drawn] > 0
    return Path(
        first_shown_at=outcomes.first_shown_at[drawn],
        estimate=estimate,
        low=np.where(is_ready, low, -inf),
        high=np.where(is_ready, high, inf),
        is_ready=is_ready,
        harm=harm_evidence(quick, challenger, share, margin=settings.harm_margin),
        mismatch=mismatch_evidence(challenger, share),
    )


def bounds_over_time(
    outcomes: Outcomes, *, settings: CanaryConfig, planned_units: int, points: int = 200
) -> Path:
    """The path thinned to at most `points` evenly spaced entries (the last included), to draw."""
    path = follow(outcomes, settings=settings, planned_units=planned_units)
    length = len(path.estimate)
    chosen = np.unique(np.linspace(0, max(length - 1, 0), min(points, length)).astype(int))
    return Path(*(getattr(path, name)[chosen] for name in Path.__dataclass_fields__))


def decide(comparison: Comparison, *, settings: CanaryConfig, phase: Phase) -> Decision:
    """Promote, roll back or wait; the same comparison always gives the same decision.

    A challenger that is not better (by less than -margin) is promoted with chance at most
    alpha / 2; one that does no harm is rolled back on evidence with chance at most alpha, half
    of it for the bounds and half for the guardrail. An inconclusive rollout ends with the
    champion.
    """
    verdict, reason, is_hold = _judge(comparison, settings)
    if phase not in ("canary", "ramp"):
        verdict, reason, is_hold = "wait", f"no rollout is open (phase {phase})", False
    elif verdict == "wait" and comparison.units >= settings.max_units:
        reason = f"inconclusive after {comparison.units:,} units, the champion stays: {reason}"
        verdict, is_hold = "roll back", False
    return Decision(verdict, reason, _numbers(comparison, settings), is_hold)


def _judge(seen: Comparison, settings: CanaryConfig) -> tuple[Verdict, str, bool]:
    bounds = f"{100 * seen.low:+.2f} to {100 * seen.high:+.2f} points"
    if fault := _fault(seen, settings):
        return "wait", f"hold: {fault}", True
    if seen.harm >= log(2 / settings.alpha):
        return "roll back", "people dismiss the challenger's tips at once too often", False
    if not seen.is_ready:
        return "wait", f"too few reactions to decide ({seen.units:,} units)", False
    if seen.high < 0:
        return "roll back", f"the challenger is worse: {bounds}", False
    if seen.low <= -settings.margin:
        return "wait", f"undecided: {bounds} after {seen.units:,} units", False
    if seen.fallback_share > MOST_FALLBACKS:
        missing = f"the champion answered {seen.fallback_share:.0%} of the challenger's tips"
        return "wait", f"hold: {missing}; repair its server", True
    return "promote", f"the challenger is better: {bounds}", False


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


def _numbers(comparison: Comparison, settings: CanaryConfig) -> dict[str, Any]:
    numbers = asdict(comparison) | {
        "units_at_share": {str(k): n for k, n in comparison.units_at_share.items()},
        "alpha": settings.alpha,
        "margin": settings.margin,
        "harm_alarm": log(2 / settings.alpha),
        "mismatch_alarm": log(1 / settings.srm_alpha),
    }
    endless = [name for name in ("low", "high") if not isfinite(numbers[name])]
    return numbers | dict.fromkeys(endless)


def _ratio(part: Counts, whole: Counts) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0
