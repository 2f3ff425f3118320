"""From units to bounds and e-values: what may be said of the arms after each unit.

Arrays in, arrays out, units oldest first on the last axis; what concerns the difference also takes
many worlds at once, one per row. The formulas are in `bounds.py`; what follows is for `compare.py`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reactune.canary.bounds import (
    SRM_PRIOR,
    Floats,
    allocation_evidence,
    kappa,
    mixture_evidence,
    planned_multiplier,
    ratio_evidence,
)
from reactune.canary.outcomes import Booleans, Counts
from reactune.config import CanaryConfig

# Parts of the chance alpha of a false verdict. A promotion takes longest to prove and gets most.
PROMOTION, WORSE, HARM = 0.6, 0.2, 0.2
# From here, in parts of what promotes at the planned end, to there goes the line of no prospect.
PROSPECT_START, PROSPECT_END = -0.33, 0.7


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion in positives per tip after each unit, with its standard error.

    `variance` is that of the sum behind the estimate; it only grows. `weight` is the sum of what
    each unit tells by its share, p (1 - p). All have the shape of the units they came from.
    """

    estimate: Floats
    error: Floats
    variance: Floats
    weight: Floats


@dataclass(frozen=True)
class Effect:
    """The difference with bounds that hold at every look until the planned end.

    `low` and `high` are the tightest so far; infinite before the burn-in is over, unchanged after
    `progress` (the share of the planned information) has reached 1. `is_hopeless` marks where a
    promotion is out of prospect.
    """

    estimate: Floats
    low: Floats
    high: Floats
    progress: Floats
    is_ready: Booleans
    is_hopeless: Booleans


def expected_rates(
    tips: Counts,
    positives: Counts,
    *,
    earlier_tips: Counts,
    earlier_positives: Counts,
    own_weight: float,
) -> Floats:
    """Each unit's rate as foreseen before it: its person's own so far, drawn to that of all.

    `earlier_...` is what the person was shown before this unit; `own_weight` is how many tips of
    the average a person's own are weighed against (variance reduction by a shrunk score: Deng,
    Xu, Kohavi and Walker, 2013). Nothing of the unit itself or after it goes in.
    """
    before = np.cumsum(positives, axis=-1) - positives + 1
    rate = before / (np.cumsum(tips, axis=-1) - tips + 2)
    expected: Floats = (earlier_positives + own_weight * rate) / (earlier_tips + own_weight)
    return expected


def differences(
    tips: Counts, positives: Counts, challenger: Booleans, share: Floats, *, expected: Floats
) -> Difference:
    """The estimate after each unit and its standard error.

    Design-based (Ham et al., arXiv:2210.08639): only the lot that gave a unit its arm is
    random, so drift, habits of people and changing shares do no harm. Unit u adds
    `(positives - tips * expected) * (A - p)`, with p its chance of the challenger; that is its
    inverse-propensity difference times p (1 - p), the weight that keeps rare challenger units
    from ruling the variance.
    """
    drawn, weight = challenger - share, share * (1 - share)
    surprise = positives - tips * expected
    size = weight * tips
    total = np.cumsum(size, axis=-1)
    estimate = np.cumsum(surprise * drawn, axis=-1) / total
    # What was seen varies too little while few units are on the challenger; what the lot could
    # have given, with the estimate taken as the effect on all, does not.
    seen = _sum_of_squares(surprise * drawn, size, estimate)
    scale = np.sqrt(weight)
    possible = _sum_of_squares(scale * surprise, scale * tips * (drawn - 1 + 2 * share), estimate)
    variance = np.maximum(seen, possible)
    return Difference(
        estimate=estimate,
        error=np.sqrt(variance) / total,
        variance=np.maximum.accumulate(variance, axis=-1),
        weight=np.cumsum(weight, axis=-1),
    )


def effect(
    found: Difference, is_ready: Booleans, *, alpha: float, planned: float, margin: float = 0.0
) -> Effect:
    """Bounds for a rollout that ends with `planned` weight (the sum of p (1 - p) over units).

    The low bound fails with chance PROMOTION * alpha, the high one with WORSE * alpha, at
    whatever unit.
    How much variance the end has is reckoned once, when the burn-in is over, from the variance
    so far: the bounds hold however the variance goes on, only the end comes sooner or later.
    """
    progress = _progress(found, is_ready, planned)
    is_open = is_ready & ~_after(progress >= 1)
    read_at = np.maximum(progress, 1e-9)
    below = found.error * planned_multiplier(read_at, alpha, chance=PROMOTION * alpha)
    above = found.error * planned_multiplier(read_at, alpha, chance=WORSE * alpha)
    low = np.where(is_open, found.estimate - below, -np.inf)
    high = np.where(is_open, found.estimate + above, np.inf)
    return Effect(
        estimate=found.estimate,
        low=np.maximum.accumulate(low, axis=-1),
        high=np.minimum.accumulate(high, axis=-1),
        progress=progress,
        is_ready=is_ready,
        is_hopeless=is_ready & _is_hopeless(found, progress, alpha=alpha, margin=margin),
    )


def worsening(
    found: Difference, is_ready: Booleans, *, alpha: float, planned: float, margin: float
) -> Floats:
    """Largest log e-value so far that the challenger's rate is lower by more than `margin`.

    Asymptotic, as bounds are: 0 until the burn-in is over.
    """
    x = kappa(alpha) * found.weight / planned
    shortfall = np.divide(
        -found.estimate - margin,
        found.error,
        out=np.zeros_like(found.error),
        where=found.error > 0,
    )
    evidence = np.where(is_ready, mixture_evidence(shortfall, x), 0)
    largest: Floats = np.maximum.accumulate(np.maximum(evidence, 0), axis=-1)
    return largest


def _progress(found: Difference, is_ready: Booleans, planned: float) -> Floats:
    """Share of the planned variance after each unit; by weight alone before the burn-in is over."""
    first = np.argmax(is_ready, axis=-1)[..., None]
    weight = np.take_along_axis(found.weight, first, axis=-1)
    variance = np.take_along_axis(found.variance, first, axis=-1)
    # A burn-in that is longer than the plan leaves one look, at its end.
    end = np.maximum(planned, weight)
    is_over = np.logical_or.accumulate(is_ready, axis=-1) & (variance > 0)
    spent = np.array(np.broadcast_to(found.weight / end, found.weight.shape))
    np.divide(found.variance * weight, variance * end, out=spent, where=is_over)
    return np.minimum(spent, 1)


def _after(reached: Booleans) -> Booleans:
    """True behind the first place where it was reached."""
    so_far = np.logical_or.accumulate(reached, axis=-1)
    behind: NDArray[np.bool_] = np.zeros_like(so_far)
    behind[..., 1:] = so_far[..., :-1]
    return behind


def _is_hopeless(found: Difference, progress: Floats, *, alpha: float, margin: float) -> Booleans:
    """Where the sum lies below a line that climbs to near what promotes at the planned end."""
    z = np.divide(
        found.estimate + margin,
        found.error,
        out=np.zeros_like(found.error),
        where=found.error > 0,
    )
    goal = planned_multiplier(1.0, alpha, chance=PROMOTION * alpha)
    line = goal * (PROSPECT_START + (PROSPECT_END - PROSPECT_START) * progress)
    below: NDArray[np.bool_] = z * np.sqrt(progress) < line
    return below


def _sum_of_squares(values: Floats, slopes: Floats, slope: Floats) -> Floats:
    """Running sum of `(values - slope * slopes)**2`, with the slope known at each point."""
    squares = np.cumsum(values**2, axis=-1)
    products = np.cumsum(values * slopes, axis=-1)
    total: Floats = squares - 2 * slope * products + slope**2 * np.cumsum(slopes**2, axis=-1)
    return np.maximum(total, 0)


def foreseen_differences(
    tips: Counts,
    positives: Counts,
    challenger: Booleans,
    share: Floats,
    *,
    earlier_tips: Counts,
    earlier_positives: Counts,
    settings: CanaryConfig,
) -> tuple[Difference, Booleans]:
    """`differences` from what each person's past foretells, and where the burn-in is over."""
    expected = expected_rates(
        tips,
        positives,
        earlier_tips=earlier_tips,
        earlier_positives=earlier_positives,
        own_weight=settings.own_weight,
    )
    is_ready = is_burnt_in(
        tips,
        positives,
        challenger,
        min_positives=settings.min_positives,
        min_negatives=settings.min_negatives,
    )
    return differences(tips, positives, challenger, share, expected=expected), is_ready


def is_burnt_in(
    tips: Counts, positives: Counts, challenger: Booleans, *, min_positives: int, min_negatives: int
) -> Booleans:
    """Where the smaller arm has enough units with a positive and enough with a tip that was none.

    What one arm lacks counts as far as the other arm's rate lets expect it: a challenger that
    nobody likes must not be saved by its lack of positives. Asymptotic bounds need this.
    """
    enough = np.ones(tips.shape, np.bool_)
    units = [np.cumsum(arm, axis=-1) for arm in (challenger, ~challenger)]
    smaller = np.minimum(*units)
    for has_one, least in ((positives > 0, min_positives), (positives < tips, min_negatives)):
        rates = [
            np.cumsum(has_one & arm, axis=-1) / np.maximum(seen, 1)
            for arm, seen in zip((challenger, ~challenger), units, strict=True)
        ]
        enough &= smaller * np.maximum(*rates) >= least - 1e-9
    return enough


def harm_evidence(event: Booleans, challenger: Booleans, share: Floats, *, margin: float) -> Floats:
    """Largest log e-value so far that events are more than (1 + margin) times as frequent.

    One event per unit at most: two events of one person on one day fall on the same arm and
    are no two draws. Each share is a process of its own, and their e-values are multiplied.
    """
    steps = np.zeros(share.shape)
    for p in np.unique(share):
        here = event & (share == p)
        ceiling = p * (1 + margin) / (p * (1 + margin) + 1 - p)
        hits = np.cumsum(challenger[here])
        evidence = allocation_evidence(hits, np.arange(1, len(hits) + 1), ceiling=float(ceiling))
        steps[here] = np.diff(evidence, prepend=0)
    return _largest_so_far(steps)


def excess_evidence(event: Booleans, among: Booleans, *, limit: float) -> Floats:
    """Largest log e-value so far that more than `limit` of the units in `among` had an event."""
    steps = np.zeros(event.shape)
    hits = np.cumsum(event[among])
    evidence = allocation_evidence(hits, np.arange(1, len(hits) + 1), ceiling=limit)
    steps[among] = np.diff(evidence, prepend=0)
    return _largest_so_far(steps)


def mismatch_evidence(challenger: Booleans, share: Floats) -> Floats:
    """Largest log e-value so far that units fall on the arms otherwise than they were routed."""
    steps = np.zeros(share.shape)
    for p in np.unique(share):
        here = share == p
        hits = np.cumsum(challenger[here])
        counts = np.stack([hits, np.arange(1, len(hits) + 1) - hits], axis=-1)
        shares = np.array([p, 1 - p])
        evidence = ratio_evidence(counts, shares, SRM_PRIOR * shares)
        steps[here] = np.diff(evidence, prepend=0)
    return _largest_so_far(steps)


def _largest_so_far(steps: Floats) -> Floats:
    """What was shown once stays shown: by Ville's inequality the maximum has the same guarantee."""
    evidence: Floats = np.maximum.accumulate(np.cumsum(steps))
    return np.maximum(evidence, 0)
