"""The planned size of a rollout, against published sizes and simulation; and its traffic."""

from datetime import UTC, datetime, timedelta
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from canary_fixtures import draw_worlds, effect_of
from reactune.canary.power import (
    Step,
    challenger_units,
    measure,
    median_end,
    needed_drift,
    plan,
    read_traffic,
    units_for,
)
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.errors import CanaryError
from reactune.store.database import writing
from reactune.store.queries import upsert_scores

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
RAMP = (Step(0.05, 200), Step(0.10, 200), Step(0.25, 200), Step(0.50))


@pytest.mark.parametrize(
    ("share", "lift", "fixed"),
    [(0.05, 0.03, 38_556), (0.05, 0.02, 86_751), (0.10, 0.05, 7_326), (0.50, 0.03, 7_326)],
)
def test_a_plan_costs_some_more_than_a_test_that_may_be_read_once(share, lift, fixed):
    # Fixed-horizon sizes at base rate 30 %, 80 % power, two-sided 5 %; statistics: 38,556 at 5 %.
    once = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * 0.21 / (share * (1 - share) * lift**2)
    assert once == pytest.approx(fixed, rel=0.01)
    planned = plan(0.3, lift, steps=[Step(share)])
    assert 1.3 * fixed < planned.tips < 1.5 * fixed
    assert planned.likely_tips < 0.65 * fixed


def test_a_plan_is_shorter_than_one_without_an_end():
    # statistics: 73,831 tips for 3 points at 5 %, with bounds that never end.
    assert plan(0.3, 0.03, steps=[Step(0.05)]).tips < 0.8 * 73_831


def test_simulated_rollouts_have_the_planned_power_and_length():
    planned = plan(0.3, 0.06, steps=[Step(0.25)])
    rng = np.random.default_rng(1)
    challenger, tips, positives = draw_worlds(
        rng, 300, planned.units + 300, share=0.25, rate=0.3, effect=0.06
    )
    bounds = effect_of(tips, positives, challenger, 0.25, planned_units=planned.planned_units)
    ends = bounds.progress >= 1
    promoted = np.argmax(bounds.low > 0, axis=1)
    is_promoted = bounds.low[:, -1] > 0
    over = ends | bounds.is_futile | (bounds.low > 0)
    verdict = np.argmax(over, axis=1)
    power = (is_promoted & (promoted == verdict)).mean()
    assert 0.73 <= power <= 0.88
    assert np.median(verdict) == pytest.approx(planned.likely_units, rel=0.2)


def test_half_of_the_rollouts_without_a_lift_end_when_planned():
    rng = np.random.default_rng(2)
    planned = plan(0.3, 0.06, steps=[Step(0.5)])
    challenger, tips, positives = draw_worlds(rng, 300, planned.units + 200, share=0.5, rate=0.3)
    bounds = effect_of(tips, positives, challenger, 0.5, planned_units=planned.planned_units)
    over = (bounds.progress >= 1) | bounds.is_futile | (bounds.high < 0)
    assert np.median(np.argmax(over, axis=1)) == pytest.approx(planned.idle_units, rel=0.2)


def test_correlated_reactions_of_a_unit_cost_tips():
    alone = plan(0.3, 0.03, steps=[Step(0.1)])
    together = plan(0.3, 0.03, steps=[Step(0.1)], tips_per_unit=5, correlation=0.3)
    assert together.tips == pytest.approx(alone.tips * (1 + 4 * 0.3), rel=0.001)
    assert together.units * 5 == together.tips
    assert together.challenger_tips == pytest.approx(together.tips * 0.1, abs=1)


def test_explained_variance_costs_no_tips():
    alone = plan(0.3, 0.03, steps=[Step(0.1)])
    assert plan(0.3, 0.03, steps=[Step(0.1)], explained=0.25).tips == pytest.approx(
        0.75 * alone.tips, abs=1
    )


@pytest.mark.parametrize(("lift", "share"), [(0.05, 0.5), (0.02, 0.1), (0.1, 0.05)])
def test_a_smaller_lift_a_smaller_share_or_more_power_needs_more_tips(lift, share):
    tips = plan(0.3, lift, steps=[Step(share)]).tips
    assert plan(0.3, lift / 2, steps=[Step(share)]).tips > tips
    assert plan(0.3, lift, steps=[Step(share / 2)]).tips > tips
    assert plan(0.3, lift, steps=[Step(share)], power=0.9).tips > tips
    assert plan(0.3, lift, steps=[Step(share)], alpha=0.01).tips > tips


def test_a_ramp_takes_its_units_step_by_step():
    assert units_for(200 * 0.0475, RAMP) == 200
    assert units_for(200 * 0.0475 + 90 * 0.09, RAMP) == 290
    assert units_for(200 * (0.0475 + 0.09 + 0.1875) + 1_000 * 0.25, RAMP) == 1_600
    assert units_for(0.25 * 1_000, [Step(0.5)]) == 1_000
    assert challenger_units(1_600, RAMP) == 200 * 0.4 + 1_000 * 0.5
    assert challenger_units(250, RAMP) == 200 * 0.05 + 50 * 0.10


def test_planned_units_carry_at_the_first_share_the_information_of_the_ramp():
    planned = plan(0.3, 0.03, steps=RAMP)
    weight = planned.planned_units * 0.05 * 0.95
    assert units_for(weight, RAMP) == pytest.approx(planned.units, abs=1)
    assert planned.units < plan(0.3, 0.03, steps=[Step(0.05)]).units / 3


def test_the_needed_drift_is_little_more_than_that_of_a_single_reading():
    once = norm.ppf(1 - 0.03) + norm.ppf(0.8)
    assert once < needed_drift(0.05, 0.8) < 1.25 * once
    assert 0.2 < median_end(0.05, 0.0) < median_end(0.05, needed_drift(0.05, 0.8)) < 0.6


@pytest.mark.parametrize(
    "wrong",
    [
        {"baseline": 0.0}, {"baseline": 1.0}, {"lift": 0.0}, {"lift": 0.8}, {"lift": nan},
        {"lift": -0.1}, {"share": 0.0}, {"share": 1.0}, {"power": 1.0}, {"alpha": 0.0},
        {"alpha": 0.5}, {"tips_per_unit": 0.5}, {"tips_per_unit": inf}, {"correlation": 1.5},
        {"explained": 1.0},
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_plan_is_refused_with_the_value(wrong):
    values = {"baseline": 0.3, "lift": 0.03, "share": 0.1, **wrong}
    name, value = next(iter(wrong.items()))
    steps = [Step(values.pop("share"))]
    with pytest.raises(CanaryError, match=f"{name} = {value}"):
        plan(values.pop("baseline"), values.pop("lift"), steps=steps, **values)


def tip(tip_id, user, shown_at, **columns):
    return {
        "tip_id": tip_id, "user_key": user, "key_id": "k", "kind": "tip", "source": "llm",
        "context_json": "{}", "tip_content": "Walk", "created_at": shown_at, "shown_at": shown_at,
        "reaction": "snooze", "dwell_ms": 20_000,
    } | columns  # fmt: skip


def ago(**span):
    return NOW - timedelta(**span)


SHOWN = [
    tip("a", "u1", ago(days=4), reaction="done"),
    tip("b", "u1", ago(days=4, hours=-1)),
    # 23:59 and 00:01 UTC: two days.
    tip("c", "u2", datetime(2026, 3, 7, 23, 59, tzinfo=UTC), reaction="done"),
    tip("d", "u2", datetime(2026, 3, 8, 0, 1, tzinfo=UTC)),
    tip("e", "u2", datetime(2026, 3, 8, 0, 2, tzinfo=UTC)),
    tip("open", "u3", ago(seconds=100)),
    tip("old", "u3", ago(days=15)),
    tip("rule", "u3", ago(days=1), source="rule"),
    tip("unseen", "u3", ago(days=1)) | {"shown_at": None},
]


def traffic_in(engine, **settings):
    with engine.connect() as connection:
        return read_traffic(
            connection, labels=LabelConfig(), settings=CanaryConfig(**settings), now=NOW
        )


@pytest.mark.parametrize(("unit", "units"), [("user_day", 3), ("tip", 5), ("user", 2)])
def test_recent_traffic_is_counted_by_unit(engine, unit, units):
    assert traffic_in(engine, unit=unit) is None
    with writing(engine) as connection:
        upsert_scores(connection, SHOWN)
    traffic = traffic_in(engine, unit=unit)
    # From the first tip, four days ago, to the last one whose window is closed.
    assert traffic.units_per_day == pytest.approx(units / (4 - 180 / 86_400))
    assert traffic.tips_per_unit == pytest.approx(5 / units)
    assert traffic.baseline == pytest.approx(2 / 5)


@pytest.mark.parametrize("icc", [0.0, 0.3])
def test_the_correlation_within_a_unit_is_measured(icc):
    rng = np.random.default_rng(1)
    preference = (
        rng.beta(0.3 * (1 / icc - 1), 0.7 * (1 / icc - 1), 4_000) if icc else np.full(4_000, 0.3)
    )
    tips = rng.integers(1, 7, 4_000)
    users = [f"p{n}" for n in range(4_000)]
    traffic = measure(tips, rng.binomial(tips, preference), users, settings=CanaryConfig(), days=10)
    assert traffic.correlation == pytest.approx(icc, abs=0.03)
    # Every user has one unit, so the covariate explains nothing.
    assert traffic.explained == pytest.approx(0, abs=0.01)
    assert traffic.units_per_day == 400


def test_the_variance_that_the_covariate_explains_is_measured():
    rng = np.random.default_rng(2)
    preference = rng.choice([0.1, 0.9], 200)
    user = np.tile(np.arange(200), 40)
    liked = (rng.random(8_000) < preference[user]).astype(np.int64)
    traffic = measure(
        np.ones(8_000, np.int64), liked, [f"p{n}" for n in user],
        settings=CanaryConfig(own_weight=1.0), days=40,
    )  # fmt: skip
    # Variance 0.25 in all, 0.09 within a user; the covariate needs some units of each.
    assert traffic.explained == pytest.approx(0.64, abs=0.08)


def test_tips_whose_window_is_open_are_no_traffic_yet(engine):
    with writing(engine) as connection:
        upsert_scores(connection, SHOWN)
    # The tip of a hundred seconds ago counts once its window is shorter than that.
    usual, short = (traffic_in(engine, unit="tip", window_seconds=n) for n in (180, 60))
    days = [4 - seconds / 86_400 for seconds in (180, 60)]
    assert usual.units_per_day * days[0] == pytest.approx(5)
    assert short.units_per_day * days[1] == pytest.approx(6)


STEPS = st.lists(
    st.builds(Step, st.floats(0.01, 0.99), st.integers(0, 500)), min_size=1, max_size=5
)


@given(st.floats(0.01, 500), STEPS)
def test_units_are_the_fewest_that_reach_the_weight(weight, steps):
    def information(units):
        total = 0.0
        for step in steps[:-1]:
            here = min(units, step.units)
            total += here * step.share * (1 - step.share)
            units -= here
        return total + units * steps[-1].share * (1 - steps[-1].share)

    units = units_for(weight, steps)
    assert information(units) >= weight * (1 - 1e-6)
    assert information(units - 1) < weight * (1 + 1e-6)


@given(st.integers(0, 5_000), STEPS)
def test_challenger_units_lie_between_those_of_the_smallest_and_the_largest_share(units, steps):
    shares = [step.share for step in steps]
    on_challenger = challenger_units(units, steps)
    assert min(shares) * units - 1e-6 <= on_challenger <= max(shares) * units + 1e-6
