"""How many tips until a verdict: against published sizes, simulation and what must be so."""

from math import inf, nan

import numpy as np
import pytest
from scipy.stats import norm

from canary_fixtures import draw_worlds, effect_of
from reactune.canary.power import Step, challenger_units, median_end, needed_drift, plan, units_for
from reactune.errors import CanaryError

RAMP = (Step(0.05, 200), Step(0.10, 200), Step(0.25, 200), Step(0.50))


@pytest.mark.parametrize(
    ("share", "lift", "fixed"),
    [(0.05, 0.03, 38_556), (0.05, 0.02, 86_751), (0.10, 0.05, 7_326), (0.50, 0.03, 7_326)],
)
def test_a_plan_costs_some_more_than_a_test_that_may_be_read_once(share, lift, fixed):
    # Fixed-horizon sizes at base rate 30 %, 80 % power, two-sided 5 %; statistics: 38,556 at 5 %.
    once = (norm.ppf(0.975) + norm.ppf(0.8)) ** 2 * 0.21 / (share * (1 - share) * lift**2)
    assert once == pytest.approx(fixed, rel=0.01)
    found = plan(0.3, lift, steps=[Step(share)])
    assert 1.3 * fixed < found.tips < 1.5 * fixed
    assert found.likely_tips < 0.65 * fixed


def test_a_plan_is_shorter_than_one_that_may_be_read_for_ever():
    # statistics: 73,831 tips for 3 points at 5 %, with bounds that never end.
    assert plan(0.3, 0.03, steps=[Step(0.05)]).tips < 0.8 * 73_831


def test_the_planned_rollout_finds_the_planned_lift_about_as_often_and_as_soon_as_planned():
    planned = plan(0.3, 0.06, steps=[Step(0.25)])
    rng = np.random.default_rng(1)
    challenger, tips, positives = draw_worlds(
        rng, 300, planned.units + 300, share=0.25, rate=0.3, effect=0.06
    )
    seen = effect_of(tips, positives, challenger, 0.25, planned_units=planned.planned_units)
    ends = seen.progress >= 1
    promoted = np.argmax(seen.low > 0, axis=1)
    is_promoted = seen.low[:, -1] > 0
    over = ends | seen.is_futile | (seen.low > 0)
    verdict = np.argmax(over, axis=1)
    found = (is_promoted & (promoted == verdict)).mean()
    assert 0.73 <= found <= 0.88
    assert np.median(verdict) == pytest.approx(planned.likely_units, rel=0.2)


def test_half_of_the_rollouts_without_a_lift_end_when_planned():
    rng = np.random.default_rng(2)
    planned = plan(0.3, 0.06, steps=[Step(0.5)])
    challenger, tips, positives = draw_worlds(rng, 300, planned.units + 200, share=0.5, rate=0.3)
    seen = effect_of(tips, positives, challenger, 0.5, planned_units=planned.planned_units)
    over = (seen.progress >= 1) | seen.is_futile | (seen.high < 0)
    assert np.median(np.argmax(over, axis=1)) == pytest.approx(planned.idle_units, rel=0.2)


def test_reactions_of_one_unit_that_resemble_each_other_cost_tips():
    alone = plan(0.3, 0.03, steps=[Step(0.1)])
    together = plan(0.3, 0.03, steps=[Step(0.1)], tips_per_unit=5, correlation=0.3)
    assert together.tips == pytest.approx(alone.tips * (1 + 4 * 0.3), rel=0.001)
    assert together.units * 5 == together.tips
    assert together.challenger_tips == pytest.approx(together.tips * 0.1, abs=1)


def test_what_is_foreseen_costs_none():
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


def test_planned_units_tell_at_the_first_share_what_the_ramp_tells():
    found = plan(0.3, 0.03, steps=RAMP)
    weight = found.planned_units * 0.05 * 0.95
    assert units_for(weight, RAMP) == pytest.approx(found.units, abs=1)
    assert found.units < plan(0.3, 0.03, steps=[Step(0.05)]).units / 3


def test_the_needed_drift_is_little_more_than_that_of_a_single_look():
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
def test_a_plan_that_cannot_be_is_refused_with_the_value(wrong):
    values = {"baseline": 0.3, "lift": 0.03, "share": 0.1, **wrong}
    name, value = next(iter(wrong.items()))
    steps = [Step(values.pop("share"))]
    with pytest.raises(CanaryError, match=f"{name} = {value}"):
        plan(values.pop("baseline"), values.pop("lift"), steps=steps, **values)
