from itertools import product
from math import comb, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from ville._boundaries import best_rho, normal_mixture

from reactune.canary.sequential import (
    allocation_log_e_value,
    kappa,
    mixture_log_e_value,
    multiplier,
    planned_multiplier,
    ratio_log_e_value,
)

ALPHAS = st.floats(1e-4, 0.3)


def test_the_mixing_constant_is_the_one_of_the_reference_implementation():
    # confseq's uniform_boundaries_unittest.cpp: best_rho(v_opt=100, alpha=.05).
    assert 100 / kappa(0.05) == pytest.approx(12.60056, abs=1e-5)


def test_the_bound_is_the_one_of_the_reference_implementation():
    # confseq: normal_mixture_bound(100, .05, 100, .05, two-sided); the sum's variance is 100.
    assert 10 * multiplier(kappa(0.05), 0.05) == pytest.approx(30.35209, abs=1e-5)


@pytest.mark.parametrize(
    ("part_of_plan", "published"), [(0.1, 3.855), (0.5, 3.084), (1, 3.035), (2, 3.061)]
)
def test_multipliers_are_those_of_the_published_table(part_of_plan, published):
    assert multiplier(part_of_plan * kappa(0.05), 0.05) == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize(
    ("estimate", "error", "people", "planned", "published"),
    [
        (0.50336, 0.33341, 3_000 + 3_461, 1_000, (-0.55844, 1.56516)),
        (0.50386, 0.03386, 3_000 + 3_461, 5_000, (0.40098, 0.60675)),
    ],
)
def test_bounds_are_those_that_growthbook_publishes(estimate, error, people, planned, published):
    # packages/stats/tests/frequentist/test_tests.py: sequential, relative effects.
    half = error * multiplier(kappa(0.05) * people / planned, 0.05)
    assert (estimate - half, estimate + half) == pytest.approx(published, abs=2e-4)


def test_the_mixture_evidence_is_the_one_of_the_reference_implementation():
    # confseq: normal_log_mixture(10, 100, 100, .05, two-sided); a sum of 10 with variance 100.
    assert mixture_log_e_value(1.0, kappa(0.05)) == pytest.approx(-0.6510052, abs=1e-6)


@given(st.floats(0.01, 1e4), ALPHAS)
def test_evidence_reaches_one_over_alpha_where_the_bound_is(x, alpha):
    assert mixture_log_e_value(multiplier(x, alpha), x) == pytest.approx(-log(alpha))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_planned_bounds_are_narrower_than_those_that_last_for_ever(alpha):
    progress = np.linspace(0.01, 1, 100)
    planned = planned_multiplier(progress, alpha, chance=alpha / 2)
    assert np.all(planned < multiplier(kappa(alpha) * progress, alpha))


@given(st.floats(0.1, 1e5), ALPHAS)
def test_bounds_agree_with_another_implementation(information, alpha):
    x = kappa(alpha) * information / 100
    theirs = normal_mixture(information, alpha, 100 / kappa(alpha))
    assert multiplier(x, alpha) * information**0.5 == pytest.approx(float(theirs))


def test_bounds_are_within_a_thousandth_of_the_tightest_where_planned():
    tightest = normal_mixture(100, 0.05, best_rho(100, 0.05))
    assert 10 * multiplier(kappa(0.05), 0.05) == pytest.approx(float(tightest), rel=1e-3)


@given(st.floats(0.01, 100), st.floats(1e-4, 0.1))
def test_a_smaller_alpha_gives_wider_bounds(information, alpha):
    narrow = multiplier(kappa(0.05) * information, 2 * alpha)
    assert multiplier(kappa(0.05) * information, alpha) > narrow


@pytest.mark.parametrize(
    ("counts", "published"),
    [((2, 2, 1), -1.17111898), ((60, 63, 32), -4.18381398)],
)
def test_the_sample_ratio_evidence_is_the_published_one(counts, published):
    # optimizely/ssrm, ssrm_test.py: prior (1, 1, 1), shares (.4, .4, .2).
    assert ratio_log_e_value(counts, (0.4, 0.4, 0.2), (1, 1, 1)) == pytest.approx(
        published, abs=1e-8
    )


def test_the_sample_ratio_evidence_agrees_with_a_third_implementation():
    # savvi with k = 100: counts (9400, 600), shares (.95, .05).
    assert ratio_log_e_value((9400, 600), (0.95, 0.05), (95, 5)) == pytest.approx(
        7.4190848, abs=1e-7
    )


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_sample_ratio_evidence_is_the_product_of_its_one_step_predictions(draws, share):
    prior = 1_000 * np.array([share, 1 - share])
    counts, evidence = np.zeros(2), 0.0
    for draw in draws:
        arm = 0 if draw else 1
        predicted = (prior[arm] + counts[arm]) / (prior.sum() + counts.sum())
        evidence += log(predicted) - log((share, 1 - share)[arm])
        counts[arm] += 1
    assert ratio_log_e_value(counts, (share, 1 - share), prior) == pytest.approx(evidence, abs=1e-6)


@pytest.mark.parametrize("ceiling", [0.05, 0.0616, 0.5, 0.9])
@pytest.mark.parametrize("length", [1, 4, 12])
def test_the_allocation_evidence_is_an_e_value_exactly(ceiling, length):
    hits = np.arange(length + 1)
    evidence = np.exp(allocation_log_e_value(hits, length, ceiling=ceiling))
    ways = np.array([comb(length, int(x)) for x in hits])
    mean = {
        p: np.sum(ways * p**hits * (1 - p) ** (length - hits) * evidence)
        for p in (ceiling / 4, ceiling / 2, ceiling)
    }
    assert mean[ceiling] == pytest.approx(1)
    assert mean[ceiling / 4] < mean[ceiling / 2] < 1


def test_the_allocation_evidence_never_grows_on_average_whatever_came_before():
    ceiling, chance = 0.3, 0.2
    for events, hits in product(range(20), repeat=2):
        if hits > events:
            continue
        now, hit, miss = np.exp(
            allocation_log_e_value(
                [hits, hits + 1, hits], [events, events + 1, events + 1], ceiling=ceiling
            )
        )
        assert chance * hit + (1 - chance) * miss <= now * (1 + 1e-12)


@pytest.mark.parametrize(("hits", "events"), [(0, 10), (3, 10), (12, 30), (40, 400)])
def test_the_allocation_evidence_is_the_integral_it_claims_to_be(hits, events):
    ceiling, a, b = 0.1, 2.0, 18.0

    def prior(chance):
        return chance ** (a - 1) * (1 - chance) ** (b - 1)

    def ratio(chance):
        return (chance / ceiling) ** hits * ((1 - chance) / (1 - ceiling)) ** (events - hits)

    mixed = quad(lambda chance: prior(chance) * ratio(chance), ceiling, 1, epsabs=0)[0]
    whole = quad(prior, ceiling, 1, epsabs=0)[0]
    assert np.exp(allocation_log_e_value(hits, events, ceiling=ceiling)) == pytest.approx(
        mixed / whole
    )


@pytest.mark.parametrize("ceiling", [0.05, 0.1, 0.5])
def test_nothing_is_less_harmful_than_no_hit_among_many(ceiling):
    evidence = allocation_log_e_value(
        np.zeros(7), [0, 10, 100, 1e3, 1e4, 1e5, 1e6], ceiling=ceiling
    )
    assert np.all(np.isfinite(evidence))
    assert np.all(np.diff(evidence) < 0)


def test_where_the_tail_is_too_thin_for_a_float_the_evidence_goes_on_as_before():
    hits, events = 30, np.arange(6_000, 9_000)
    evidence = allocation_log_e_value(np.full(3_000, hits), events, ceiling=0.1)
    steps = np.diff(evidence)
    assert np.all(steps < 0)
    # No jump where one formula takes over from the other; the bound of the series is tight.
    assert np.max(np.abs(np.diff(steps))) < 1e-2
