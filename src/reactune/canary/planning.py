"""How many tips until a verdict: the smallest rollout that finds a given lift.

A plan promises nothing about the rollout; `compare.py` decides on what was seen.
"""

from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import NormalDist

from reactune.canary.bounds import kappa, multiplier
from reactune.errors import CanaryError


@dataclass(frozen=True)
class Plan:
    """A rollout that ends by `units` with the wanted chance; tips are those of both arms."""

    units: int
    tips: int
    challenger_tips: int


def plan(
    baseline: float,
    lift: float,
    *,
    share: float,
    alpha: float = 0.05,
    power: float = 0.8,
    tips_per_unit: float = 1.0,
    correlation: float = 0.0,
) -> Plan:
    """Smallest rollout in which bounds that are tightest at its end exclude zero.

    `baseline` is the champion's positives per tip, `lift` the difference to be found,
    `share` the challenger's (kept all the time), `correlation` that of reactions within one
    unit. Solves `lift * sqrt(n / variance) >= multiplier + z(power)` with
    `variance = baseline (1 - baseline) / (share (1 - share))`, times the design effect
    `1 + (tips_per_unit - 1) * correlation`. Conservative: bounds are often crossed sooner.

    Raises:
        CanaryError: a value for which no finite plan exists.
    """
    _check_between("baseline", baseline, low=0, high=1)
    _check_between("share", share, low=0, high=1)
    _check_between("power", power, low=0, high=1)
    _check_between("alpha", alpha, low=0, high=0.5)
    if not 1 <= tips_per_unit < inf or not 0 <= correlation <= 1:
        raise CanaryError(
            f"tips_per_unit = {tips_per_unit}, correlation = {correlation}: "
            "give at least 1 tip, and a correlation in 0..1"
        )
    if lift == 0 or not 0 <= baseline + lift <= 1:
        raise CanaryError(
            f"lift = {lift}: with baseline = {baseline} it must lead to another rate in 0..1"
        )
    spread = sqrt(baseline * (1 - baseline) / (share * (1 - share)))
    distance = float(multiplier(kappa(alpha), alpha)) + NormalDist().inv_cdf(power)
    design_effect = 1 + (tips_per_unit - 1) * correlation
    tips = (distance * spread / lift) ** 2 * design_effect
    units = ceil(tips / tips_per_unit)
    tips = units * tips_per_unit
    return Plan(units=units, tips=ceil(tips), challenger_tips=ceil(tips * share))


def _check_between(name: str, value: float, *, low: float, high: float) -> None:
    if not low < value < high:
        raise CanaryError(f"{name} = {value}: give a value between {low} and {high}, both excluded")
