"""The judge on features whose true rewards are known."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from reactune.generation.judge import beside, fit_judge
from reactune.records import Example
from reactune.reward.comparisons import Reactions

WIDTH = 12


def reactions(truth, *, users=60, each=8, seed=1):
    """People who like by a log-odds of `features @ truth`, and the features of what they saw."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(users * each, WIDTH)).astype(np.float32)
    liked = rng.random(len(values)) < 1 / (1 + np.exp(-values @ truth))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    examples = [
        Example(
            tip_id=f"tip-{n}",
            user_key=f"user-{n // each}",
            kind="break",
            context_json=f'{{"n":{n}}}',
            instruction="",
            input="",
            prompt="",
            tip=f"Tip number {n}.",
            label=bool(liked[n]),
            dwell_ms=1,
            created_at=start + timedelta(minutes=n),
        )
        for n in range(len(values))
    ]
    return Reactions(examples), values


def tips(direction, strength, *, prompts=60, count=2, seed=5):
    rng = np.random.default_rng(seed)
    shape = (prompts, count, WIDTH)
    return list((rng.normal(size=shape) + strength * direction).astype(np.float32))


@pytest.fixture(scope="module")
def truth():
    direction = np.zeros(WIDTH)
    direction[:3] = 1.0
    return direction


@pytest.fixture(scope="module")
def judge(truth):
    found = fit_judge(*reactions(truth))
    assert found is not None
    return found


USERS = [f"user-{n}" for n in range(60)]


def test_a_generator_whose_tips_people_like_more_wins_with_certainty(judge, truth):
    found = beside(judge, tips(truth, 0.5), tips(truth, 0.0, seed=6), USERS, alpha=0.05)
    assert found.win_rate.low > 0.5
    assert found.gain.low > 0
    # Three features, each half a deviation better.
    assert found.gain.low < 1.5 < 2.5 * found.gain.high


def test_the_other_way_round_the_difference_has_the_other_sign(judge, truth):
    better, worse = tips(truth, 0.5), tips(truth, 0.0, seed=6)
    one = beside(judge, better, worse, USERS, alpha=0.05)
    other = beside(judge, worse, better, USERS, alpha=0.05)
    assert other.gain.value == pytest.approx(-one.gain.value)
    assert other.win_rate.value == pytest.approx(1 - one.win_rate.value)


def test_tips_that_differ_in_what_nobody_cares_about_are_not_certainly_better(judge):
    indifferent = np.zeros(WIDTH)
    indifferent[8] = 1.0
    found = beside(judge, tips(indifferent, 0.7), tips(indifferent, 0.0, seed=6), USERS, alpha=0.05)
    assert found.gain.low < 0 < found.gain.high


def test_where_reactions_are_coin_flips_there_is_no_judge_and_with_too_few_people_neither(truth):
    assert fit_judge(*reactions(np.zeros(WIDTH))) is None
    assert fit_judge(*reactions(truth, users=3)) is None


def test_prompts_without_a_tip_are_left_out_and_of_none_nothing_is_said(judge, truth):
    some = tips(truth, 0.5, prompts=3)
    none = [np.zeros((0, WIDTH), np.float32)] * 3
    assert beside(judge, none, some, USERS[:3], alpha=0.05) is None
    left = beside(judge, [some[0], none[0], none[0]], some, USERS[:3], alpha=0.05)
    assert left.win_rate.value == pytest.approx(0.5)


def test_false_certainty_is_as_rare_as_alpha_says_where_labels_say_nothing(truth, monkeypatch):
    """The judge of coin flips would be refused; asked all the same, it is not sure too often."""
    from reactune.generation import judge as module
    from reactune.reward.quality import Accuracy

    monkeypatch.setattr(Accuracy, "is_above_chance", True)
    monkeypatch.setattr(module, "REFITS", 60)
    better, worse = tips(truth, 0.6, prompts=30), tips(truth, 0.0, prompts=30, seed=6)
    certain = 0
    for seed in range(40):
        found = fit_judge(*reactions(np.zeros(WIDTH), users=30, each=4, seed=seed))
        if found is not None:
            certain += beside(found, better, worse, USERS[:30], alpha=0.2).gain.low > 0
    # One side of 20 %: four in forty; eleven or more are less likely than 1 in 1,000.
    assert certain <= 10
