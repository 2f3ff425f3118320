from dataclasses import fields, replace
from itertools import product
from math import log

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import beta, chisquare, norm

from canary_fixtures import draw_worlds, outcomes_of
from reactune.canary.bounds import kappa, multiplier
from reactune.canary.compare import (
    Path,
    bounds_over_time,
    compare,
    decide,
    follow,
    next_share,
)
from reactune.canary.evidence import (
    effect_bounds,
    harm_evidence,
    is_burnt_in,
    mismatch_evidence,
)
from reactune.canary.outcomes import Outcomes
from reactune.config import CanaryConfig

SETTINGS = CanaryConfig()
RAMP = np.repeat([0.05, 0.1, 0.25, 0.5], [400, 400, 400, 2_800])


def judge(outcomes, *, settings=SETTINGS, phase="canary"):
    comparison = compare(outcomes, settings=settings, planned_units=settings.planned_units)
    return decide(comparison, settings=settings, phase=phase)


def one_world(seed, units, **people):
    rng = np.random.default_rng(seed)
    challenger, tips, positives = (each[0] for each in draw_worlds(rng, 1, units, **people))
    return outcomes_of(challenger=challenger, tips=tips, positives=positives, share=people["share"])


def clopper_pearson_low(hits, trials, confidence=0.99):
    return beta.ppf(1 - confidence, hits, trials - hits + 1) if hits else 0.0


def verdicts_on_the_way(worlds, share, *, alpha=0.05, planned=2_000):
    """How many worlds are ever promoted, and ever rolled back, when read after each unit."""
    challenger, tips, positives = worlds
    _, low, high = effect_bounds(
        tips,
        positives,
        challenger,
        np.broadcast_to(share, tips.shape),
        alpha=alpha,
        planned_units=planned,
    )
    ready = is_burnt_in(tips, positives, challenger, min_positives=20, min_negatives=20)
    return int((ready & (low > 0)).any(axis=1).sum()), int((ready & (high < 0)).any(axis=1).sum())


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
        estimate, *_ = effect_bounds(tips, positives, arm, share, alpha=0.05, planned_units=100)
        mean += chance * estimate[-1]
    assert mean == pytest.approx(truth, abs=1e-12)


def test_standard_errors_are_those_of_a_clustered_regression():
    world = one_world(2, 20_000, share=0.3, rate=0.3, effect=0.05, tips=4, icc=0.3)
    _, low, high = effect_bounds(
        world.tips, world.positives, world.challenger, world.share, alpha=0.05, planned_units=20_000
    )
    unit = np.repeat(np.arange(20_000), world.tips)
    order = np.arange(len(unit)) - np.repeat(np.cumsum(world.tips) - world.tips, world.tips)
    reaction = (order < world.positives[unit]).astype(float)
    fit = sm.OLS(reaction, sm.add_constant(world.challenger[unit].astype(float))).fit(
        cov_type="cluster", cov_kwds={"groups": unit, "use_correction": False}
    )
    assert (high[-1] - low[-1]) / 2 / 3.0352090 == pytest.approx(fit.bse[1], rel=0.03)
    assert (high[-1] + low[-1]) / 2 == pytest.approx(fit.params[1], abs=0.5 * fit.bse[1])


@pytest.mark.parametrize(("liked_on_challenger", "rules"), [([0, 0], "possible"), ([0, 3], "seen")])
def test_bounds_rest_on_the_larger_of_what_was_seen_and_what_was_possible(
    liked_on_challenger, rules
):
    share = np.repeat([0.1, 0.2], 100)
    challenger = np.arange(200) % 10 == 0
    tips = np.full(200, 3)
    positives = np.where(
        challenger, np.resize(np.repeat(liked_on_challenger, 10), 200), np.arange(200) % 3
    )
    estimate, low, high = effect_bounds(
        tips, positives, challenger, share, alpha=0.05, planned_units=300
    )
    rate = [(positives[:u].sum() + 1) / (tips[:u].sum() + 2) for u in range(200)]
    variance = {"seen": 0.0, "possible": 0.0}
    for n, liked, m, arm, p in zip(tips, positives, rate, challenger, share, strict=True):
        score = (liked - n * m) * (arm - p)
        variance["seen"] += (score - estimate[-1] * n * p * (1 - p)) ** 2
        variance["possible"] += (
            p * (1 - p) * (liked - n * m - estimate[-1] * n * (arm - 1 + p)) ** 2
        )
    assert max(variance, key=variance.get) == rules
    size = np.sum(tips * share * (1 - share))
    part_of_plan = np.sum(share * (1 - share)) / (300 * 0.1 * 0.9)
    half = float(multiplier(kappa(0.05) * part_of_plan, 0.05)) * variance[rules] ** 0.5 / size
    assert (low[-1], high[-1]) == pytest.approx((estimate[-1] - half, estimate[-1] + half))


def test_swapping_the_arms_swaps_the_sign_and_nothing_else():
    world = one_world(3, 1_500, share=0.4, rate=0.3, effect=0.05, tips=2)
    swapped = replace(world, challenger=~world.challenger, share=1 - world.share)
    one, other = (compare(w, settings=SETTINGS, planned_units=5_000) for w in (world, swapped))
    assert other.estimate == pytest.approx(-one.estimate)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_the_path_ends_where_the_comparison_stands_at_every_length():
    world = one_world(4, 900, share=np.repeat([0.2, 0.5], 450), rate=0.4, tips=2)
    path = follow(world, settings=SETTINGS, planned_units=5_000)
    for units in (1, 60, 451, 900):
        cut = Outcomes(*(getattr(world, each.name)[:units] for each in fields(world)))
        now = compare(cut, settings=SETTINGS, planned_units=5_000)
        seen = (now.estimate, now.low, now.high, now.harm, now.mismatch)
        assert seen == pytest.approx(
            tuple(
                getattr(path, name)[units - 1]
                for name in ("estimate", "low", "high", "harm", "mismatch")
            )
        )


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
    share = np.broadcast_to(RAMP, tips.shape)
    estimate, *_ = effect_bounds(
        tips, positives, challenger, share, alpha=0.05, planned_units=5_000
    )
    ends = estimate[:, -1]
    assert ends.mean() == pytest.approx(0.1, abs=4 * ends.std() / len(ends) ** 0.5)


def test_reading_tip_by_tip_rarely_tells_identical_models_apart():
    rng = np.random.default_rng(7)
    worlds = draw_worlds(rng, 300, 4_000, share=0.05, rate=0.3)
    promoted, rolled_back = verdicts_on_the_way(worlds, 0.05)
    assert clopper_pearson_low(promoted, 300) <= 0.025
    assert clopper_pearson_low(rolled_back, 300) <= 0.025


@pytest.mark.parametrize("trend", [0.0, 0.2])
def test_a_ramp_over_days_of_several_tips_rarely_tells_identical_models_apart(trend):
    rng = np.random.default_rng(8)
    rate = 0.35 + trend * np.linspace(-1, 1, len(RAMP))
    worlds = draw_worlds(rng, 300, len(RAMP), share=RAMP, rate=rate, tips=4, icc=0.33)
    promoted, rolled_back = verdicts_on_the_way(worlds, RAMP)
    assert clopper_pearson_low(promoted, 300) <= 0.025
    assert clopper_pearson_low(rolled_back, 300) <= 0.025


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
            ready = is_burnt_in(so_far, good, arm[order], min_positives=20, min_negatives=20)
            share = np.full(len(order), 0.1)
            _, low, high = effect_bounds(
                so_far, good, arm[order], share, alpha=0.05, planned_units=1_000
            )
            lows.append(ready[-1] and low[-1] > 0)
            highs.append(ready[-1] and high[-1] < 0)
        promoted += any(lows)
        rolled_back += any(highs)
    assert clopper_pearson_low(promoted, 120) <= 0.025
    assert clopper_pearson_low(rolled_back, 120) <= 0.025


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
    promoted, rolled_back = verdicts_on_the_way(worlds, 0.2)
    assert clopper_pearson_low(promoted, 300) <= 0.025
    assert clopper_pearson_low(rolled_back, 300) <= 0.025


def test_the_guardrail_rarely_alarms_at_the_edge_of_what_is_allowed():
    rng = np.random.default_rng(10)
    alarms = 0
    for _ in range(300):
        challenger = rng.random(len(RAMP)) < RAMP
        event = rng.random(len(RAMP)) < np.where(challenger, 0.25, 0.2)
        alarms += harm_evidence(event, challenger, RAMP, margin=0.25)[-1] >= log(20)
    assert clopper_pearson_low(alarms, 300) <= 0.05


def test_the_sample_ratio_check_rarely_alarms_on_a_sound_ramp():
    rng = np.random.default_rng(11)
    alarms = sum(
        mismatch_evidence(rng.random(len(RAMP)) < RAMP, RAMP)[-1] >= log(20) for _ in range(300)
    )
    assert clopper_pearson_low(alarms, 300) <= 0.05


@pytest.mark.parametrize(
    ("effect", "verdict"), [(0.15, "promote"), (0.0, "wait"), (-0.15, "roll back")]
)
def test_the_verdict_follows_the_difference(effect, verdict):
    world = one_world(12, 6_000, share=0.1, rate=0.4, effect=effect, tips=3, icc=0.2)
    assert judge(world).verdict == verdict


def test_the_verdict_follows_the_difference_in_most_worlds():
    rng = np.random.default_rng(13)
    better = draw_worlds(rng, 200, 5_000, share=0.25, rate=0.3, effect=0.06)
    promoted, rolled_back = verdicts_on_the_way(better, 0.25, planned=5_000)
    assert promoted >= 160
    assert rolled_back <= 5


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
    decision = judge(outcomes_of(challenger=challenger, share=0.1, quick=quick))
    assert decision.verdict == "roll back"
    assert "dismiss" in decision.reason


def test_many_quick_dismissals_of_one_unit_are_one_event():
    arm = np.arange(400) % 2 == 0
    once = compare(
        outcomes_of(challenger=arm, quick=arm * 1, tips=9), settings=SETTINGS, planned_units=5_000
    )
    often = compare(
        outcomes_of(challenger=arm, quick=arm * 9, tips=9), settings=SETTINGS, planned_units=5_000
    )
    assert once.harm == often.harm > log(40)


def test_the_evidence_of_each_share_is_its_own_and_is_multiplied():
    share, everyone = np.repeat([0.1, 0.5], 30), np.ones(60, bool)
    both = harm_evidence(everyone, everyone, share, margin=0.25)[-1]
    alone = [harm_evidence(everyone[:30], everyone[:30], np.full(30, p), margin=0.25)[-1]
             for p in (0.1, 0.5)]  # fmt: skip
    assert both == pytest.approx(sum(alone))
    both = mismatch_evidence(everyone, share)[-1]
    alone = [mismatch_evidence(everyone[:30], np.full(30, p))[-1] for p in (0.1, 0.5)]
    assert both == pytest.approx(sum(alone))


def lossy_world():
    """A clearly better challenger, a third of whose exposures get lost."""
    world = one_world(17, 12_000, share=0.5, rate=0.3, effect=0.2)
    lost = world.challenger & (np.arange(12_000) % 3 == 0)
    return Outcomes(*(getattr(world, each.name)[~lost] for each in fields(world)))


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
    assert mismatch_evidence(arm, np.full(len(arm), 0.5))[-1] >= log(1_000)


def test_evidence_once_shown_stays_shown():
    rng = np.random.default_rng(19)
    arm = rng.random(5_000) < np.repeat([0.6, 0.45], 2_500)
    evidence = mismatch_evidence(arm, np.full(5_000, 0.5))
    assert np.all(np.diff(evidence) >= 0)


def test_units_that_met_the_champion_after_the_challenger_put_the_rollout_on_hold():
    arm = np.arange(400) % 2 == 0
    faulty = outcomes_of(challenger=arm, both=arm & (np.arange(400) < 40))
    ramped = outcomes_of(challenger=arm, both=~arm & (np.arange(400) < 40))
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
    settings = CanaryConfig(max_units=6_000)
    decision = judge(world, settings=settings)
    assert decision.verdict == "roll back"
    assert "inconclusive" in decision.reason
    assert "champion stays" in decision.reason
    better = one_world(21, 6_000, share=0.3, rate=0.3, effect=0.2)
    assert judge(better, settings=settings).verdict == "promote"


def test_a_margin_promotes_what_is_no_worse_than_that():
    world = one_world(22, 20_000, share=0.5, rate=0.3)
    assert judge(world).verdict == "wait"
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
    decision = decide(comparison, settings=settings, phase="canary")
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
    assert {len(getattr(path, each.name)) for each in fields(Path)} == {50}
    assert (path.low[-1], path.high[-1]) == (result.low, result.high)
    assert path.first_shown_at[-1] == world.first_shown_at[-1]


def test_bounds_over_no_time_are_an_empty_path():
    empty = outcomes_of(challenger=[])
    assert len(bounds_over_time(empty, settings=SETTINGS, planned_units=5_000).low) == 0


def test_units_drawn_without_a_lot_say_nothing():
    world = one_world(28, 2_000, share=0.3, rate=0.3)
    more = replace(world, share=np.where(np.arange(2_000) < 500, 1.0, 0.3))
    seen = compare(more, settings=SETTINGS, planned_units=5_000)
    path = follow(more, settings=SETTINGS, planned_units=5_000)
    assert len(path.low) == 1_500
    assert np.isfinite(seen.estimate)
