"""What a policy would have earned, from what another one was logged to do: a veto, never a vote.

Arrays in, estimates out; where the chances come from is for `logged_choices.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from reactune.canary.bounds import Floats
from reactune.errors import CanaryError

Standing = Literal["veto", "allowed", "unknown"]

# Below either of these the weights rest on too few answers to conclude anything.
LEAST_EFFECTIVE, LEAST_EFFECTIVE_SHARE = 100.0, 0.01
# Parts of the largest admissible stake; small ones win slowly and surely, large ones at once.
STAKES: Floats = np.geomspace(1e-4, 0.9, 24)
HALVINGS = 20  # bounds to one in a million


@dataclass(frozen=True)
class Logged:
    """Rewards in 0..1 of logged answers, and how likely both policies were to give each.

    Where a model of rewards is at hand, `predicted` is its value for the answer that was given,
    and `prospect` its mean over the new policy's answers; both known before the reward.
    `most_weight` is what the new chance over the logged one can be at most, where that is known.
    """

    reward: Floats
    logged_chance: Floats
    new_chance: Floats
    predicted: Floats | None = None
    prospect: Floats | None = None
    most_weight: float = np.inf


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Evaluation:
    """What the new policy would have earned per answer, and how much the log can tell of it.

    `low` and `high` hold at every length of the log with chance 1 - alpha, exactly; `standing`
    compares them with the bounds of what was earned. `mean_weight` is near 1 where the chances
    are right; `clipped` is the share of weights that were cut.
    """

    answers: int
    earned: Estimate
    ips: Estimate
    snips: Estimate
    dr: Estimate | None
    low: float
    high: float
    earned_low: float
    earned_high: float
    effective: float
    mean_weight: float
    mean_weight_error: float
    largest_weight: float
    clipped: float
    standing: Standing
    reason: str


def evaluate(log: Logged, *, alpha: float = 0.05, clip: float = np.inf) -> Evaluation:
    """Inverse propensity, self-normalised and doubly robust estimates, with their health.

    IPS: mean(w r); SNIPS: sum(w r) / sum(w); DR: mean(prospect + w (r - predicted)), with
    w = new / logged chance, cut at `clip`. Bounds: see `value_bounds`.

    Raises:
        CanaryError: no answers, a chance or a reward outside 0..1, or a logged chance of 0.
    """
    _check(log)
    whole = log.new_chance / log.logged_chance
    weight = np.minimum(whole, clip)
    answers, total = len(weight), float(weight.sum())
    snips = float(weight @ log.reward) / total if total else 0.0
    spread = float(np.sqrt((weight**2 * (log.reward - snips) ** 2).sum()))
    most = log.most_weight if clip >= log.most_weight else np.inf
    low, high = value_bounds(log.reward, weight, alpha=alpha, most_weight=most)
    earned_low, earned_high = value_bounds(log.reward, np.ones(answers), alpha=alpha, most_weight=1)
    squares = float((weight**2).sum())
    health = _mean(whole)
    effective = total**2 / squares if squares else 0.0
    standing, reason = _stand(effective, answers, health, high=high, earned_low=earned_low)
    return Evaluation(
        answers=answers,
        earned=_mean(log.reward),
        ips=_mean(weight * log.reward),
        snips=Estimate(snips, spread / total if total else 0.0),
        dr=_doubly_robust(log, weight),
        low=low,
        high=high,
        earned_low=earned_low,
        earned_high=earned_high,
        effective=effective,
        mean_weight=health.value,
        mean_weight_error=health.error,
        largest_weight=float(whole.max()),
        clipped=float((whole > clip).mean()),
        standing=standing,
        reason=reason,
    )


def value_bounds(
    reward: Floats, weight: Floats, *, alpha: float, most_weight: float = np.inf
) -> tuple[float, float]:
    """Bounds on the policy's value that hold at every length of the log with chance 1 - alpha.

    Bets against each value v: wealth is multiplied by 1 + c (w r / v - 1), whose mean is at most
    1 if the value is at most v; averaged over stakes c. From above the same with 1 - r, exact for
    w without bound and for w cut anywhere (Waudby-Smith et al., arXiv:2210.10768). Where w is
    known to be at most W and is not cut, W - w r is bet on beside it, with half of the chance:
    much tighter for rare rewards.
    """
    low = _lower_bound(weight * reward, alpha / 2)
    if not np.isfinite(most_weight):
        return low, 1 - _lower_bound(weight * (1 - reward), alpha / 2)
    at_most = 1 - _lower_bound(weight * (1 - reward), alpha / 4)
    left = _lower_bound(np.maximum(1 - weight * reward / most_weight, 0), alpha / 4)
    return low, min(at_most, most_weight * (1 - left))


def rank(evaluations: Sequence[Evaluation]) -> list[int]:
    """Places of those that are not vetoed and known, the one that surely earns most first."""
    known = [n for n, each in enumerate(evaluations) if each.standing == "allowed"]
    return sorted(known, key=lambda n: evaluations[n].low, reverse=True)


def lines_of(name: str, found: Evaluation) -> list[str]:
    """What a person reads of one evaluation."""
    said = {"ips": found.ips, "snips": found.snips, "dr": found.dr}
    estimates = ", ".join(
        f"{key} {each.value:.5f} (se {each.error:.5f})" for key, each in said.items() if each
    )
    words = {"veto": "veto", "allowed": "no veto", "unknown": "no conclusion"}
    cut = f", {found.clipped:.2%} cut" if found.clipped else ""
    return [
        f"{name}: {estimates}; between {found.low:.5f} and {found.high:.5f}",
        f"  logged {found.earned.value:.5f} of {found.answers:,} answers, between "
        f"{found.earned_low:.5f} and {found.earned_high:.5f}",
        f"  worth {found.effective:,.0f} answers; weights average {found.mean_weight:.3f}, "
        f"largest {found.largest_weight:.1f}{cut}",
        f"  {words[found.standing]}: {found.reason}",
    ]


def _lower_bound(gains: Floats, alpha: float) -> float:
    """The largest value in 0..1 at or below which all values are bet down at some time."""
    below, above = 0.0, 1.0
    if not gains.any():
        return 0.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        if _most_wealth(gains / middle) >= -log(alpha):
            below = middle
        else:
            above = middle
    return below


def _most_wealth(ratios: Floats) -> float:
    """The largest log wealth over time, averaged over the stakes."""
    courses = np.cumsum(np.log1p(STAKES[:, None] * (ratios - 1)), axis=1)
    return float(np.max(logsumexp(courses, axis=0))) - log(len(STAKES))


def _doubly_robust(log: Logged, weight: Floats) -> Estimate | None:
    if log.predicted is None or log.prospect is None:
        return None
    return _mean(log.prospect + weight * (log.reward - log.predicted))


def _stand(
    effective: float, answers: int, health: Estimate, *, high: float, earned_low: float
) -> tuple[Standing, str]:
    least = max(LEAST_EFFECTIVE, LEAST_EFFECTIVE_SHARE * answers)
    if effective < least:
        return "unknown", f"the log tells as much as {effective:,.0f} answers, {least:,.0f} needed"
    if abs(health.value - 1) > 4 * health.error + 1e-9:
        return "unknown", f"weights average {health.value:.3f} instead of 1: chances are wrong"
    if high < earned_low:
        return "veto", "it would certainly have earned less than what was logged"
    return "allowed", "nothing in the log speaks against it"


def _mean(values: Floats) -> Estimate:
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)


def _check(log: Logged) -> None:
    if not len(log.reward):
        raise CanaryError("no logged answers: nothing to evaluate")
    ranges = (
        ("reward", log.reward, 0.0),
        ("logged chance", log.logged_chance, np.finfo(np.float64).tiny),
        ("new chance", log.new_chance, 0.0),
    )
    for name, values, least in ranges:
        wrong = ~((values >= least) & (values <= 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise CanaryError(
                f"answer {row + 1}: {name} = {values[row]:g}; give values in 0..1"
                f"{', above 0' if least else ''}"
            )
    if (log.new_chance / log.logged_chance > log.most_weight * (1 + 1e-9)).any():
        raise CanaryError(f"weights reach more than the {log.most_weight:g} said to be the most")
