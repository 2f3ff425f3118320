"""From units to bounds and e-values: what may be said of the arms after each unit.

Arrays in, arrays out, units oldest first; bounds and burn-in also take many worlds at once,
one per row. The formulas are in `bounds.py`; what follows from the evidence is for `compare.py`.
"""

import numpy as np

from reactune.canary.bounds import (
    SRM_PRIOR,
    Floats,
    allocation_evidence,
    kappa,
    multiplier,
    ratio_evidence,
)
from reactune.canary.outcomes import Booleans, Counts


def effect_bounds(
    tips: Counts,
    positives: Counts,
    challenger: Booleans,
    share: Floats,
    *,
    alpha: float,
    planned_units: int,
) -> tuple[Floats, Floats, Floats]:
    """Difference in positives per tip after each unit (last axis), with bounds that hold together.

    Design-based (Ham et al., arXiv:2210.08639): only the lot that gave a unit its arm is
    random, so drift, habits of people and changing shares do no harm. Unit u adds
    `(positives - tips * m) * (A - p)`, with p its chance of the challenger and m the rate of
    the units before it; that is its inverse-propensity difference times p (1 - p), the weight
    that keeps rare challenger units from ruling the variance.
    """
    drawn, weight = challenger - share, share * (1 - share)
    before_positives = np.cumsum(positives, axis=-1) - positives
    before_tips = np.cumsum(tips, axis=-1) - tips
    surprise = positives - tips * (before_positives + 1) / (before_tips + 2)
    size = weight * tips
    total = np.cumsum(size, axis=-1)
    estimate = np.cumsum(surprise * drawn, axis=-1) / total
    # What was seen varies too little while few units are on the challenger; what the lot could
    # have given, with the estimate taken as the effect on all, does not.
    seen = _sum_of_squares(surprise * drawn, size, estimate)
    scale = np.sqrt(weight)
    possible = _sum_of_squares(scale * surprise, scale * tips * (drawn - 1 + 2 * share), estimate)
    error = np.sqrt(np.maximum(seen, possible)) / total
    information = np.cumsum(weight, axis=-1) / (planned_units * weight[..., :1])
    half = error * multiplier(kappa(alpha) * information, alpha)
    return estimate, estimate - half, estimate + half


def _sum_of_squares(values: Floats, slopes: Floats, effect: Floats) -> Floats:
    """Running sum of `(values - effect * slopes)**2`, with the effect known at each point."""
    squares = np.cumsum(values**2, axis=-1)
    products = np.cumsum(values * slopes, axis=-1)
    total: Floats = squares - 2 * effect * products + effect**2 * np.cumsum(slopes**2, axis=-1)
    return np.maximum(total, 0)


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
