"""When a Brownian motion leaves its bounds before a planned end: what early looks cost and find.

Time runs from 0 to 1, the planned end, where the motion's variance is 1. What follows for a
rollout is for `bounds.py` and `planning.py`.
"""

from functools import cache
from math import log

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

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
