"""Bounds and e-values against published values, other libraries, enumeration and simulation."""

from dataclasses import replace
from itertools import product
from math import comb, erfc, exp, log, pi

import numpy as np
import pyarrow as pa
import pytest
import statsmodels.api as sm
import tea_tasting as tt
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta, chisquare, norm
from ville._boundaries import best_rho, normal_mixture

from canary_fixtures import draw_worlds, effect_of, one_world
from reactune.canary.outcomes import earlier_by_user
from reactune.canary.sequential import (
    TIMES,
    allocation_log_e_value,
    boundary_constant,
    crossings,
    differences,
    excess_log_e_values,
    expected_rates,
    harm_log_e_values,
    is_burnt_in,
    kappa,
    mismatch_log_e_values,
    mixture_log_e_value,
    multiplier,
    planned_multiplier,
    ratio_log_e_value,
)

ALPHAS = st.floats(1e-4, 0.3)
NO_FLOOR = np.full_like(TIMES, -np.inf)
RAMP = np.repeat([0.05, 0.1, 0.25, 0.5], [400, 400, 400, 2_800])


def clopper_pearson_low(hits, trials, confidence=0.99):
    return beta.ppf(1 - confidence, hits, trials - hits + 1) if hits else 0.0


def verdicts_on_the_way(worlds, share, *, alpha=0.05, planned):
    """How many worlds are ever promoted, and ever found worse, when read after each unit."""
    challenger, tips, positives = worlds
    seen = effect_of(tips, positives, challenger, share, alpha=alpha, planned_units=planned)
    return int((seen.low[:, -1] > 0).sum()), int((seen.high[:, -1] < 0).sum())


def whole_plan(share):
    """Planned units with which a rollout of these shares ends at its last unit."""
    weight = share * (1 - share)
    return np.sum(weight) / weight[0]


@pytest.mark.parametrize("shares", [(0.05,) * 7, (0.05, 0.05, 0.1, 0.1, 0.25, 0.5, 0.5)])
def test_over_all_assignments_the_estimate_is_unbiased_exactly(shares):
    share = np.array(shares)
    tips = np.array([1, 3, 2, 1, 4, 2, 5])
    liked = {True: np.array([1, 0, 2, 0, 3, 1, 5]), False: np.array([0, 2, 1, 1, 1, 0, 4])}
    weight = share * (1 - share)
    truth = np.sum(weight * (liked[True] - liked[False])) / np.sum(weight * tips)
    mean = 0.0
    for assignment in product([False, True], repeat=7):
        arm = np.array(assignment)
        chance = np.prod(np.where(arm, share, 1 - share))
        positives = np.where(arm, liked[True], liked[False])
        seen = effect_of(tips, positives, arm, share, planned_units=100)
        mean += chance * seen.estimate[-1]
    assert mean == pytest.approx(truth, abs=1e-12)


def test_standard_errors_are_those_of_a_clustered_regression():
    world = one_world(2, 20_000, share=0.3, rate=0.3, effect=0.05, tips=4, icc=0.3)
    rate = world.positives.sum() / world.tips.sum()
    found = differences(
        world.tips, world.positives, world.challenger, world.share, expected=np.full(20_000, rate)
    )
    unit = np.repeat(np.arange(20_000), world.tips)
    order = np.arange(len(unit)) - np.repeat(np.cumsum(world.tips) - world.tips, world.tips)
    reaction = (order < world.positives[unit]).astype(float)
    fit = sm.OLS(reaction, sm.add_constant(world.challenger[unit].astype(float))).fit(
        cov_type="cluster", cov_kwds={"groups": unit, "use_correction": False}
    )
    assert found.error[-1] == pytest.approx(fit.bse[1], rel=0.03)
    assert found.estimate[-1] == pytest.approx(fit.params[1], abs=0.5 * fit.bse[1])


@pytest.mark.parametrize(
    ("liked_on_challenger", "larger"), [([0, 0], "possible"), ([0, 3], "observed")]
)
def test_standard_errors_use_the_larger_of_the_observed_and_the_possible_variance(
    liked_on_challenger, larger
):
    share = np.repeat([0.1, 0.2], 100)
    challenger = np.arange(200) % 10 == 0
    tips = np.full(200, 3)
    positives = np.where(
        challenger, np.resize(np.repeat(liked_on_challenger, 10), 200), np.arange(200) % 3
    )
    rate = np.linspace(0.2, 0.4, 200)
    found = differences(tips, positives, challenger, share, expected=rate)
    variance = {"observed": 0.0, "possible": 0.0}
    for n, liked, m, arm, p in zip(tips, positives, rate, challenger, share, strict=True):
        score = (liked - n * m) * (arm - p)
        variance["observed"] += (score - found.estimate[-1] * n * p * (1 - p)) ** 2
        variance["possible"] += (
            p * (1 - p) * (liked - n * m - found.estimate[-1] * n * (arm - 1 + p)) ** 2
        )
    assert max(variance, key=variance.get) == larger
    size = np.sum(tips * share * (1 - share))
    assert found.error[-1] == pytest.approx(variance[larger] ** 0.5 / size)
    assert found.weight[-1] == pytest.approx(np.sum(share * (1 - share)))


def test_swapping_the_arms_swaps_the_sign_and_nothing_else():
    world = one_world(3, 1_500, share=0.4, rate=0.3, effect=0.05, tips=2)
    swapped = replace(world, challenger=~world.challenger, share=1 - world.share)
    one, other = (
        differences(w.tips, w.positives, w.challenger, w.share, expected=np.full(1_500, 0.3))
        for w in (world, swapped)
    )
    assert other.estimate == pytest.approx(-one.estimate)
    assert other.error == pytest.approx(one.error)
    assert other.variance == pytest.approx(one.variance)


def test_drift_and_ramp_leave_no_bias_on_average():
    rng = np.random.default_rng(6)
    rate = np.linspace(0.6, 0.2, len(RAMP))
    challenger, tips, positives = draw_worlds(
        rng, 300, len(RAMP), share=RAMP, rate=rate, effect=0.1
    )
    ends = effect_of(tips, positives, challenger, RAMP, planned_units=5_000).estimate[:, -1]
    assert ends.mean() == pytest.approx(0.1, abs=4 * ends.std() / len(ends) ** 0.5)


def test_reading_after_every_tip_rarely_gives_a_false_verdict():
    rng = np.random.default_rng(7)
    worlds = draw_worlds(rng, 300, 4_000, share=0.05, rate=0.3)
    promoted, rolled_back = verdicts_on_the_way(worlds, 0.05, planned=4_000)
    assert clopper_pearson_low(promoted, 300) <= 0.03
    assert clopper_pearson_low(rolled_back, 300) <= 0.01


@pytest.mark.parametrize("trend", [0.0, 0.2])
def test_a_ramp_over_days_of_several_tips_rarely_gives_a_false_verdict(trend):
    rng = np.random.default_rng(8)
    rate = 0.35 + trend * np.linspace(-1, 1, len(RAMP))
    worlds = draw_worlds(rng, 300, len(RAMP), share=RAMP, rate=rate, tips=4, icc=0.33)
    promoted, rolled_back = verdicts_on_the_way(worlds, RAMP, planned=whole_plan(RAMP))
    assert clopper_pearson_low(promoted, 300) <= 0.03
    assert clopper_pearson_low(rolled_back, 300) <= 0.01


def test_reading_incomplete_days_rarely_gives_a_false_verdict():
    rng = np.random.default_rng(29)
    days, per_day = 6, 250
    units = days * per_day
    promoted = rolled_back = 0
    for _ in range(120):
        arm, tips, positives = (
            each[0] for each in draw_worlds(rng, 1, units, share=0.1, rate=0.3, tips=6, icc=0.33)
        )
        unit = np.repeat(np.arange(units), tips)
        at = unit // per_day + rng.random(len(unit))
        liked = np.arange(len(unit)) - np.repeat(np.cumsum(tips) - tips, tips) < positives[unit]
        in_time = np.argsort(at)
        lows, highs = [], []
        for time in np.arange(0.5, days + 0.1, 0.25):
            seen = in_time[at[in_time] <= time]
            _, first = np.unique(unit[seen], return_index=True)
            order = unit[seen][np.sort(first)]
            so_far = np.bincount(unit[seen], minlength=units)[order]
            good = np.bincount(unit[seen], weights=liked[seen], minlength=units)[order]
            found = effect_of(so_far, good, arm[order], 0.1, planned_units=units)
            lows.append(found.low[-1] > 0)
            highs.append(found.high[-1] < 0)
        promoted += any(lows)
        rolled_back += any(highs)
    assert clopper_pearson_low(promoted, 120) <= 0.03
    assert clopper_pearson_low(rolled_back, 120) <= 0.01


def test_a_z_test_read_as_often_gives_many_false_verdicts():
    rng = np.random.default_rng(7)
    challenger, _, positives = draw_worlds(rng, 300, 4_000, share=0.05, rate=0.3)
    alarms = 0
    for arm, liked in zip(challenger, positives, strict=True):
        looks = np.arange(400, 4_001, 200) - 1
        n1, n0 = np.cumsum(arm)[looks], np.cumsum(~arm)[looks]
        r1, r0 = np.cumsum(liked * arm)[looks] / n1, np.cumsum(liked * ~arm)[looks] / n0
        se = np.sqrt(r1 * (1 - r1) / n1 + r0 * (1 - r0) / n0)
        alarms += bool(np.any(np.abs(r1 - r0) > norm.ppf(0.975) * se))
    assert clopper_pearson_low(alarms, 300) > 0.05


def test_rare_positives_do_not_let_the_bounds_decide_too_early():
    rng = np.random.default_rng(9)
    worlds = draw_worlds(rng, 300, 8_000, share=0.2, rate=0.02)
    promoted, rolled_back = verdicts_on_the_way(worlds, 0.2, planned=8_000)
    assert clopper_pearson_low(promoted, 300) <= 0.03
    assert clopper_pearson_low(rolled_back, 300) <= 0.01


def test_the_harm_alarm_is_rarely_false_at_the_margin():
    rng = np.random.default_rng(10)
    alarms = 0
    for _ in range(300):
        challenger = rng.random(len(RAMP)) < RAMP
        event = rng.random(len(RAMP)) < np.where(challenger, 0.25, 0.2)
        alarms += harm_log_e_values(event, challenger, RAMP, margin=0.25)[-1] >= log(20)
    assert clopper_pearson_low(alarms, 300) <= 0.05


def test_the_sample_ratio_alarm_is_rarely_false_on_a_ramp():
    rng = np.random.default_rng(11)
    alarms = sum(
        mismatch_log_e_values(rng.random(len(RAMP)) < RAMP, RAMP)[-1] >= log(20) for _ in range(300)
    )
    assert clopper_pearson_low(alarms, 300) <= 0.05


def test_most_worlds_with_the_planned_lift_are_promoted():
    rng = np.random.default_rng(13)
    better = draw_worlds(rng, 200, 5_000, share=0.25, rate=0.3, effect=0.06)
    promoted, rolled_back = verdicts_on_the_way(better, 0.25, planned=5_000)
    assert promoted >= 160
    assert rolled_back <= 5


def test_e_values_of_different_shares_are_multiplied():
    share, everyone = np.repeat([0.1, 0.5], 30), np.ones(60, bool)
    both = harm_log_e_values(everyone, everyone, share, margin=0.25)[-1]
    alone = [harm_log_e_values(everyone[:30], everyone[:30], np.full(30, p), margin=0.25)[-1]
             for p in (0.1, 0.5)]  # fmt: skip
    assert both == pytest.approx(sum(alone))
    both = mismatch_log_e_values(everyone, share)[-1]
    alone = [mismatch_log_e_values(everyone[:30], np.full(30, p))[-1] for p in (0.1, 0.5)]
    assert both == pytest.approx(sum(alone))


def test_a_tenth_of_lost_exposures_is_detected_where_a_chi_square_detects_it():
    rng = np.random.default_rng(18)
    challenger = rng.random(20_000) < 0.5
    kept = ~(challenger & (rng.random(20_000) < 0.1))
    arm = challenger[kept]
    assert chisquare([arm.sum(), (~arm).sum()]).pvalue < 0.001
    assert mismatch_log_e_values(arm, np.full(len(arm), 0.5))[-1] >= log(1_000)


def test_log_e_values_never_fall():
    rng = np.random.default_rng(19)
    arm = rng.random(5_000) < np.repeat([0.6, 0.45], 2_500)
    log_e = mismatch_log_e_values(arm, np.full(5_000, 0.5))
    assert np.all(np.diff(log_e) >= 0)


def world_of_users(seed, *, units=6_000, users=300, share=0.3, effect=0.0):
    """Users with lasting preferences: arms, tips, positives, and each user's past."""
    rng = np.random.default_rng(seed)
    preference = rng.beta(0.9, 2.1, users)
    user = rng.integers(0, users, units)
    arm = rng.random(units) < share
    tips = 1 + rng.poisson(2, units)
    positives = rng.binomial(tips, np.clip(preference[user] + effect * arm, 0, 1))
    seen = rng.integers(5, 40, users)
    liked = rng.binomial(seen, preference)
    earlier = earlier_by_user(
        user.tolist(),
        tips,
        positives,
        before={n: (int(seen[n]), int(liked[n])) for n in range(users)},
    )
    return arm, tips, positives, earlier


def covariate_of(tips, positives, earlier):
    return expected_rates(
        tips, positives, earlier_tips=earlier[0], earlier_positives=earlier[1], own_weight=3.0
    )


def test_the_covariate_reduces_the_variance_as_much_as_cuped():
    arm, tips, positives, earlier = world_of_users(31, effect=0.05)
    expected = covariate_of(tips, positives, earlier)
    share = np.full(len(tips), 0.3)
    ours = differences(tips, positives, arm, share, expected=expected)
    plain = differences(
        tips, positives, arm, share, expected=np.full(len(tips), positives.sum() / tips.sum())
    )
    table = pa.table(
        {"variant": arm.astype(int), "n": tips, "s": positives, "m": tips * expected, "n2": tips}
    )
    found = tt.Experiment(
        plain=tt.RatioOfMeans("s", "n"), cuped=tt.RatioOfMeans("s", "n", "m", "n2")
    ).analyze(table)
    for mine, theirs in ((plain, found["plain"]), (ours, found["cuped"])):
        half = (theirs.effect_size_ci_upper - theirs.effect_size_ci_lower) / 2
        error = half / norm.ppf(0.975)
        assert mine.error[-1] == pytest.approx(error, rel=0.03)
        assert mine.estimate[-1] == pytest.approx(theirs.effect_size, abs=0.5 * error)
    assert ours.error[-1] < 0.75 * plain.error[-1]


def test_the_covariate_of_a_unit_uses_nothing_of_it_or_of_later_ones():
    _, tips, positives, earlier = world_of_users(32, units=50)
    before = covariate_of(tips, positives, earlier)
    changed = positives.copy()
    changed[30:] = 0
    assert covariate_of(tips, changed, earlier)[:31] == pytest.approx(before[:31])
    assert covariate_of(tips, changed, earlier)[31:] != pytest.approx(before[31:])


@pytest.mark.parametrize("trend", [np.linspace(1, 9, 3_000), np.linspace(9, 1, 3_000)])
def test_a_trend_in_tips_per_unit_rarely_gives_a_false_verdict(trend):
    # The end is reckoned from the variance at first; it comes sooner or later than planned.
    rng = np.random.default_rng(39)
    worlds, units = 200, 3_000
    tips = np.maximum(rng.poisson(trend, (worlds, units)), 1)
    person = rng.beta(0.6, 1.4, (worlds, units))
    positives = rng.binomial(tips, person)
    challenger = rng.random((worlds, units)) < 0.3
    promoted, worse = verdicts_on_the_way((challenger, tips, positives), 0.3, planned=units)
    assert clopper_pearson_low(promoted, worlds) <= 0.03
    assert clopper_pearson_low(worse, worlds) <= 0.01


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
    ("estimate", "error", "users", "planned", "published"),
    [
        (0.50336, 0.33341, 3_000 + 3_461, 1_000, (-0.55844, 1.56516)),
        (0.50386, 0.03386, 3_000 + 3_461, 5_000, (0.40098, 0.60675)),
    ],
)
def test_bounds_are_those_that_growthbook_publishes(estimate, error, users, planned, published):
    # packages/stats/tests/frequentist/test_tests.py: sequential, relative effects.
    half = error * multiplier(kappa(0.05) * users / planned, 0.05)
    assert (estimate - half, estimate + half) == pytest.approx(published, abs=2e-4)


def test_the_mixture_e_value_is_that_of_the_reference_implementation():
    # confseq: normal_log_mixture(10, 100, 100, .05, two-sided); a sum of 10 with variance 100.
    assert mixture_log_e_value(1.0, kappa(0.05)) == pytest.approx(-0.6510052, abs=1e-6)


@given(st.floats(0.01, 1e4), ALPHAS)
def test_the_e_value_reaches_one_over_alpha_at_the_bound(x, alpha):
    assert mixture_log_e_value(multiplier(x, alpha), x) == pytest.approx(-log(alpha))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_planned_bounds_are_narrower_than_bounds_without_an_end(alpha):
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
def test_the_sample_ratio_e_value_is_the_published_one(counts, published):
    # optimizely/ssrm, ssrm_test.py: prior (1, 1, 1), shares (.4, .4, .2).
    assert ratio_log_e_value(counts, (0.4, 0.4, 0.2), (1, 1, 1)) == pytest.approx(
        published, abs=1e-8
    )


def test_the_sample_ratio_e_value_agrees_with_a_third_implementation():
    # savvi with k = 100: counts (9400, 600), shares (.95, .05).
    assert ratio_log_e_value((9400, 600), (0.95, 0.05), (95, 5)) == pytest.approx(
        7.4190848, abs=1e-7
    )


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_the_sample_ratio_e_value_is_the_product_of_its_one_step_predictions(draws, share):
    prior = 1_000 * np.array([share, 1 - share])
    counts, log_e = np.zeros(2), 0.0
    for draw in draws:
        arm = 0 if draw else 1
        predicted = (prior[arm] + counts[arm]) / (prior.sum() + counts.sum())
        log_e += log(predicted) - log((share, 1 - share)[arm])
        counts[arm] += 1
    assert ratio_log_e_value(counts, (share, 1 - share), prior) == pytest.approx(log_e, abs=1e-6)


@pytest.mark.parametrize("ceiling", [0.05, 0.0616, 0.5, 0.9])
@pytest.mark.parametrize("length", [1, 4, 12])
def test_the_allocation_e_value_has_expectation_one_exactly(ceiling, length):
    hits = np.arange(length + 1)
    e_value = np.exp(allocation_log_e_value(hits, length, ceiling=ceiling))
    ways = np.array([comb(length, int(x)) for x in hits])
    mean = {
        p: np.sum(ways * p**hits * (1 - p) ** (length - hits) * e_value)
        for p in (ceiling / 4, ceiling / 2, ceiling)
    }
    assert mean[ceiling] == pytest.approx(1)
    assert mean[ceiling / 4] < mean[ceiling / 2] < 1


def test_the_allocation_e_value_is_a_supermartingale():
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
def test_the_allocation_e_value_agrees_with_quadrature(hits, events):
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
def test_events_without_any_on_the_challenger_lower_the_allocation_e_value(ceiling):
    log_e = allocation_log_e_value(np.zeros(7), [0, 10, 100, 1e3, 1e4, 1e5, 1e6], ceiling=ceiling)
    assert np.all(np.isfinite(log_e))
    assert np.all(np.diff(log_e) < 0)


def test_the_allocation_e_value_is_continuous_where_the_tail_underflows():
    hits, events = 30, np.arange(6_000, 9_000)
    log_e = allocation_log_e_value(np.full(3_000, hits), events, ceiling=0.1)
    steps = np.diff(log_e)
    assert np.all(steps < 0)
    # No jump where one formula takes over from the other; the bound of the series is tight.
    assert np.max(np.abs(np.diff(steps))) < 1e-2


@pytest.mark.parametrize("level", [1.0, 2.2414, 3.0])
def test_crossings_of_a_level_follow_the_reflection_principle(level):
    above, _ = crossings(np.full_like(TIMES, level), NO_FLOOR, drift=0.0)
    wanted = [erfc(level / (2 * t) ** 0.5) for t in TIMES]
    assert above == pytest.approx(np.array(wanted), abs=1e-6)


@pytest.mark.parametrize(
    ("start", "slope", "drift"), [(1.4, 1.0, 2.9), (0.9, 1.6, 0.0), (2, -1, 0)]
)
def test_crossings_of_a_line_follow_bachelier_and_levy(start, slope, drift):
    above, _ = crossings(start + slope * TIMES, NO_FLOOR, drift=drift)
    rest = slope - drift
    wanted = norm.sf(start + rest) + exp(-2 * start * rest) * norm.cdf(rest - start)
    assert above[-1] == pytest.approx(wanted, abs=1e-6)


def test_exits_from_a_strip_follow_the_heat_equation():
    width = 1.3
    above, below = crossings(np.full_like(TIMES, width), np.full_like(TIMES, -width), drift=0.0)
    inside = sum(
        4 / (pi * (2 * k + 1)) * (-1) ** k * exp(-((2 * k + 1) ** 2) * pi**2 / (8 * width**2))
        for k in range(20)
    )
    assert above[-1] + below[-1] == pytest.approx(1 - inside, abs=2e-3)
    assert above == pytest.approx(below, abs=1e-9)


def test_with_drift_exits_differ_by_the_likelihood_ratio():
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
    # A bridge between two readings exceeds the line between the bounds with this chance.
    between = np.exp(-2 * gap[:, 1:] * gap[:, :-1] / steps[1:])
    crossed = (gap == 0).any(axis=1) | (rng.random(between.shape) < between).any(axis=1)
    assert crossed.mean() == pytest.approx(chance, abs=4 * (chance / 40_000) ** 0.5)


def test_bounds_with_an_end_have_a_smaller_constant():
    rate = kappa(0.05)
    constant = boundary_constant(rate, 0.025)
    assert 0 < constant < -2 * log(0.05)
    shape = np.sqrt(TIMES * (1 + 1 / (rate * TIMES)) * (np.log1p(rate * TIMES) - 2 * log(0.05)))
    above, _ = crossings(shape, NO_FLOOR, drift=0.0)
    assert above[-1] < 0.025


COUNTS = st.integers(0, 5).flatmap(lambda tips: st.tuples(st.just(tips + 1), st.integers(0, tips)))


@given(st.lists(COUNTS, min_size=1, max_size=30), st.floats(0.5, 50), st.integers(0, 40))
def test_the_covariate_is_the_shrunk_rate_of_the_users_own_past(units, own_weight, earlier):
    tips, positives = (np.array(column) for column in zip(*units, strict=True))
    expected = expected_rates(
        tips,
        positives,
        earlier_tips=np.full(len(tips), earlier),
        earlier_positives=np.full(len(tips), earlier // 2),
        own_weight=own_weight,
    )
    for unit in range(len(tips)):
        rate = (positives[:unit].sum() + 1) / (tips[:unit].sum() + 2)
        shrunk = (earlier // 2 + own_weight * rate) / (earlier + own_weight)
        assert expected[unit] == pytest.approx(shrunk)


def test_a_large_own_weight_leaves_the_average_of_all_users():
    tips, positives = np.full(40, 2), np.arange(40) % 3
    past = {"earlier_tips": np.full(40, 30), "earlier_positives": np.full(40, 30)}
    near_own = expected_rates(tips, positives, **past, own_weight=0.01)
    near_all = expected_rates(tips, positives, **past, own_weight=1e6)
    assert near_own == pytest.approx(np.ones(40), abs=1e-3)
    assert near_all[-1] == pytest.approx(positives[:-1].sum() / tips[:-1].sum(), abs=0.01)


@pytest.mark.parametrize(("min_positives", "min_negatives"), [(1, 1), (5, 1), (5, 10), (1, 20)])
def test_the_burn_in_ends_with_enough_positives_and_negatives_in_the_smaller_arm(
    min_positives, min_negatives
):
    # Of every four units two are on the challenger; one unit of each arm has a positive.
    challenger = np.tile([True, True, False, False], 20)
    positives = np.tile([1, 0, 1, 0], 20)
    tips = np.ones(80, np.int64)
    # The smaller arm's counts at either arm's higher rate: every second unit has a positive.
    is_ready = is_burnt_in(
        tips, positives, challenger, min_positives=min_positives, min_negatives=min_negatives
    )
    first = int(np.argmax(is_ready)) + 1
    counts = [
        min(challenger[:n].sum(), n - challenger[:n].sum())
        * max(
            (sign[:n] & arm[:n]).sum() / max(arm[:n].sum(), 1) for arm in (challenger, ~challenger)
        )
        for sign, n in ((positives > 0, first), (positives == 0, first))
    ]
    assert counts[0] >= min_positives
    assert counts[1] >= min_negatives
    assert first <= 4 * max(min_positives, min_negatives)
    assert not is_ready[: first - 1].any()


def test_a_challenger_without_positives_leaves_the_burn_in_by_the_champions_rate():
    challenger = np.arange(200) % 2 == 0
    positives = np.where(challenger, 0, 1)
    positives[1::4] = 0
    is_ready = is_burnt_in(
        np.ones(200, np.int64), positives, challenger, min_positives=20, min_negatives=20
    )
    # Half of the champion's units have a positive: forty units per arm are enough.
    assert int(np.argmax(is_ready)) + 1 == pytest.approx(80, abs=2)


@given(st.floats(0.05, 0.9), st.floats(0.0, 2.0))
def test_a_larger_harm_margin_never_raises_the_e_value(share, margin):
    event = np.ones(60, bool)
    challenger = np.arange(60) % 3 > 0
    shares = np.full(60, share)
    strict = harm_log_e_values(event, challenger, shares, margin=margin)
    lenient = harm_log_e_values(event, challenger, shares, margin=margin + 0.5)
    assert np.all(lenient <= strict + 1e-9)


@pytest.mark.parametrize("planned", [500, 2_000])
def test_progress_reaches_one_at_the_planned_units_under_steady_traffic(planned):
    rng = np.random.default_rng(41)
    challenger, tips, positives = draw_worlds(rng, 40, 3_000, share=0.5, rate=0.4)
    bounds = effect_of(tips, positives, challenger, 0.5, planned_units=planned)
    ends = np.argmax(bounds.progress >= 1, axis=1) + 1
    assert np.median(ends) == pytest.approx(planned, rel=0.05)
    assert np.all(np.diff(bounds.progress, axis=1) >= -1e-9)


def test_a_margin_makes_fewer_worlds_futile():
    rng = np.random.default_rng(42)
    challenger, tips, positives = draw_worlds(rng, 60, 1_500, share=0.5, rate=0.4)
    without, with_margin = (
        effect_of(tips, positives, challenger, 0.5, planned_units=1_500, margin=margin)
        for margin in (0.0, 0.05)
    )
    assert with_margin.is_futile.sum() < 0.8 * without.is_futile.sum()
    assert np.array_equal(with_margin.low, without.low)


def test_outside_the_burn_in_bounds_are_infinite_and_nothing_is_futile():
    few = effect_of([1] * 20, [1, 0] * 10, np.arange(20) % 2 == 0, 0.5, planned_units=100)
    assert not few.is_ready.any()
    assert not few.is_futile.any()
    assert np.all(np.isinf(few.low) & np.isinf(few.high))


def test_an_excess_is_counted_among_the_chosen_units_only():
    event, among = np.ones(40, bool), np.arange(40) < 30
    assert excess_log_e_values(event, among, limit=0.1)[-1] > log(1e6)
    assert excess_log_e_values(event, np.zeros(40, bool), limit=0.1)[-1] == 0
    # As if the other units were not there.
    alone = excess_log_e_values(event[:30], among[:30], limit=0.1)[-1]
    assert excess_log_e_values(event, among, limit=0.1)[-1] == pytest.approx(alone)
