"""Sequential inference: bounds and e-values that keep their error rate however often they are read.

Arrays in, arrays out, units oldest first on the last axis; functions of the difference also take
many simulated worlds at once, one per row. First the difference between the arms with its bounds,
then e-values for harm and for a sample-ratio mismatch, then the formulas behind both.
`docs/statistics.md` explains them.
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

# Parts of alpha, the chance of a false verdict. A promotion takes longest to prove and gets most.
PROMOTION, WORSE, HARM = 0.6, 0.2, 0.2
# The futility line at the start and at the planned end, in parts of what promotes at that end.
FUTILITY_START, FUTILITY_END = -0.33, 0.7
# Strength of the priors of the e-values, in units.
SRM_PRIOR, HARM_PRIOR = 1_000.0, 20.0

# Times at which a boundary is evaluated: denser early, as boundaries change with log time.
START, RATIO = 1e-3, 1.15
TIMES: Floats = np.append(START * RATIO ** np.arange(int(log(1 / START) / log(RATIO)) + 1), 1.0)
NODES, WEIGHTS = leggauss(64)
REACH = 7.0  # standard deviations beyond which the density counts as zero


@dataclass(frozen=True)
class Difference:
    """Challenger minus champion in positives per tip after each unit, with its standard error.

    `variance` is that of the sum behind the estimate; it only grows. `weight` is the running sum
    of p (1 - p), the information in a unit's share p. All have the shape of the units.
    """

    estimate: Floats
    error: Floats
    variance: Floats
    weight: Floats


@dataclass(frozen=True)
class Effect:
    """The difference with bounds that hold together at all readings until the planned end.

    `low` and `high` are the tightest so far: infinite before the end of the burn-in, constant
    once `progress` (the share of the planned information) has reached 1. `is_futile` marks where a
    promotion has become too unlikely.
    """

    estimate: Floats
    low: Floats
    high: Floats
    progress: Floats
    is_ready: Booleans
    is_futile: Booleans


def adjusted_differences(
    tips: Counts,
    positives: Counts,
    challenger: Booleans,
    share: Floats,
    *,
    earlier_tips: Counts,
    earlier_positives: Counts,
    settings: CanaryConfig,
) -> tuple[Difference, Booleans]:
    """`differences` with each user's own past as covariate, and where the burn-in is over."""
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


def expected_rates(
    tips: Counts,
    positives: Counts,
    *,
    earlier_tips: Counts,
    earlier_positives: Counts,
    own_weight: float,
) -> Floats:
    """The covariate: each unit's expected rate, its user's own so far, shrunk to that of all.

    `earlier_...` counts what the user was shown before this unit; `own_weight` is the number of
    average tips that the user's own are weighed against. CUPED with a coefficient of 1 on a
    shrunk score (Deng, Xu, Kohavi and Walker, 2013). Uses nothing of the unit itself or later.
    """
    before = np.cumsum(positives, axis=-1) - positives + 1
    rate = before / (np.cumsum(tips, axis=-1) - tips + 2)
    expected: Floats = (earlier_positives + own_weight * rate) / (earlier_tips + own_weight)
    return expected


def is_burnt_in(
    tips: Counts, positives: Counts, challenger: Booleans, *, min_positives: int, min_negatives: int
) -> Booleans:
    """Where the smaller arm has enough units with a positive, and enough with a non-positive.

    Asymptotic bounds need both. An arm that lacks them counts with the other arm's rate, so that
    a challenger without any positive is decided on as well.
    """
    enough = np.ones(tips.shape, np.bool_)
    units = [np.cumsum(arm, axis=-1) for arm in (challenger, ~challenger)]
    smaller = np.minimum(*units)
    for has_one, least in ((positives > 0, min_positives), (positives < tips, min_negatives)):
        rates = [
            np.cumsum(has_one & arm, axis=-1) / np.maximum(count, 1)
            for arm, count in zip((challenger, ~challenger), units, strict=True)
        ]
        enough &= smaller * np.maximum(*rates) >= least - 1e-9
    return enough


def differences(
    tips: Counts, positives: Counts, challenger: Booleans, share: Floats, *, expected: Floats
) -> Difference:
    """The estimate after each unit and its standard error.

    Design-based (Ham et al., arXiv:2210.08639): only the assignment of a unit to its arm is
    random, so drift, differences between users and changing shares do no harm. A unit with
    chance p of the challenger adds `(positives - tips * expected) * (A - p)`; that is its
    inverse-propensity difference times p (1 - p), the weight that keeps rare challenger units
    from dominating the variance.
    """
    assigned, weight = challenger - share, share * (1 - share)
    residual = positives - tips * expected
    size = weight * tips
    total = np.cumsum(size, axis=-1)
    estimate = np.cumsum(residual * assigned, axis=-1) / total
    # The observed variance is too small while few units are on the challenger; the one over all
    # assignments that were possible, with the estimate as everybody's effect, is not.
    observed = _sum_of_squares(residual * assigned, size, estimate)
    scale = np.sqrt(weight)
    possible = _sum_of_squares(
        scale * residual, scale * tips * (assigned - 1 + 2 * share), estimate
    )
    variance = np.maximum(observed, possible)
    return Difference(
        estimate=estimate,
        error=np.sqrt(variance) / total,
        variance=np.maximum.accumulate(variance, axis=-1),
        weight=np.cumsum(weight, axis=-1),
    )


def effect(
    difference: Difference,
    is_ready: Booleans,
    *,
    alpha: float,
    planned: float,
    margin: float = 0.0,
) -> Effect:
    """Bounds for a rollout that ends with `planned` weight (the sum of p (1 - p) over units).

    Over all readings together the low bound fails with chance PROMOTION * alpha, the high one with
    WORSE * alpha. The variance at the planned end is extrapolated once, when the burn-in is over:
    the bounds hold however the variance goes on, only the end comes sooner or later.
    """
    progress = _progress(difference, is_ready, planned)
    is_open = is_ready & ~_after(progress >= 1)
    read_at = np.maximum(progress, 1e-9)
    below = difference.error * planned_multiplier(read_at, alpha, chance=PROMOTION * alpha)
    above = difference.error * planned_multiplier(read_at, alpha, chance=WORSE * alpha)
    low = np.where(is_open, difference.estimate - below, -np.inf)
    high = np.where(is_open, difference.estimate + above, np.inf)
    return Effect(
        estimate=difference.estimate,
        low=np.maximum.accumulate(low, axis=-1),
        high=np.minimum.accumulate(high, axis=-1),
        progress=progress,
        is_ready=is_ready,
        is_futile=is_ready & _is_futile(difference, progress, alpha=alpha, margin=margin),
    )


def futility_line(progress: Floats, alpha: float) -> Floats:
    """The futility boundary on the scale of `crossings`: below it a rollout is given up."""
    goal = planned_multiplier(1.0, alpha, chance=PROMOTION * alpha)
    line: Floats = goal * (FUTILITY_START + (FUTILITY_END - FUTILITY_START) * progress)
    return line


def shortfall_log_e_values(
    difference: Difference, is_ready: Booleans, *, alpha: float, planned: float, margin: float
) -> Floats:
    """Largest log e-value so far that the challenger's rate is lower by more than `margin`.

    Asymptotic, as the bounds are: 0 until the burn-in is over.
    """
    x = kappa(alpha) * difference.weight / planned
    z = _ratio(-difference.estimate - margin, difference.error)
    steps = np.where(is_ready, mixture_log_e_value(z, x), 0)
    largest: Floats = np.maximum.accumulate(np.maximum(steps, 0), axis=-1)
    return largest


def harm_log_e_values(
    event: Booleans, challenger: Booleans, share: Floats, *, margin: float
) -> Floats:
    """Largest log e-value so far that events are more than (1 + margin) times as frequent.

    One event per unit at most: all events of a unit fall on the same arm, so they are one draw.
    Each share is a process of its own, and their e-values are multiplied.
    """
    steps = np.zeros(share.shape)
    for p in np.unique(share):
        here = event & (share == p)
        ceiling = p * (1 + margin) / (p * (1 + margin) + 1 - p)
        steps[here] = _allocation_steps(challenger[here], ceiling=float(ceiling))
    return _largest_so_far(steps)


def excess_log_e_values(event: Booleans, among: Booleans, *, limit: float) -> Floats:
    """Largest log e-value so far that more than `limit` of the units in `among` had an event."""
    steps = np.zeros(event.shape)
    steps[among] = _allocation_steps(event[among], ceiling=limit)
    return _largest_so_far(steps)


def mismatch_log_e_values(challenger: Booleans, share: Floats) -> Floats:
    """Largest log e-value so far of a sample-ratio mismatch: arms in other shares than routed."""
    steps = np.zeros(share.shape)
    for p in np.unique(share):
        here = share == p
        hits = np.cumsum(challenger[here])
        counts = np.stack([hits, np.arange(1, len(hits) + 1) - hits], axis=-1)
        shares = np.array([p, 1 - p])
        steps[here] = np.diff(ratio_log_e_value(counts, shares, SRM_PRIOR * shares), prepend=0)
    return _largest_so_far(steps)


def kappa(alpha: float) -> float:
    """Mixing constant: with `x = kappa * information / planned`, bounds are tightest at planned.

    Howard et al., arXiv:1810.08240, section 3.5 (their rho is planned / kappa).
    """
    return -2 * log(alpha) + log(1 - 2 * log(alpha))


def multiplier(x: ArrayLike, alpha: float) -> Floats:
    """Half width of a two-sided confidence sequence, in standard errors.

    Robbins' normal mixture: Waudby-Smith et al., arXiv:2103.06476; Howard et al.,
    arXiv:1810.08240. `x` is `kappa(alpha)` times the share of the planned information that
    is in. The bounds at all times hold together with chance 1 - alpha, asymptotically.
    """
    information = np.asarray(x, np.float64)
    return np.sqrt((1 + 1 / information) * (np.log1p(information) - 2 * log(alpha)))


def planned_multiplier(progress: ArrayLike, alpha: float, *, chance: float) -> Floats:
    """Distance of a one-sided bound, in standard errors, for any number of readings until an end.

    `progress` is the share of the planned information that is in; the bounds at all times up to 1
    fail together with this chance, asymptotically. The shape is that of `multiplier`, tightest at
    the end, with the smaller constant that spends exactly `chance` by the end.
    """
    x = kappa(alpha) * np.asarray(progress, np.float64)
    return np.sqrt((1 + 1 / x) * (np.log1p(x) + boundary_constant(kappa(alpha), chance)))


def mixture_log_e_value(z: ArrayLike, x: ArrayLike) -> Floats:
    """Log e-value against a mean of at most zero, at `z` standard errors above it.

    One-sided: a negative `z` counts as 0. Robbins' normal mixture, of which `multiplier` is the
    boundary; asymptotic as that is.
    """
    above, information = np.maximum(z, 0), np.asarray(x, np.float64)
    log_e: Floats = (information * above**2 / (1 + information) - np.log1p(information)) / 2
    return log_e


def allocation_log_e_value(
    on_challenger: ArrayLike, events: ArrayLike, *, ceiling: float
) -> Floats:
    """Log e-value that events fall on the challenger more often than with chance `ceiling`.

    Exact for any number of events, and at any time, as long as each event falls on the
    challenger with chance at most `ceiling` given the past: a likelihood ratio mixed over a Beta
    prior that is cut off below `ceiling`, where each ratio is a supermartingale.
    Same idea as the inhomogeneous Bernoulli process of Lindon and Malek, arXiv:2011.03567.
    """
    hits, total = np.asarray(on_challenger, np.float64), np.asarray(events, np.float64)
    a, b = np.maximum([HARM_PRIOR * ceiling, HARM_PRIOR * (1 - ceiling)], 0.5)
    posterior = _log_upper_beta(a + hits, b + total - hits, ceiling)
    likelihood = hits * log(ceiling) + (total - hits) * log(1 - ceiling)
    log_e: Floats = posterior - _log_upper_beta(a, b, ceiling) - likelihood
    return log_e


def ratio_log_e_value(counts: ArrayLike, shares: ArrayLike, prior: ArrayLike) -> Floats:
    """Log e-value that units fall on the arms in other shares than planned.

    Dirichlet-multinomial against multinomial: Lindon and Malek, arXiv:2011.03567.
    `counts` has the arms on its last axis; `shares` sum to 1; `prior` is the Dirichlet's.
    """
    n, theta, a = (np.asarray(value, np.float64) for value in (counts, shares, prior))
    total = n.sum(axis=-1)
    log_e: Floats = (
        gammaln(a.sum())
        - gammaln(a.sum() + total)
        + (gammaln(a + n) - gammaln(a) - n * np.log(theta)).sum(axis=-1)
    )
    return log_e


@cache
def boundary_constant(rate: float, chance: float) -> float:
    """The constant `c` with which a boundary is crossed by time 1 with this chance.

    The boundary is `sqrt(t (1 + 1/x) (ln(1 + x) + c))` with `x = rate t`. One that holds without an
    end has `c = -2 ln(2 chance)`.
    """
    x = rate * TIMES
    scale, growth = TIMES * (1 + 1 / x), np.log1p(x)
    no_floor = np.full_like(TIMES, -np.inf)

    def excess(constant: float) -> float:
        above, _ = crossings(np.sqrt(scale * (growth + constant)), no_floor, drift=0.0)
        return float(above[-1]) - chance

    return float(brentq(excess, 0.0, -2 * log(2 * chance) + 1, xtol=1e-4))


def crossings(upper: Floats, lower: Floats, *, drift: float) -> tuple[Floats, Floats]:
    """Chance that a Brownian motion has crossed `upper` first, and `lower` first, by each of TIMES.

    The boundaries are given at TIMES and straight in between; `lower` may be infinite. The density
    of the paths still inside is carried from time to time (Armitage, McPherson and Rowe, 1969);
    crossings in between follow the formulas for a straight line (Siegmund, Sequential Analysis,
    1985, section III.3).
    """
    crossed_above, crossed_below = np.zeros_like(TIMES), np.zeros_like(TIMES)
    places, mass = np.zeros(1), np.ones(1)
    time, above, below = 0.0, upper[0], lower[0]
    for step, (until, ceiling, floor) in enumerate(zip(TIMES, upper, lower, strict=True)):
        length = until - time
        slope = (ceiling - above) / length - drift
        crossed_above[step] = mass @ _crosses_line(above - places, slope, length)
        reach = REACH * until**0.5
        low, high = max(floor, drift * until - reach), min(ceiling, drift * until + reach)
        targets = low + (high - low) * (NODES + 1) / 2
        moved = (targets[:, None] - places - drift * length) / length**0.5
        density = np.exp(-0.5 * moved**2) / (2 * np.pi * length) ** 0.5
        density *= -np.expm1(-2 * np.outer(ceiling - targets, above - places) / length)
        if np.isfinite(floor):
            slope = (below - floor) / length + drift
            crossed_below[step] = mass @ _crosses_line(places - below, slope, length)
            density *= -np.expm1(-2 * np.outer(targets - floor, places - below) / length)
        places, mass = targets, (density @ mass) * WEIGHTS * (high - low) / 2
        time, above, below = until, ceiling, floor
    return np.cumsum(crossed_above), np.cumsum(crossed_below)


def _crosses_line(gap: Floats, slope: float, length: float) -> Floats:
    """Chance that a driftless motion meets the line `gap + slope t` within `length`."""
    root = length**0.5
    beyond = ndtr(-gap / root - slope * root)
    # Far below a falling line the second term is 0 times infinity.
    returned = np.exp(np.minimum(-2 * gap * slope, 600.0)) * ndtr(slope * root - gap / root)
    crossed: Floats = np.minimum(beyond + returned, 1.0)
    return crossed


def _progress(difference: Difference, is_ready: Booleans, planned: float) -> Floats:
    """Share of the planned variance after each unit; by weight alone before the burn-in is over."""
    first = np.argmax(is_ready, axis=-1)[..., None]
    weight = np.take_along_axis(difference.weight, first, axis=-1)
    variance = np.take_along_axis(difference.variance, first, axis=-1)
    # A burn-in that is longer than the plan leaves one reading, at its end.
    end = np.maximum(planned, weight)
    is_over = np.logical_or.accumulate(is_ready, axis=-1) & (variance > 0)
    spent = np.array(np.broadcast_to(difference.weight / end, difference.weight.shape))
    np.divide(difference.variance * weight, variance * end, out=spent, where=is_over)
    return np.minimum(spent, 1)


def _after(reached: Booleans) -> Booleans:
    """True behind the first place where it was reached."""
    so_far = np.logical_or.accumulate(reached, axis=-1)
    behind: NDArray[np.bool_] = np.zeros_like(so_far)
    behind[..., 1:] = so_far[..., :-1]
    return behind


def _is_futile(
    difference: Difference, progress: Floats, *, alpha: float, margin: float
) -> Booleans:
    """Where the sum lies below the futility line."""
    z = _ratio(difference.estimate + margin, difference.error)
    below: NDArray[np.bool_] = z * np.sqrt(progress) < futility_line(progress, alpha)
    return below


def _ratio(values: Floats, errors: Floats) -> Floats:
    """Values in standard errors; 0 where the error is 0."""
    return np.divide(values, errors, out=np.zeros_like(errors), where=errors > 0)


def _sum_of_squares(values: Floats, slopes: Floats, slope: Floats) -> Floats:
    """Running sum of `(values - slope * slopes)**2`, with the slope known at each point."""
    squares = np.cumsum(values**2, axis=-1)
    products = np.cumsum(values * slopes, axis=-1)
    total: Floats = squares - 2 * slope * products + slope**2 * np.cumsum(slopes**2, axis=-1)
    return np.maximum(total, 0)


def _allocation_steps(hit: Booleans, *, ceiling: float) -> Floats:
    """By how much each event changes the log e-value of the allocation."""
    events = np.arange(1, len(hit) + 1)
    return np.diff(allocation_log_e_value(np.cumsum(hit), events, ceiling=ceiling), prepend=0)


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


def _largest_so_far(steps: Floats) -> Floats:
    """The running maximum of an e-process, which has the same guarantee by Ville's inequality."""
    largest: Floats = np.maximum.accumulate(np.cumsum(steps))
    return np.maximum(largest, 0)
