"""Which candidate is shown, and with which chance."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.service.choice import FLOOR, TEMPERATURE, Candidate, chances, choose, first_passed

BOUNDS = st.lists(st.floats(-40, 40), min_size=1, max_size=16)
DRAWS = np.linspace(0, 1, 2_001)[:-1] + 0.00025


def passed(*texts):
    return [Candidate(text) for text in texts]


def choose_by(bounds, texts, draw):
    return choose(passed(*texts), np.array(bounds) + 1, np.array(bounds), draw=draw)


@given(BOUNDS)
def test_the_chances_of_different_texts_sum_to_one_and_follow_the_bounds(bounds):
    found = chances(np.array(bounds), [str(place) for place in range(len(bounds))])
    assert found.sum() == pytest.approx(1)
    assert found.min() >= FLOOR / len(bounds) * (1 - 1e-9)
    order = np.argsort(bounds, kind="stable")
    assert (np.diff(found[order]) >= -1e-12).all()


def test_a_difference_in_bounds_is_a_ratio_of_the_soft_part_of_the_chances():
    low, high = chances(np.array([-0.3, 0.1]), ["a", "b"]) - FLOOR / 2
    assert high / low == pytest.approx(math.exp(0.4 / TEMPERATURE))


def test_each_candidate_is_chosen_as_often_as_its_chance_says():
    bounds, texts = [0.2, -0.1, 0.4], ["a", "b", "c"]
    chosen = [choose_by(bounds, texts, draw).chosen for draw in DRAWS]
    expected = chances(np.array(bounds), texts)
    shares = np.bincount(chosen, minlength=3) / len(DRAWS)
    assert shares == pytest.approx(expected, abs=1 / len(DRAWS))


def test_equal_texts_are_one_choice_whose_chance_is_the_sum():
    bounds, texts = [0.2, 0.0, 0.2], ["a", "b", "a"]
    choices = [choose_by(bounds, texts, draw) for draw in DRAWS]
    assert {each.chosen for each in choices} == {0, 1}
    alike = chances(np.array(bounds), ["a", "b", "c"])
    first = choices[0].candidates[0]
    assert first.chance == choices[0].candidates[2].chance == pytest.approx(alike[0] + alike[2])
    share = np.mean([each.chosen == 0 for each in choices])
    assert share == pytest.approx(first.chance, abs=1 / len(DRAWS))


@given(BOUNDS, st.floats(0, 1))
def test_any_draw_chooses_a_candidate_that_has_a_chance(bounds, draw):
    choice = choose_by(bounds, [str(place % 5) for place in range(len(bounds))], draw)
    assert 0 < choice.chance <= 1 + 1e-9
    assert choice.problem is None


def test_refused_texts_have_no_reward_and_are_never_chosen():
    candidates = [Candidate(verdict="overlong"), Candidate("a"), Candidate(verdict="empty")]
    for draw in (0.0, 0.5, 0.999):
        choice = choose(candidates, np.array([0.5]), np.array([0.1]), draw=draw)
        assert (choice.chosen, choice.chance) == (1, 1.0)
    assert choice.candidates[0] == candidates[0]
    assert (choice.candidates[1].reward, choice.candidates[1].bound) == (0.5, 0.1)


def test_without_rewards_the_first_that_passed_is_shown_for_certain():
    choice = first_passed([Candidate(verdict="empty"), Candidate("a"), Candidate("b")], "timeout")
    assert (choice.chosen, choice.chance, choice.problem) == (1, 1.0, "timeout")
    assert [each.chance for each in choice.candidates] == [0.0, 1.0, 0.0]
