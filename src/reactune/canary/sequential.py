"""From units to bounds and e-values: what may be said of the arms after each unit.

Arrays in, arrays out, units oldest first on the last axis; what concerns the difference also takes
many worlds at once, one per row. The formulas are in `bounds.py`; what follows is for `compare.py`.
"""

from dataclasses import dataclass
from functools import cache
from math import log

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import betaincc, betaln, gammaln, ndtr

from reactune.canary.outcomes import Booleans, Counts
from reactune.config.sections import CanaryConfig

Floats = NDArray[np.float64]

# The earlier the closer: boundaries change with the logarithm of time.
START, RATIO = 1e-3, 1.15
TIMES: Floats = np.append(START * RATIO ** np.arange(int(log(1 / START) / log(RATIO)) + 1), 1.0)
PLACES, WEIGHTS = leggauss(64)
FAR = 7.0  # standard deviations beyond which nothing is looked for


@cache
def closing_constant(rate: float, chance: float) -> float:
    """The `c` with which `sqrt(t (1 + 1/x) (ln(1 + x) + c))`, `x = rate t`, is crossed by time 1

    with this chance. For a boundary that must hold without an end, `c` is `-2 ln(2 chance)`.
    """
    x = rate * TIMES
    scale, growth = TIMES * (1 + 1 / x), np.log1p(x)
    nothing = np.full_like(TIMES, -np.inf)

    def excess(constant: float) -> float:
        above, _ = crossings(np.sqrt(scale * (growth + constant)), nothing, drift=0.0)
        return float(above[-1]) - chance

    return float(brentq(excess, 0.0, -2 * log(2 * chance) + 1, xtol=1e-4))


def crossings(upper: Floats, lower: Floats, *, drift: float) -> tuple[Floats, Floats]:
    """Chance of having left through `upper`, and through `lower`, by each of `TIMES`.

    The bounds are given at `TIMES` and straight in between; `lower` may be infinite. The density
    of what is still inside is carried from time to time (Armitage, McPherson and Rowe, 1969);
    paths that leave in between are counted by the formulas for a straight line (Siegmund,
    Sequential Analysis, 1985, section III.3).
    """
    left_above, left_below = np.zeros_like(TIMES), np.zeros_like(TIMES)
    spots, mass = np.zeros(1), np.ones(1)
    time, above, below = 0.0, upper[0], lower[0]
    for step, (until, ceiling, floor) in enumerate(zip(TIMES, upper, lower, strict=True)):
        length = until - time
        left_above[step] = mass @ _meets(above - spots, (ceiling - above) / length - drift, length)
        reach = FAR * until**0.5
        low, high = max(floor, drift * until - reach), min(ceiling, drift * until + reach)
        places = low + (high - low) * (PLACES + 1) / 2
        moved = (places[:, None] - spots - drift * length) / length**0.5
        stays = np.exp(-0.5 * moved**2) / (2 * np.pi * length) ** 0.5
        stays *= -np.expm1(-2 * np.outer(ceiling - places, above - spots) / length)
        if np.isfinite(floor):
            slope = (below - floor) / length + drift
            left_below[step] = mass @ _meets(spots - below, slope, length)
            stays *= -np.expm1(-2 * np.outer(places - floor, spots - below) / length)
        spots, mass = places, (stays @ mass) * WEIGHTS * (high - low) / 2
        time, above, below = until, ceiling, floor
    return np.cumsum(left_above), np.cumsum(left_below)


def _meets(gap: Floats, slope: float, length: float) -> Floats:
    """Chance that a driftless motion meets the line `gap + slope t` within `length`."""
    root = length**0.5
    within = ndtr(-gap / root - slope * root)
    # Far below a falling line the second term is 0 times infinity.
    ways_back = np.exp(np.minimum(-2 * gap * slope, 600.0)) * ndtr(slope * root - gap / root)
    met: Floats = np.minimum(within + ways_back, 1.0)
    return met


SRM_PRIOR = 1_000.0
HARM_PRIOR = 20.0


def kappa(alpha: float) -> float:
    """Mixing constant: with `x = kappa * information / planned`, bounds are tightest at planned.

    Howard et al., arXiv:1810.08240, section 3.5 (their rho is planned / kappa).
    """
    return -2 * log(alpha) + log(1 - 2 * log(alpha))


def multiplier(x: ArrayLike, alpha: float) -> Floats:
    """How many standard errors each side of a two-sided confidence sequence is away.

    Robbins' normal mixture: Waudby-Smith et al., arXiv:2103.06476; Howard et al.,
    arXiv:1810.08240. `x` is `kappa(alpha)` times the share of the planned information that
    is in. All bounds ever read hold together with chance 1 - alpha, asymptotically.
    """
    information = np.asarray(x, np.float64)
    return np.sqrt((1 + 1 / information) * (np.log1p(information) - 2 * log(alpha)))


def planned_multiplier(progress: ArrayLike, alpha: float, *, chance: float) -> Floats:
    """How many standard errors away a bound is that is read as often as one likes until an end.

    `progress` is the share of the planned information that is in; all bounds read up to 1 hold
    together with this chance of a failure on their side, asymptotically. The shape is that of
    `multiplier`, tightest at the end; but as nothing is read after it, the constant is the one
    with which exactly `chance` is spent there, not the one that lasts for ever.
    """
    x = kappa(alpha) * np.asarray(progress, np.float64)
    constant = closing_constant(kappa(alpha), chance)
    return np.sqrt((1 + 1 / x) * (np.log1p(x) + constant))


def mixture_evidence(z: ArrayLike, x: ArrayLike) -> Floats:
    """Log e-value against a mean of at most zero, from `z` standard errors above it; 0 below.

    Robbins' normal mixture, of which `multiplier` is the boundary; asymptotic as that is.
    """
    above, information = np.maximum(z, 0), np.asarray(x, np.float64)
    evidence: Floats = (information * above**2 / (1 + information) - np.log1p(information)) / 2
    return evidence


def allocation_evidence(on_challenger: ArrayLike, events: ArrayLike, *, ceiling: float) -> Floats:
    """Log e-value that events fall on the challenger more often than with chance `ceiling`.

    Exact for any number of events, and at any time, as long as each event is given to the
    challenger with chance at most `ceiling` whatever came before: a likelihood ratio mixed
    over a Beta prior that is cut off below `ceiling`, where each ratio is a supermartingale.
    Same idea as the inhomogeneous Bernoulli process of Lindon and Malek, arXiv:2011.03567.
    """
    hits, total = np.asarray(on_challenger, np.float64), np.asarray(events, np.float64)
    a, b = np.maximum([HARM_PRIOR * ceiling, HARM_PRIOR * (1 - ceiling)], 0.5)
    posterior = _log_upper_beta(a + hits, b + total - hits, ceiling)
    likelihood = hits * log(ceiling) + (total - hits) * log(1 - ceiling)
    evidence: Floats = posterior - _log_upper_beta(a, b, ceiling) - likelihood
    return evidence


def ratio_evidence(counts: ArrayLike, shares: ArrayLike, prior: ArrayLike) -> Floats:
    """Log e-value that units fall on the arms in other shares than planned.

    Dirichlet-multinomial against multinomial: Lindon and Malek, arXiv:2011.03567.
    `counts` has the arms on its last axis; `shares` sum to 1; `prior` is the Dirichlet's.
    """
    seen, theta, a = (np.asarray(value, np.float64) for value in (counts, shares, prior))
    total = seen.sum(axis=-1)
    evidence: Floats = (
        gammaln(a.sum())
        - gammaln(a.sum() + total)
        + (gammaln(a + seen) - gammaln(a) - seen * np.log(theta)).sum(axis=-1)
    )
    return evidence


def _log_upper_beta(a: Floats, b: Floats, low: float) -> Floats:
    """Log of the Beta integral from `low` to 1.

    Where its part of the whole is too thin for a float, `low` lies far above the mode, and the
    integral's series (DLMF 8.17.8) is bounded by a geometric one.
    """
    tail = betaincc(a, b, low)
    is_thin = tail < 1e-290
    whole = betaln(a, b) + np.log(np.where(is_thin, 1.0, tail))
    ratio = np.where(is_thin, (1 - low) * np.maximum((a + b) / (b + 1), 1), 0.0)
    series = a * log(low) + b * log(1 - low) - np.log(b) - np.log1p(-ratio)
    return np.where(is_thin, series, whole)


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
