"""What is compared with what, and which splits are none."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from reactune.reward.comparisons import Reactions, compare, folds_by_user, with_new_texts
from reward_fixtures import example

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def reactions(*rows):
    """Of (user, context, label), in this order."""
    return Reactions(
        [example(n, user=u, context=c, label=label) for n, (u, c, label) in enumerate(rows)]
    )


def pairs_of(comparisons):
    return sorted(zip(comparisons.first.tolist(), comparisons.second.tolist(), strict=True))


def test_tips_of_one_context_are_compared_with_each_other_and_the_rest_with_none():
    some = reactions(
        ("a", "x", True), ("b", "x", False), ("c", "x", False), ("a", "y", True), ("b", "z", False)
    )  # fmt: skip
    found = compare(some, np.arange(5))
    assert pairs_of(found) == [(0, 1), (0, 2), (3, -1), (4, -1)]
    assert found.weight.tolist() == [1, 1, 1, 1]  # two comparisons of three tips
    assert dict(zip(found.first.tolist(), found.outcome.tolist(), strict=True)) == {
        0: 1, 3: 1, 4: 0,
    }  # fmt: skip


def test_what_a_person_saw_within_a_minute_is_compared_before_what_others_saw():
    some = reactions(
        ("a", "x", True), ("a", "x", False), ("b", "x", True), ("b", "x", False),
        ("b", "x", True), ("c", "x", False), ("c", "y", True),
    )  # fmt: skip
    minutes = (0, 0, 0, 0, 9, 9, 9)
    seen = Reactions(
        [
            replace(each, created_at=NOON + timedelta(minutes=minute, seconds=n))
            for n, (each, minute) in enumerate(zip(some.examples, minutes, strict=True))
        ]
    )
    # (2, 1) and (0, 3) are of two people, each of whom saw both; 4 and 5 had nothing to compare.
    assert pairs_of(compare(seen, np.arange(7))) == [(0, 1), (2, 3), (4, 5), (6, -1)]


def test_a_context_weighs_as_its_independent_comparisons():
    some = reactions(*[("a", "x", n < 3) for n in range(6)])
    found = compare(some, np.arange(6))
    assert len(found) == 9
    assert found.weight.sum() == pytest.approx(5)


def test_only_the_chosen_reactions_are_compared():
    some = reactions(("a", "x", True), ("b", "x", False))
    assert pairs_of(compare(some, np.array([1]))) == [(1, -1)]


def test_differences_leave_out_what_there_is_none_of():
    some = reactions(("a", "x", True), ("b", "x", False), ("c", "y", False))
    found = compare(some, np.arange(3))
    assert found.differences(np.array([5.0, 2.0, 7.0])).tolist() == [3, 7]


def test_no_user_is_in_two_folds_and_folds_are_alike():
    some = reactions(*[(f"user-{n % 23}", str(n), True) for n in range(230)])
    folds = folds_by_user(some, 5)
    of_user = {}
    for user, fold in zip(some.users, folds.tolist(), strict=True):
        of_user.setdefault(user, set()).add(fold)
    assert all(len(found) == 1 for found in of_user.values())
    assert sorted(np.bincount(folds).tolist()) == [40, 40, 50, 50, 50]


def test_a_text_that_was_learned_from_is_not_judged():
    some = Reactions(
        [
            example(0, user="a", tip="Drink a glass of water!"),
            example(1, user="b", tip="drink a  glass of WATER"),
            example(2, user="b", tip="Sleep."),
        ]
    )
    assert with_new_texts(some, np.array([1, 2]), np.array([0])).tolist() == [2]


def test_a_split_by_row_is_refused():
    some = reactions(("a", "x", True), ("a", "y", False), ("b", "z", True))
    with pytest.raises(ValueError, match="1 users are in both sides"):
        with_new_texts(some, np.array([1, 2]), np.array([0]))


def test_the_past_of_a_user_is_what_came_before():
    some = Reactions(
        [example(n, user="a", label=True, hours=n) for n in range(4)]
        + [example(9, user="b", label=False)]
    )
    past = some.circumstances[:, -1]
    assert past[0] == past[4] == 0  # nothing is known of either yet
    assert (np.diff(past[:4]) > 0).all()


def test_what_came_at_one_moment_is_not_earlier():
    """Else the order of rows of one moment would explain their labels."""
    some = Reactions([example(n, user="a", label=n < 2, hours=n // 4) for n in range(5)])
    past = some.circumstances[:, -1]
    assert past[:4].tolist() == [0, 0, 0, 0]
    assert past[4] == pytest.approx(np.log((2 + 4 * 0.4) / (2 + 4 * 0.6)) - np.log(0.4 / 0.6))
