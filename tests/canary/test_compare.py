from dataclasses import asdict, fields, replace
from itertools import product
from math import log

import numpy as np
import pyarrow as pa
import pytest
import statsmodels.api as sm
import tea_tasting as tt
from scipy.stats import beta, chisquare, norm

from canary_fixtures import draw_worlds, effect_of, outcomes_of, some_of
from reactune.canary.compare import bounds_over_time, compare, decide, next_share, trajectory
from reactune.canary.outcomes import earlier_by_user
from reactune.canary.sequential import (
    differences,
    expected_rates,
    harm_log_e_values,
    mismatch_log_e_values,
)
from reactune.config.sections import CanaryConfig

SETTINGS = CanaryConfig(planned_units=5_000)
RAMP = np.repeat([0.05, 0.1, 0.25, 0.5], [400, 400, 400, 2_800])


def judge(outcomes, *, settings=SETTINGS, phase="canary", age_days=30.0, planned=None):
    comparison = compare(
        outcomes, settings=settings, planned_units=planned or settings.planned_units
    )
    return decide(comparison, settings=settings, phase=phase, age_days=age_days)


def one_world(seed, units, **people):
    rng = np.random.default_rng(seed)
    challenger, tips, positives = (each[0] for each in draw_worlds(rng, 1, units, **people))
    return outcomes_of(challenger=challenger, tips=tips, positives=positives, share=people["share"])


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


def test_at_one_share_the_estimate_is_the_inverse_propensity_one():
    world = one_world(1, 900, share=0.2, rate=0.3, effect=0.1, tips=3)
    earlier_positives = np.concatenate([[0], np.cumsum(world.positives)[:-1]])
    earlier_tips = np.concatenate([[0], np.cumsum(world.tips)[:-1]])
    rate = (earlier_positives + 1) / (earlier_tips + 2)
    weights = np.where(world.challenger, 1 / 0.2, -1 / 0.8)
    phi = (world.positives - world.tips * rate) * weights
    result = compare(world, settings=SETTINGS, planned_units=5_000)
    assert result.estimate == pytest.approx(phi.sum() / world.tips.sum())


@pytest.mark.parametrize("shares", [(0.05,) * 7, (0.05, 0.05, 0.1, 0.1, 0.25, 0.5, 0.5)])
def test_over_all_lots_the_estimate_is_right_exactly_whatever_the_people_are(shares):
    share = np.array(shares)
    tips = np.array([1, 3, 2, 1, 4, 2, 5])
    liked = {True: np.array([1, 0, 2, 0, 3, 1, 5]), False: np.array([0, 2, 1, 1, 1, 0, 4])}
    weight = share * (1 - share)
    truth = np.sum(weight * (liked[True] - liked[False])) / np.sum(weight * tips)
    mean = 0.0
    for lot in product([False, True], repeat=7):
        arm = np.array(lot)
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


@pytest.mark.parametrize(("liked_on_challenger", "rules"), [([0, 0], "possible"), ([0, 3], "seen")])
def test_errors_rest_on_the_larger_of_what_was_seen_and_what_was_possible(
    liked_on_challenger, rules
):
    share = np.repeat([0.1, 0.2], 100)
    challenger = np.arange(200) % 10 == 0
    tips = np.full(200, 3)
    positives = np.where(
        challenger, np.resize(np.repeat(liked_on_challenger, 10), 200), np.arange(200) % 3
    )
    rate = np.linspace(0.2, 0.4, 200)
    found = differences(tips, positives, challenger, share, expected=rate)
    variance = {"seen": 0.0, "possible": 0.0}
    for n, liked, m, arm, p in zip(tips, positives, rate, challenger, share, strict=True):
        score = (liked - n * m) * (arm - p)
        variance["seen"] += (score - found.estimate[-1] * n * p * (1 - p)) ** 2
        variance["possible"] += (
            p * (1 - p) * (liked - n * m - found.estimate[-1] * n * (arm - 1 + p)) ** 2
        )
    assert max(variance, key=variance.get) == rules
    size = np.sum(tips * share * (1 - share))
    assert found.error[-1] == pytest.approx(variance[rules] ** 0.5 / size)
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


def test_the_path_ends_where_the_comparison_stands_at_every_length():
    world = one_world(4, 900, share=np.repeat([0.2, 0.5], 450), rate=0.4, tips=2)
    path = trajectory(world, settings=SETTINGS, planned_units=5_000)
    for units in (1, 60, 451, 900):
        now = asdict(compare(some_of(world, slice(units)), settings=SETTINGS, planned_units=5_000))
        for name in ("estimate", "low", "high", "progress", "is_futile"):
            assert now[name] == pytest.approx(getattr(path.effect, name)[units - 1])
        assert now["mismatch"] == pytest.approx(path.mismatch[units - 1])


def test_a_ramp_through_a_changing_audience_does_not_pass_for_an_effect():
    # Simpson: the challenger gets most of its traffic when everybody likes less.
    share = np.repeat([0.05, 0.5], 4_000)
    world = one_world(5, 8_000, share=share, rate=np.repeat([0.6, 0.2], 4_000))
    result = compare(world, settings=SETTINGS, planned_units=5_000)
    assert result.challenger_rate - result.champion_rate < -0.15
    assert result.low < 0 < result.high
    assert abs(result.estimate) < 0.03


def test_drift_and_ramp_leave_no_bias_on_average():
    rng = np.random.default_rng(6)
    rate = np.linspace(0.6, 0.2, len(RAMP))
    challenger, tips, positives = draw_worlds(
        rng, 300, len(RAMP), share=RAMP, rate=rate, effect=0.1
    )
    ends = effect_of(tips, positives, challenger, RAMP, planned_units=5_000).estimate[:, -1]
    assert ends.mean() == pytest.approx(0.1, abs=4 * ends.std() / len(ends) ** 0.5)


def test_reading_tip_by_tip_rarely_tells_identical_models_apart():
    rng = np.random.default_rng(7)
    worlds = draw_worlds(rng, 300, 4_000, share=0.05, rate=0.3)
    promoted, rolled_back = verdicts_on_the_way(worlds, 0.05, planned=4_000)
    assert clopper_pearson_low(promoted, 300) <= 0.03
    assert clopper_pearson_low(rolled_back, 300) <= 0.01


@pytest.mark.parametrize("trend", [0.0, 0.2])
def test_a_ramp_over_days_of_several_tips_rarely_tells_identical_models_apart(trend):
    rng = np.random.default_rng(8)
    rate = 0.35 + trend * np.linspace(-1, 1, len(RAMP))
    worlds = draw_worlds(rng, 300, len(RAMP), share=RAMP, rate=rate, tips=4, icc=0.33)
    promoted, rolled_back = verdicts_on_the_way(worlds, RAMP, planned=whole_plan(RAMP))
    assert clopper_pearson_low(promoted, 300) <= 0.03
    assert clopper_pearson_low(rolled_back, 300) <= 0.01


def test_reading_while_days_are_half_over_rarely_tells_identical_models_apart():
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
        for look in np.arange(0.5, days + 0.1, 0.25):
            seen = in_time[at[in_time] <= look]
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


def test_a_plain_z_test_read_as_often_would_tell_them_apart():
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


def test_the_guardrail_rarely_alarms_at_the_edge_of_what_is_allowed():
    rng = np.random.default_rng(10)
    alarms = 0
    for _ in range(300):
        challenger = rng.random(len(RAMP)) < RAMP
        event = rng.random(len(RAMP)) < np.where(challenger, 0.25, 0.2)
        alarms += harm_log_e_values(event, challenger, RAMP, margin=0.25)[-1] >= log(20)
    assert clopper_pearson_low(alarms, 300) <= 0.05


def test_the_sample_ratio_check_rarely_alarms_on_a_sound_ramp():
    rng = np.random.default_rng(11)
    alarms = sum(
        mismatch_log_e_values(rng.random(len(RAMP)) < RAMP, RAMP)[-1] >= log(20) for _ in range(300)
    )
    assert clopper_pearson_low(alarms, 300) <= 0.05


@pytest.mark.parametrize(
    ("effect", "verdict", "reason"),
    [
        (0.15, "promote", "the challenger is better: +"),
        (0.0, "roll back", "inconclusive after 6,000 units, the champion stays"),
        (-0.15, "roll back", "the challenger is worse: -"),
    ],
)
def test_the_verdict_follows_the_difference(effect, verdict, reason):
    world = one_world(12, 6_000, share=0.1, rate=0.4, effect=effect, tips=3, icc=0.2)
    decision = judge(world)
    assert decision.verdict == verdict
    assert decision.reason.startswith(reason)


def test_before_the_planned_end_an_open_question_stays_open():
    world = one_world(12, 1_000, share=0.1, rate=0.4, effect=0.01, tips=3, icc=0.2)
    decision = judge(world, planned=20_000)
    assert (decision.verdict, decision.is_hold) == ("wait", False)
    assert decision.reason.startswith("undecided: ")


def test_the_verdict_follows_the_difference_in_most_worlds():
    rng = np.random.default_rng(13)
    better = draw_worlds(rng, 200, 5_000, share=0.25, rate=0.3, effect=0.06)
    promoted, rolled_back = verdicts_on_the_way(better, 0.25, planned=5_000)
    assert promoted >= 160
    assert rolled_back <= 5


@pytest.mark.parametrize(("effect", "verdict"), [(0.15, "promote"), (0.0, "roll back")])
def test_where_a_person_decides_the_same_verdict_is_proposed_and_the_share_stays(effect, verdict):
    world = one_world(12, 6_000, share=0.1, rate=0.4, effect=effect, tips=3, icc=0.2)
    settings = CanaryConfig(planned_units=5_000, decides="propose")
    alone, asked = judge(world), judge(world, settings=settings)
    command = {"promote": "promote", "roll back": "rollback"}[verdict]
    assert alone.verdict == verdict
    assert asked.verdict == "wait"
    assert asked.reason == (f"{verdict} is proposed: {alone.reason}; `reactune {command}` does it")
    assert asked.numbers == alone.numbers
    assert step(world, 0.1, settings) is None


def test_shown_harm_is_taken_back_without_asking():
    settings = CanaryConfig(planned_units=5_000, decides="propose")
    worse = one_world(12, 6_000, share=0.1, rate=0.4, effect=-0.15, tips=3, icc=0.2)
    assert judge(worse, settings=settings) == judge(worse)
    assert judge(worse, settings=settings).verdict == "roll back"
    arm = np.arange(400) % 2 == 0
    dismissed = outcomes_of(challenger=arm, quick_dismissals=arm)
    assert judge(dismissed, settings=settings).verdict == "roll back"


def test_where_a_person_decides_the_share_grows_by_itself_until_there_is_something_to_decide():
    world = one_world(12, 1_000, share=0.1, rate=0.4, effect=0.01, tips=3, icc=0.2)
    settings = CanaryConfig(planned_units=20_000, decides="propose")
    comparison = compare(world, settings=settings, planned_units=20_000)
    decision = decide(comparison, settings=settings, phase="canary", age_days=30)
    assert next_share(comparison, decision, share=0.1, settings=settings) == 0.25


def test_few_reactions_mean_wait_not_an_error():
    world = one_world(14, 150, share=0.05, rate=0.4, effect=0.5)
    decision = judge(world)
    assert decision.verdict == "wait"
    assert "too few reactions" in decision.reason
    assert decision.numbers["low"] is None


def test_no_units_at_all_mean_wait():
    assert judge(outcomes_of(challenger=[])).verdict == "wait"


def test_a_challenger_that_nobody_likes_is_rolled_back_without_a_single_positive():
    world = one_world(15, 5_000, share=0.05, rate=0.5, effect=-1.0)
    result = compare(world, settings=SETTINGS, planned_units=5_000)
    assert result.challenger_rate == 0
    assert judge(world).verdict == "roll back"


def test_quick_dismissals_roll_a_challenger_back_before_the_bounds_may_decide():
    rng = np.random.default_rng(16)
    challenger = rng.random(700) < 0.1
    quick = rng.random(700) < np.where(challenger, 0.6, 0.1)
    decision = judge(outcomes_of(challenger=challenger, share=0.1, quick_dismissals=quick))
    assert decision.verdict == "roll back"
    assert decision.reason.startswith("harm is shown: quick dismissals ")


def test_the_evidence_of_each_share_is_its_own_and_is_multiplied():
    share, everyone = np.repeat([0.1, 0.5], 30), np.ones(60, bool)
    both = harm_log_e_values(everyone, everyone, share, margin=0.25)[-1]
    alone = [harm_log_e_values(everyone[:30], everyone[:30], np.full(30, p), margin=0.25)[-1]
             for p in (0.1, 0.5)]  # fmt: skip
    assert both == pytest.approx(sum(alone))
    both = mismatch_log_e_values(everyone, share)[-1]
    alone = [mismatch_log_e_values(everyone[:30], np.full(30, p))[-1] for p in (0.1, 0.5)]
    assert both == pytest.approx(sum(alone))


def lossy_world():
    """A clearly better challenger, a third of whose exposures get lost."""
    world = one_world(17, 12_000, share=0.5, rate=0.3, effect=0.2)
    lost = world.challenger & (np.arange(12_000) % 3 == 0)
    return some_of(world, ~lost)


def test_lost_exposures_put_the_rollout_on_hold():
    decision = judge(lossy_world())
    assert decision.verdict == "wait"
    assert decision.is_hold
    assert decision.reason.startswith("hold")


def test_a_tenth_of_lost_exposures_is_found_where_a_chi_square_finds_it():
    rng = np.random.default_rng(18)
    challenger = rng.random(20_000) < 0.5
    kept = ~(challenger & (rng.random(20_000) < 0.1))
    arm = challenger[kept]
    assert chisquare([arm.sum(), (~arm).sum()]).pvalue < 0.001
    assert mismatch_log_e_values(arm, np.full(len(arm), 0.5))[-1] >= log(1_000)


def test_evidence_once_shown_stays_shown():
    rng = np.random.default_rng(19)
    arm = rng.random(5_000) < np.repeat([0.6, 0.45], 2_500)
    evidence = mismatch_log_e_values(arm, np.full(5_000, 0.5))
    assert np.all(np.diff(evidence) >= 0)


def test_units_that_met_the_champion_after_the_challenger_put_the_rollout_on_hold():
    arm = np.arange(400) % 2 == 0
    faulty = outcomes_of(challenger=arm, both_arms=arm & (np.arange(400) < 40))
    ramped = outcomes_of(challenger=arm, both_arms=~arm & (np.arange(400) < 40))
    assert judge(faulty).is_hold
    assert not judge(ramped).is_hold
    assert compare(ramped, settings=SETTINGS, planned_units=5_000).moved_in == 20


def test_a_challenger_that_the_champion_had_to_stand_in_for_is_not_promoted():
    world = one_world(20, 6_000, share=0.3, rate=0.3, effect=0.2)
    absent = replace(world, fallbacks=np.where(np.arange(6_000) % 3 == 0, world.tips, 0))
    assert judge(world).verdict == "promote"
    assert judge(absent).is_hold


def test_an_inconclusive_rollout_ends_with_the_champion():
    world = one_world(21, 6_000, share=0.3, rate=0.3)
    settings = CanaryConfig(max_units=6_000, planned_units=90_000)
    decision = judge(world, settings=settings)
    assert decision.verdict == "roll back"
    assert "inconclusive" in decision.reason
    assert "champion stays" in decision.reason
    better = one_world(21, 6_000, share=0.3, rate=0.3, effect=0.2)
    assert judge(better, settings=settings).verdict == "promote"


def test_a_margin_promotes_what_is_no_worse_than_that():
    world = one_world(22, 20_000, share=0.5, rate=0.3)
    assert judge(world).verdict == "roll back"
    assert judge(world, settings=CanaryConfig(margin=0.05)).verdict == "promote"


@pytest.mark.parametrize("phase", ["idle", "closed"])
def test_without_an_open_rollout_nothing_is_decided(phase):
    world = one_world(12, 6_000, share=0.1, rate=0.4, effect=0.15, tips=3)
    assert judge(world, phase=phase).verdict == "wait"


def test_the_same_outcomes_always_give_the_same_decision():
    world = one_world(23, 3_000, share=0.3, rate=0.3, effect=0.1)
    assert judge(world) == judge(world)


def step(world, share, settings=SETTINGS):
    comparison = compare(world, settings=settings, planned_units=5_000)
    decision = decide(comparison, settings=settings, phase="canary", age_days=30)
    return next_share(comparison, decision, share=share, settings=settings)


def test_the_share_grows_step_by_step_once_enough_units_showed_no_harm():
    assert step(one_world(24, 199, share=0.05, rate=0.3), 0.05) is None
    assert step(one_world(24, 200, share=0.05, rate=0.3), 0.05) == 0.10
    assert step(one_world(24, 200, share=0.10, rate=0.3), 0.10) == 0.25
    assert step(one_world(24, 200, share=0.50, rate=0.3), 0.50) is None


def test_units_of_earlier_shares_do_not_count_for_the_next_step():
    world = one_world(25, 300, share=np.repeat([0.05, 0.1], [200, 100]), rate=0.3)
    assert step(world, 0.1) is None


def test_a_share_off_the_ramp_goes_on_to_the_next_step_above_it():
    assert step(one_world(26, 250, share=0.17, rate=0.3), 0.17) == 0.25


def test_the_share_does_not_grow_while_the_data_cannot_be_trusted():
    assert step(lossy_world(), 0.5, CanaryConfig(ramp=(0.6,))) is None


@pytest.mark.parametrize("effect", [-0.3, 0.3])
def test_the_share_does_not_grow_after_a_verdict(effect):
    world = one_world(30, 6_000, share=0.1, rate=0.4, effect=effect)
    assert judge(world).verdict != "wait"
    assert step(world, 0.1) is None


def test_bounds_over_time_end_with_the_comparison_and_are_thinned():
    world = one_world(27, 3_000, share=0.3, rate=0.4, effect=0.1)
    path = bounds_over_time(world, settings=SETTINGS, planned_units=5_000, points=50)
    result = compare(world, settings=SETTINGS, planned_units=5_000)
    assert {len(getattr(path.effect, each.name)) for each in fields(path.effect)} == {50}
    assert len(path.mismatch) == len(path.first_shown_at) == 50
    assert (path.effect.low[-1], path.effect.high[-1]) == (result.low, result.high)
    assert path.first_shown_at[-1] == world.first_shown_at[-1]


def test_bounds_over_no_time_are_an_empty_path():
    empty = outcomes_of(challenger=[])
    assert len(bounds_over_time(empty, settings=SETTINGS, planned_units=5_000).effect.low) == 0


def test_units_drawn_without_a_lot_say_nothing():
    world = one_world(28, 2_000, share=0.3, rate=0.3)
    more = replace(world, share=np.where(np.arange(2_000) < 500, 1.0, 0.3))
    seen = compare(more, settings=SETTINGS, planned_units=5_000)
    path = trajectory(more, settings=SETTINGS, planned_units=5_000)
    assert len(path.effect.low) == 1_500
    assert np.isfinite(seen.estimate)


def people(seed, *, units=6_000, persons=300, share=0.3, effect=0.0):
    """A world of persons of lasting tastes: arms, tips, positives, and what each did before."""
    rng = np.random.default_rng(seed)
    taste = rng.beta(0.9, 2.1, persons)
    who = rng.integers(0, persons, units)
    arm = rng.random(units) < share
    tips = 1 + rng.poisson(2, units)
    positives = rng.binomial(tips, np.clip(taste[who] + effect * arm, 0, 1))
    seen = rng.integers(5, 40, persons)
    liked = rng.binomial(seen, taste)
    earlier = earlier_by_user(
        who.tolist(),
        tips,
        positives,
        before={n: (int(seen[n]), int(liked[n])) for n in range(persons)},
    )
    return arm, tips, positives, earlier


def foreseen(tips, positives, earlier):
    return expected_rates(
        tips, positives, earlier_tips=earlier[0], earlier_positives=earlier[1], own_weight=3.0
    )


def test_what_a_person_did_before_takes_as_much_noise_away_as_cuped_does():
    arm, tips, positives, earlier = people(31, effect=0.05)
    expected = foreseen(tips, positives, earlier)
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


def test_what_is_foreseen_of_a_unit_knows_nothing_of_it_or_of_later_ones():
    _, tips, positives, earlier = people(32, units=50)
    before = foreseen(tips, positives, earlier)
    changed = positives.copy()
    changed[30:] = 0
    assert foreseen(tips, changed, earlier)[:31] == pytest.approx(before[:31])
    assert foreseen(tips, changed, earlier)[31:] != pytest.approx(before[31:])


def test_a_better_challenger_is_promoted_only_after_a_weekly_cycle():
    world = one_world(12, 6_000, share=0.1, rate=0.4, effect=0.15, tips=3, icc=0.2)
    early = judge(world, age_days=6.9)
    assert early.verdict == "wait"
    assert "promoted when the rollout is 7 days old" in early.reason
    assert judge(world, age_days=7).verdict == "promote"
    assert judge(world, settings=replace_settings(min_days=2), age_days=2).verdict == "promote"
    worse = one_world(12, 6_000, share=0.1, rate=0.4, effect=-0.15, tips=3, icc=0.2)
    assert judge(worse, age_days=0.1).verdict == "roll back"


def replace_settings(**changes):
    return CanaryConfig(**{**SETTINGS.model_dump(), **changes})


def test_where_no_gain_is_in_prospect_the_rollout_ends_before_its_plan():
    world = one_world(33, 3_000, share=0.5, rate=0.3, effect=-0.02)
    early = judge(world, age_days=1, planned=6_000)
    late = judge(world, planned=6_000)
    assert early.verdict == "wait"
    assert late.verdict == "roll back"
    assert "futile, a promotion is too unlikely" in late.reason
    assert 0.3 < late.numbers["progress"] < 0.7


def test_nothing_is_learnt_after_the_planned_end():
    world = one_world(34, 4_000, share=0.5, rate=0.3, effect=0.05)
    path = trajectory(world, settings=SETTINGS, planned_units=1_500)
    end = int(np.argmax(path.effect.progress >= 1))
    assert 1_200 < end < 1_900
    assert path.effect.low[-1] == path.effect.low[end]
    assert path.effect.high[-1] == path.effect.high[end]
    assert np.all(path.effect.progress[end:] == 1)


def test_bounds_only_narrow():
    world = one_world(35, 4_000, share=0.3, rate=0.3, effect=0.02)
    path = trajectory(world, settings=SETTINGS, planned_units=4_000)
    assert np.all(np.diff(path.effect.low[path.effect.is_ready]) >= 0)
    assert np.all(np.diff(path.effect.high[path.effect.is_ready]) <= 0)


def test_a_burn_in_longer_than_the_plan_leaves_one_look_at_its_end():
    world = one_world(36, 2_000, share=0.1, rate=0.3, effect=0.6)
    path = trajectory(world, settings=SETTINGS, planned_units=100)
    first = int(np.argmax(path.effect.is_ready))
    assert first > 100
    assert path.effect.progress[first] == 1
    assert path.effect.low[first] > 0
    assert judge(world, planned=100).verdict == "promote"


def test_a_difference_that_turns_round_puts_the_rollout_on_hold():
    better = one_world(37, 4_000, share=0.5, rate=0.4, effect=0.25)
    worse = one_world(38, 9_000, share=0.5, rate=0.6, effect=-0.4)
    both = outcomes_of(
        challenger=np.concatenate([better.challenger, worse.challenger]),
        positives=np.concatenate([better.positives, worse.positives]),
    )
    decision = judge(both, planned=40_000)
    assert decision.is_hold
    assert "contradict earlier ones" in decision.reason


@pytest.mark.parametrize("trend", [np.linspace(1, 9, 3_000), np.linspace(9, 1, 3_000)])
def test_people_who_get_more_tips_or_fewer_do_not_make_false_verdicts(trend):
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
