"""Reactions that no person gave: what the rules leave out, and what they must not."""

from datetime import timedelta

import pytest

from places import BENCH
from reactune.config.sections import DatasetConfig

SETTINGS = DatasetConfig()


@pytest.fixture
def humans(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import humans

    return humans


def test_simulated_people_stay_and_planted_machines_go(humans):
    found = humans.measure(20, seed=3)
    for sort, counts in found.items():
        assert counts["people"] > 1_000
        assert counts["people left out"] <= 0.001 * counts["people"], sort
        assert counts["machines left out"] >= 0.99 * counts["machines"] > 0, sort


def someone(humans, name, seconds, dwell_ms, *, liked=False, kind="focus"):
    """Reactions at so many seconds after the start, each with its dwell time."""
    return [
        humans.row(name, kind, humans.FIRST_DAY + timedelta(seconds=at), liked, dwell)
        for at, dwell in zip(seconds, dwell_ms, strict=True)
    ]


def others(humans, count=20, dwell_ms=range(900, 4_900, 200)):
    """People whose dwell times differ, and who come far apart."""
    return [
        each
        for number in range(count)
        for each in someone(
            humans, f"person-{number}", range(0, 20 * 600, 600), list(dwell_ms)
        )
    ]  # fmt: skip


def out(humans, rows, sort, **settings):
    found = humans.left_out(rows, SETTINGS.model_copy(update=settings))[sort]
    return [each["tip_id"] for each in rows if each["tip_id"] in found]


@pytest.mark.parametrize(("count", "expected"), [(20, 0), (21, 21)])
def test_a_burst_is_more_than_the_limit_in_any_window(humans, count, expected):
    slow = someone(humans, "ann", [1_000, 2_000], [1_500, 3_000])
    fast = someone(humans, "ann", [3_000 + 2.9 * n for n in range(count)], range(500, 500 + count))
    found = out(humans, [*slow, *fast], "fast")
    assert found == [each["tip_id"] for each in fast][:expected]


def test_a_burst_of_one_user_is_nobody_elses(humans):
    times = [5 * n for n in range(12)]
    rows = [*someone(humans, "ann", times, range(500, 512)),
            *someone(humans, "bo", [at + 1 for at in times], range(500, 512))]  # fmt: skip
    assert out(humans, rows, "fast") == []


def test_a_dwell_is_constant_if_eight_in_ten_are_alike_and_others_are_not(humans):
    hours = range(0, 36_000, 3_600)
    same = someone(humans, "bot", hours, [2_000, 2_010, 1_990, 2_020, 2_005, 2_001, 2_050, 2_003,
                                          700, 4_900])  # fmt: skip
    assert len(out(humans, [*others(humans), *same], "constant")) == 10
    few = same[:9]
    assert out(humans, [*others(humans), *few], "constant") == []
    varied = someone(humans, "bot", hours, range(1_000, 2_000, 100))
    assert out(humans, [*others(humans), *varied], "constant") == []


def test_a_coarse_clock_makes_no_machines(humans):
    rows = others(humans, dwell_ms=[1_000, 2_000] * 10)
    same = someone(humans, "calm", range(0, 36_000, 3_600), [2_000] * 10)
    assert out(humans, [*rows, *same], "constant") == []
    assert out(humans, others(humans, dwell_ms=[2_000] * 20), "constant") == []


def test_without_others_to_compare_with_nobody_is_a_machine(humans):
    same = someone(humans, "only", range(0, 36_000, 3_600), [2_000] * 10)
    assert out(humans, [*same, *others(humans, count=9)], "constant") == []
    assert out(humans, [*same, *others(humans, count=5)], "steering") == []


def test_who_gives_most_of_a_kind_steers_that_kind_only(humans):
    hours = range(0, 3_600 * 101, 3_600)
    many = someone(humans, "loud", hours, range(800, 4_840, 40))
    few = someone(humans, "loud", hours[:3], [900, 1_900, 2_900], kind="sleep")
    rows = [*others(humans), *many, *few, *others(humans)]
    crowd = [{**each, "kind": "sleep", "tip_id": each["tip_id"] + "s"} for each in others(humans)]
    found = out(humans, [*rows[:-400], *crowd], "steering")
    assert found == [each["tip_id"] for each in many]


@pytest.mark.parametrize(("count", "expected"), [(100, 0), (101, 101)])
def test_a_user_steers_a_kind_with_more_than_a_fifth_of_its_reactions(humans, count, expected):
    loud = someone(humans, "loud", range(0, 3_600 * count, 3_600), range(800, 800 + count))
    found = out(humans, [*others(humans), *loud], "steering")
    assert found == [each["tip_id"] for each in loud][:expected]


def test_the_settings_say_how_many_reactions_a_minute_a_person_can_give(humans):
    rows = someone(humans, "ann", [1_000 + 5 * n for n in range(10)], range(500, 510))
    assert out(humans, rows, "fast") == []
    assert out(humans, rows, "fast", burst_reactions=9) == [each["tip_id"] for each in rows]
    assert out(humans, rows, "fast", burst_reactions=10) == []
