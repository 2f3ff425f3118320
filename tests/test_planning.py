from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from canary_fixtures import draw_worlds
from reactune.canary.evidence import effect_bounds
from reactune.canary.planning import plan
from reactune.errors import CanaryError


def test_the_plan_is_the_published_one():
    # statistics: base rate 30 %, 80 % power, two-sided alpha .05, 3 points at 5 %.
    assert plan(0.3, 0.03, share=0.05, alpha=0.05, power=0.8).tips == 73_831


@pytest.mark.parametrize(
    ("share", "lift", "published"),
    [
        (0.05, 0.02, 144_896), (0.05, 0.03, 64_398), (0.05, 0.05, 23_184),
        (0.10, 0.02, 76_473), (0.10, 0.03, 33_988), (0.10, 0.05, 12_236),
        (0.50, 0.02, 27_531), (0.50, 0.03, 12_236), (0.50, 0.05, 4_405),
    ],
)  # fmt: skip
def test_two_sided_at_twice_alpha_is_the_published_one_sided_plan(share, lift, published):
    # The published table uses a closed-form upper bound of the one-sided multiplier: +0.5 %.
    tips = plan(0.3, lift, share=share, alpha=0.10, power=0.8).tips
    assert published * 0.99 <= tips <= published


def test_the_planned_rollout_finds_the_planned_lift_about_as_often_as_planned():
    planned = plan(0.3, 0.06, share=0.25, power=0.8)
    rng = np.random.default_rng(1)
    challenger, tips, positives = draw_worlds(
        rng, 300, planned.units, share=0.25, rate=0.3, effect=0.06
    )
    _, low, _ = effect_bounds(
        tips, positives, challenger, np.full(tips.shape, 0.25), alpha=0.05,
        planned_units=planned.units,
    )  # fmt: skip
    found = (low > 0).any(axis=1).mean()
    assert 0.75 <= found <= 0.95


def test_reactions_of_one_unit_that_resemble_each_other_cost_tips():
    alone = plan(0.3, 0.03, share=0.1)
    together = plan(0.3, 0.03, share=0.1, tips_per_unit=5, correlation=0.3)
    assert together.tips == pytest.approx(alone.tips * (1 + 4 * 0.3), rel=0.001)
    assert together.units * 5 == together.tips
    assert together.challenger_tips == pytest.approx(together.tips * 0.1, abs=1)


@given(st.floats(0.05, 0.9), st.floats(0.01, 0.05), st.floats(0.01, 0.5))
def test_a_smaller_lift_or_a_smaller_share_needs_more_tips(baseline, lift, share):
    tips = plan(baseline, lift, share=share).tips
    assert plan(baseline, lift / 2, share=share).tips > tips
    assert plan(baseline, lift, share=share / 2).tips > tips
    assert plan(baseline, lift, share=share, power=0.9).tips > tips


@pytest.mark.parametrize(
    "wrong",
    [
        {"baseline": 0.0}, {"baseline": 1.0}, {"lift": 0.0}, {"lift": 0.8}, {"lift": nan},
        {"share": 0.0}, {"share": 1.0}, {"power": 1.0}, {"alpha": 0.0}, {"alpha": 0.5},
        {"tips_per_unit": 0.5}, {"tips_per_unit": inf}, {"correlation": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_with_the_value(wrong):
    values = {"baseline": 0.3, "lift": 0.03, "share": 0.1, **wrong}
    name, value = next(iter(wrong.items()))
    with pytest.raises(CanaryError, match=f"{name} = {value}"):
        plan(values.pop("baseline"), values.pop("lift"), **values)
