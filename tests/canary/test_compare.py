"""The comparison of two arms, the verdict on it, and the next share: on simulated worlds."""

import json
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from math import inf, log

import numpy as np
import pytest

from canary_fixtures import comparison_of, one_world, outcomes_of, some_of
from reactune.canary.compare import (
    age_days,
    bounds_over_time,
    compare,
    decide,
    next_share,
    randomised,
    trajectory,
)
from reactune.canary.guardrails import Guardrail
from reactune.canary.outcomes import KindCounts
from reactune.config.sections import CanaryConfig

SETTINGS = CanaryConfig(planned_units=5_000)


def judge(outcomes, *, settings=SETTINGS, phase="canary", age_days=30.0, planned=None):
    comparison = compare(
        outcomes, settings=settings, planned_units=planned or settings.planned_units
    )
    return decide(comparison, settings=settings, phase=phase, age_days=age_days)


def test_at_one_share_the_estimate_is_the_inverse_propensity_one():
    world = one_world(1, 900, share=0.2, rate=0.3, effect=0.1, tips=3)
    earlier_positives = np.concatenate([[0], np.cumsum(world.positives)[:-1]])
    earlier_tips = np.concatenate([[0], np.cumsum(world.tips)[:-1]])
    rate = (earlier_positives + 1) / (earlier_tips + 2)
    weights = np.where(world.challenger, 1 / 0.2, -1 / 0.8)
    phi = (world.positives - world.tips * rate) * weights
    result = compare(world, settings=SETTINGS, planned_units=5_000)
    assert result.estimate == pytest.approx(phi.sum() / world.tips.sum())


def test_the_trajectory_agrees_with_the_comparison_at_every_length():
    world = one_world(4, 900, share=np.repeat([0.2, 0.5], 450), rate=0.4, tips=2)
    path = trajectory(world, settings=SETTINGS, planned_units=5_000)
    for units in (1, 60, 451, 900):
        now = asdict(compare(some_of(world, slice(units)), settings=SETTINGS, planned_units=5_000))
        for name in ("estimate", "low", "high", "progress", "is_futile"):
            assert now[name] == pytest.approx(getattr(path.effect, name)[units - 1])
        assert now["mismatch"] == pytest.approx(path.mismatch[units - 1])


def test_a_ramp_through_a_changing_audience_does_not_pass_for_an_effect():
    # Simpson: the challenger gets most of its traffic when all rates are low.
    share = np.repeat([0.05, 0.5], 4_000)
    world = one_world(5, 8_000, share=share, rate=np.repeat([0.6, 0.2], 4_000))
    result = compare(world, settings=SETTINGS, planned_units=5_000)
    assert result.challenger_rate - result.champion_rate < -0.15
    assert result.low < 0 < result.high
    assert abs(result.estimate) < 0.03


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


@pytest.mark.parametrize(("effect", "verdict"), [(0.15, "promote"), (0.0, "roll back")])
def test_under_propose_the_same_verdict_is_proposed_and_the_share_stays(effect, verdict):
    world = one_world(12, 6_000, share=0.1, rate=0.4, effect=effect, tips=3, icc=0.2)
    settings = CanaryConfig(planned_units=5_000, decides="propose")
    alone, asked = judge(world), judge(world, settings=settings)
    command = {"promote": "promote", "roll back": "rollback"}[verdict]
    assert alone.verdict == verdict
    assert asked.verdict == "wait"
    assert asked.reason == (f"{verdict} is proposed: {alone.reason}; `reactune {command}` does it")
    assert asked.numbers == alone.numbers
    assert step(world, 0.1, settings) is None


def test_shown_harm_is_rolled_back_under_propose_as_well():
    settings = CanaryConfig(planned_units=5_000, decides="propose")
    worse = one_world(12, 6_000, share=0.1, rate=0.4, effect=-0.15, tips=3, icc=0.2)
    assert judge(worse, settings=settings) == judge(worse)
    assert judge(worse, settings=settings).verdict == "roll back"
    arm = np.arange(400) % 2 == 0
    dismissed = outcomes_of(challenger=arm, quick_dismissals=arm)
    assert judge(dismissed, settings=settings).verdict == "roll back"


def test_under_propose_the_share_grows_until_there_is_a_verdict():
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


def test_a_challenger_without_a_single_positive_is_rolled_back():
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


def test_units_that_met_the_champion_after_the_challenger_put_the_rollout_on_hold():
    arm = np.arange(400) % 2 == 0
    faulty = outcomes_of(challenger=arm, both_arms=arm & (np.arange(400) < 40))
    ramped = outcomes_of(challenger=arm, both_arms=~arm & (np.arange(400) < 40))
    assert judge(faulty).is_hold
    assert not judge(ramped).is_hold
    assert compare(ramped, settings=SETTINGS, planned_units=5_000).moved_in == 20


def test_a_challenger_with_many_fallbacks_is_not_promoted():
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


def test_without_units_the_trajectory_is_empty():
    empty = outcomes_of(challenger=[])
    assert len(bounds_over_time(empty, settings=SETTINGS, planned_units=5_000).effect.low) == 0


def test_units_that_were_not_randomised_do_not_count():
    world = one_world(28, 2_000, share=0.3, rate=0.3)
    more = replace(world, share=np.where(np.arange(2_000) < 500, 1.0, 0.3))
    seen = compare(more, settings=SETTINGS, planned_units=5_000)
    path = trajectory(more, settings=SETTINGS, planned_units=5_000)
    assert len(path.effect.low) == 1_500
    assert np.isfinite(seen.estimate)


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


def test_a_futile_rollout_ends_before_its_plan():
    world = one_world(33, 3_000, share=0.5, rate=0.3, effect=-0.02)
    early = judge(world, age_days=1, planned=6_000)
    late = judge(world, planned=6_000)
    assert early.verdict == "wait"
    assert late.verdict == "roll back"
    assert "futile, a promotion is too unlikely" in late.reason
    assert 0.3 < late.numbers["progress"] < 0.7


def test_bounds_are_constant_after_the_planned_end():
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


def test_a_burn_in_longer_than_the_plan_leaves_one_reading_at_its_end():
    world = one_world(36, 2_000, share=0.1, rate=0.3, effect=0.6)
    path = trajectory(world, settings=SETTINGS, planned_units=100)
    first = int(np.argmax(path.effect.is_ready))
    assert first > 100
    assert path.effect.progress[first] == 1
    assert path.effect.low[first] > 0
    assert judge(world, planned=100).verdict == "promote"


def test_bounds_that_contradict_earlier_ones_put_the_rollout_on_hold():
    better = one_world(37, 4_000, share=0.5, rate=0.4, effect=0.25)
    worse = one_world(38, 9_000, share=0.5, rate=0.6, effect=-0.4)
    both = outcomes_of(
        challenger=np.concatenate([better.challenger, worse.challenger]),
        positives=np.concatenate([better.positives, worse.positives]),
    )
    decision = judge(both, planned=40_000)
    assert decision.is_hold
    assert "contradict earlier ones" in decision.reason


def decided(phase="canary", age_days=30.0, settings=SETTINGS, **values):
    """The decision on a comparison with these values, undecided otherwise."""
    return decide(comparison_of(**values), settings=settings, phase=phase, age_days=age_days)


BROKEN = Guardrail("snoozes", 0.1, 0.3, log_e_value=9.0, alarm=7.0)
INTACT = Guardrail("snoozes", 0.1, 0.3, log_e_value=6.9, alarm=7.0)


@pytest.mark.parametrize(
    ("values", "verdict", "is_hold", "reason"),
    [
        ({}, "wait", False, "undecided: -5.00 to +5.00 points after 2,000 units"),
        ({"is_ready": False, "low": -inf, "high": inf}, "wait", False, "too few reactions"),
        ({"low": 0.001}, "promote", False, "the challenger is better: +0.10 to +5.00 points"),
        ({"high": -0.001}, "roll back", False, "the challenger is worse: -5.00 to -0.10 points"),
        ({"high": -0.001, "is_ready": False}, "roll back", False, "the challenger is worse"),
        ({"low": 0.06}, "wait", True, "hold: the bounds contradict earlier ones"),
        ({"guardrails": (BROKEN,)}, "roll back", False, "harm is shown: snoozes 30.0% instead of"),
        ({"guardrails": (INTACT,)}, "wait", False, "undecided"),
        ({"guardrails": (BROKEN,), "low": 0.01}, "roll back", False, "harm is shown"),
        ({"mismatch": 7.0, "low": 0.01}, "wait", True, "hold: sample-ratio mismatch: 1,000 of 2,0"),
        ({"mismatch": 7.0, "guardrails": (BROKEN,)}, "wait", True, "hold: sample-ratio mismatch"),
        ({"mismatch": 6.9}, "wait", False, "undecided"),
        ({"moved_away": 20}, "wait", True, "hold: 20 units met the champion after"),
        ({"moved_away": 19}, "wait", False, "undecided"),
        ({"moved_away": 9, "units": 100}, "wait", False, "undecided"),
        ({"low": 0.01, "fallback_share": 0.21}, "wait", True, "hold: the champion answered 21%"),
        ({"low": 0.01, "fallback_share": 0.2}, "promote", False, "the challenger is better"),
        ({"progress": 1.0}, "roll back", False, "inconclusive after 2,000 units, the champion"),
        ({"is_futile": True}, "roll back", False, "inconclusive after 2,000 units, the champion"),
        ({"units": 50_000}, "roll back", False, "inconclusive after 50,000 units"),
        ({"units": 49_999}, "wait", False, "undecided"),
    ],
    ids=str,
)
def test_the_verdict_follows_the_table_in_its_order(values, verdict, is_hold, reason):
    decision = decided(**values)
    assert (decision.verdict, decision.is_hold) == (verdict, is_hold)
    assert decision.reason.startswith(reason)


def test_a_young_rollout_is_neither_promoted_nor_given_up_but_rolled_back_for_harm():
    assert decided(age_days=6.9, low=0.01).verdict == "wait"
    assert decided(age_days=6.9, is_futile=True).verdict == "wait"
    assert decided(age_days=0.0, guardrails=(BROKEN,)).verdict == "roll back"
    assert decided(age_days=0.0, high=-0.01).verdict == "roll back"


def test_a_promotion_that_only_waits_for_its_age_is_not_cut_by_max_units():
    decision = decided(age_days=1.0, low=0.01, units=60_000)
    assert decision.verdict == "wait"
    assert decision.reason.endswith("promoted when the rollout is 7 days old")


def test_a_holdback_is_not_ended_as_futile_but_at_its_planned_end():
    assert decided(phase="holdback", is_futile=True).verdict == "wait"
    assert decided(phase="holdback", progress=1.0).verdict == "roll back"


def test_the_alarm_level_of_the_sample_ratio_is_a_setting():
    strict, lenient = CanaryConfig(srm_alpha=0.01), CanaryConfig(srm_alpha=0.0001)
    assert decided(settings=strict, mismatch=log(500)).is_hold
    assert not decided(settings=lenient, mismatch=log(500)).is_hold
    assert decided(settings=lenient, mismatch=log(10_000)).is_hold


def test_numbers_of_a_decision_are_json_under_their_stored_names():
    numbers = decided(low=-inf, guardrails=(INTACT,)).numbers
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["low"] is None
    assert numbers["is_hopeless"] is False
    assert numbers["units_at_share"] == {"0.5": 2_000}
    assert numbers["guardrails"] == [
        {"name": "snoozes", "champion_rate": 0.1, "challenger_rate": 0.3, "evidence": 6.9,
         "alarm": 7.0}
    ]  # fmt: skip
    assert numbers["mismatch_alarm"] == pytest.approx(log(1_000))
    assert (numbers["alpha"], numbers["promotion_alpha"]) == (0.05, pytest.approx(0.03))
    assert numbers["age_days"] == 30.0


def test_the_units_that_a_step_of_the_ramp_needs_are_a_setting():
    comparison = comparison_of(units_at_share={0.05: 99})
    decision = decided()
    few, more = CanaryConfig(min_units_per_step=99), CanaryConfig(min_units_per_step=100)
    assert next_share(comparison, decision, share=0.05, settings=few) == 0.10
    assert next_share(comparison, decision, share=0.05, settings=more) is None


def test_a_share_between_two_buckets_is_counted_as_it_was_routed():
    comparison = comparison_of(units_at_share={0.3333: 300})
    settings = CanaryConfig(ramp=(0.5,))
    assert next_share(comparison, decided(), share=1 / 3, settings=settings) == 0.5


def test_the_age_is_that_of_the_first_randomised_unit():
    world = outcomes_of(challenger=[True, False, True], share=[1.0, 0.5, 0.5])
    # Units come a minute apart from the first of March on; the first was not randomised.
    now = datetime(2026, 3, 2, 0, 1, tzinfo=UTC)
    assert age_days(world, now=now) == pytest.approx(1.0)
    assert age_days(world, now=now + timedelta(hours=12)) == pytest.approx(1.5)
    assert age_days(outcomes_of(challenger=[]), now=now) == 0.0


def test_randomised_units_keep_their_kinds():
    kinds = {
        "focus": KindCounts(np.array([0, 2]), np.array([1, 3]), np.array([0, 2])),
        "move": KindCounts(np.array([0]), np.array([1]), np.array([1])),
    }
    world = outcomes_of(challenger=[True, False, True], share=[1.0, 0.5, 0.5], kinds=kinds)
    units = randomised(world)
    assert units.unit_key.tolist() == ["u1", "u2"]
    # The kind that only the first unit had is gone, and the third unit is the second now.
    assert list(units.kinds) == ["focus"]
    counts = units.kinds["focus"]
    assert (counts.unit.tolist(), counts.tips.tolist(), counts.positives.tolist()) == (
        [1],
        [3],
        [2],
    )


def test_a_smaller_alpha_gives_wider_bounds_and_later_verdicts():
    world = one_world(40, 3_000, share=0.5, rate=0.3, effect=0.06)
    usual, strict = (
        compare(world, settings=CanaryConfig(alpha=alpha), planned_units=5_000)
        for alpha in (0.05, 0.001)
    )
    assert strict.low < usual.low <= usual.high < strict.high
    assert strict.estimate == usual.estimate


def test_a_larger_burn_in_is_a_setting():
    world = one_world(43, 300, share=0.5, rate=0.3)
    settings = CanaryConfig(min_positives=10, min_negatives=10)
    assert compare(world, settings=settings, planned_units=5_000).is_ready
    for name in ("min_positives", "min_negatives"):
        more = settings.model_copy(update={name: 200})
        assert not compare(world, settings=more, planned_units=5_000).is_ready
