"""When a Brownian motion leaves its bounds: closed formulas and simulation as second sources."""

from math import erfc, exp, log, pi

import numpy as np
import pytest
from scipy.stats import norm

from reactune.canary.sequential import (
    TIMES,
    boundary_constant,
    crossings,
    kappa,
    planned_multiplier,
)

NOTHING = np.full_like(TIMES, -np.inf)


@pytest.mark.parametrize("level", [1.0, 2.2414, 3.0])
def test_a_level_is_reached_as_the_reflection_principle_says(level):
    above, _ = crossings(np.full_like(TIMES, level), NOTHING, drift=0.0)
    wanted = [erfc(level / (2 * t) ** 0.5) for t in TIMES]
    assert above == pytest.approx(np.array(wanted), abs=1e-6)


@pytest.mark.parametrize(
    ("start", "slope", "drift"), [(1.4, 1.0, 2.9), (0.9, 1.6, 0.0), (2, -1, 0)]
)
def test_a_line_is_crossed_as_the_formula_of_bachelier_and_levy_says(start, slope, drift):
    above, _ = crossings(start + slope * TIMES, NOTHING, drift=drift)
    rest = slope - drift
    wanted = norm.sf(start + rest) + exp(-2 * start * rest) * norm.cdf(rest - start)
    assert above[-1] == pytest.approx(wanted, abs=1e-6)


def test_a_strip_is_left_as_the_heat_equation_says():
    width = 1.3
    above, below = crossings(np.full_like(TIMES, width), np.full_like(TIMES, -width), drift=0.0)
    inside = sum(
        4 / (pi * (2 * k + 1)) * (-1) ** k * exp(-((2 * k + 1) ** 2) * pi**2 / (8 * width**2))
        for k in range(20)
    )
    assert above[-1] + below[-1] == pytest.approx(1 - inside, abs=2e-3)
    assert above == pytest.approx(below, abs=1e-9)


def test_with_drift_one_side_is_left_more_often_by_the_ratio_of_the_likelihoods():
    # At a level the likelihood ratio of drift m is exp(2 m level) between both sides.
    width, drift = 0.8, 0.5
    above, below = crossings(np.full_like(TIMES, width), np.full_like(TIMES, -width), drift=drift)
    assert above[-1] / below[-1] == pytest.approx(exp(2 * drift * width), rel=2e-3)


@pytest.mark.parametrize("chance", [0.025, 0.0125])
def test_the_planned_bounds_are_crossed_with_the_promised_chance(chance):
    rng = np.random.default_rng(1)
    times = np.geomspace(1e-3, 1, 150)
    steps = np.diff(times, prepend=0)
    paths = np.cumsum(rng.standard_normal((40_000, 150)) * np.sqrt(steps), axis=1)
    bound = planned_multiplier(times, 0.05, chance=chance) * np.sqrt(times)
    gap = np.maximum(bound - paths, 0)
    # A bridge between two looks exceeds the line between the bounds with this chance.
    between = np.exp(-2 * gap[:, 1:] * gap[:, :-1] / steps[1:])
    crossed = (gap == 0).any(axis=1) | (rng.random(between.shape) < between).any(axis=1)
    assert crossed.mean() == pytest.approx(chance, abs=4 * (chance / 40_000) ** 0.5)


def test_bounds_that_need_not_last_for_ever_are_narrower():
    rate = kappa(0.05)
    constant = boundary_constant(rate, 0.025)
    assert 0 < constant < -2 * log(0.05)
    shape = np.sqrt(TIMES * (1 + 1 / (rate * TIMES)) * (np.log1p(rate * TIMES) - 2 * log(0.05)))
    above, _ = crossings(shape, NOTHING, drift=0.0)
    assert above[-1] < 0.025
