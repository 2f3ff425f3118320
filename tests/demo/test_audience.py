"""The built-in audience: its visits, its reactions, and how an audience is loaded."""

import random
from collections import Counter
from statistics import mean

import pytest

from audience_fixtures import LABELS, WORLD, base_tips, days, good_tip, label_of, town
from reactune.demo.audience import Town, expected_harm, expected_reward, load_audience, words_of
from reactune.demo.pool import read_pool
from reactune.demo.situations import KINDS
from reactune.errors import ConfigError


def test_a_seed_gives_the_numbers_that_it_always_gave():
    audience, tip_of = Town(1), base_tips()
    visits = audience.visits(0)
    reactions = [audience.react(visit, tip_of(visit)) for visit in visits]
    counts = Counter(each.reaction for each in reactions)
    assert counts == {"dismiss": 144, None: 81, "snooze": 69, "done": 62}
    assert sum(each.dwell_ms or 0 for each in reactions) == 4_367_756
    assert (visits[0].user_id, f"{visits[0].moment:%d %H:%M:%S}") == ("user-0234", "02 07:04:38")


def test_the_same_seed_gives_the_same_days_in_any_order():
    one, two = town(), town()
    later = two.visits(3)
    assert [one.visits(day) for day in range(4)] == [two.visits(day) for day in range(4)]
    assert one.visits(3) == later
    assert town(2).visits(0) != one.visits(0)


def test_visits_come_in_order_of_time_and_at_the_hour_their_context_names():
    visits = days(town())
    assert [visit.moment for visit in visits] == sorted(visit.moment for visit in visits)
    assert len({visit.visit_id for visit in visits}) == len(visits)
    for visit in visits:
        hour = visit.moment.hour
        assert visit.context["time_of_day"].endswith(f", {(hour - 1) % 12 + 1} {'ap'[hour > 11]}m")
        assert visit.kind in KINDS


def test_every_situation_occurs_once_before_any_occurs_again():
    visits = town().visits(0) + town().visits(1)
    occurred = [(visit.kind, repr(visit.context)) for visit in visits]
    assert len(set(occurred)) == len(occurred)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tip: "I'm glad to help. Here's my advice: " + tip,
        lambda tip: tip + " Remember that it is important to care for yourself, always, every day.",
        lambda tip: tip.rsplit(" ", 4)[0],
        lambda tip: "Good luck!",
        lambda tip: "It is all a matter of the right mindset, and that is what makes a difference.",
    ],
    ids=["about itself", "long", "cut off", "short", "vague"],
)
def test_a_spoilt_tip_earns_less_from_nearly_every_user(spoil):
    audience = town()
    visits = audience.visits(0)
    better = [
        expected_reward(audience, visit, good_tip(visit))
        > expected_reward(audience, visit, spoil(good_tip(visit)))
        for visit in visits
    ]
    assert mean(better) > 0.95


def test_a_repeated_tip_earns_less_from_people_of_the_same_role_only():
    audience = town()
    visits = audience.visits(0)
    role = audience.people[visits[0].user_id].role
    same_role = [each for each in visits if audience.people[each.user_id].role == role]
    other_roles = [each for each in visits if audience.people[each.user_id].role != role]
    tip = "Set a timer for ten minutes and water the roses before you check your phone."

    def earn():
        return mean(expected_reward(audience, visit, tip) for visit in same_role[20:])

    fresh = earn()
    for visit in other_roles:
        audience.remember(visit, tip)
    assert earn() == fresh
    for visit in same_role[:20]:
        audience.remember(visit, tip.replace("timer", "clock"))
    assert earn() < 0.2 * fresh


def test_reactions_are_as_frequent_as_the_stated_probabilities():
    audience, labels = town(), LABELS
    expected, labels_seen = [], []
    for visit in days(audience):
        tip = good_tip(visit) if len(expected) % 2 else "You can make the most of your goals."
        expected.append(
            (expected_reward(audience, visit, tip), expected_harm(audience, visit, tip))
        )
        response = audience.react(visit, tip)
        labels_seen.append(label_of(response, labels))
    for stated, seen in zip(
        zip(*expected, strict=True), zip(*labels_seen, strict=True), strict=True
    ):
        spread = sum(share * (1 - share) for share in stated) ** 0.5
        assert abs(sum(seen) - sum(stated)) < 4 * spread


def test_most_done_tips_take_long_and_most_dismissals_do_not():
    audience = town()
    responses = [audience.react(visit, good_tip(visit)) for visit in days(audience)]
    done = [each.dwell_ms for each in responses if each.reaction == "done"]
    dismissed = [each.dwell_ms for each in responses if each.reaction == "dismiss"]
    assert 0.75 < mean(15_000 <= dwell <= 120_000 for dwell in done) < 0.95
    assert 0.6 < mean(dwell < 5_000 for dwell in dismissed) < 0.95
    kinds = {each.reaction for each in responses}
    assert kinds == {"done", "dismiss", "snooze", None}
    assert all(each.dwell_ms is None for each in responses if each.reaction is None)


def test_without_tastes_a_reaction_does_not_depend_on_the_tip():
    one, two = town(tastes="none"), town(tastes="none")
    visits = days(one)
    assert [one.react(visit, good_tip(visit)) for visit in visits] == [
        two.react(visit, "") for visit in days(two)
    ]
    assert expected_reward(one, visits[0], "x") == expected_reward(one, visits[0], "Call a friend.")


def test_a_reaction_does_not_depend_on_other_random_draws():
    one, two = town(), town()
    visits = one.visits(0)
    first = [one.react(visit, good_tip(visit)) for visit in visits]
    two.visits(5)
    random.seed(3)
    assert [two.react(visit, good_tip(visit)) for visit in visits] == first


class Mute:
    def __init__(self, seed, tastes="default"):
        pass


@pytest.mark.parametrize(
    "name", ["nowhere:Town", f"{__name__}:Nobody", f"{__name__}:Mute", "reactune", ":", "os:sep"]
)
def test_a_name_that_is_no_audience_is_refused(name):
    with pytest.raises(ConfigError, match="audience"):
        load_audience(name, seed=1)


def test_unknown_tastes_are_refused():
    with pytest.raises(ConfigError, match="spicy"):
        Town(1, "spicy", situations=WORLD)


def test_a_second_pass_through_the_pool_is_no_staler_than_the_first():
    tip_of = base_tips()
    audience = Town(1)
    rounds = len(read_pool().tips)
    staleness = []
    day = 0
    while len(staleness) < 2 * rounds:
        for visit in audience.visits(day):
            staleness.append(audience.staleness(visit, tip_of(visit)))
            audience.remember(visit, tip_of(visit))
        day += 1
    assert abs(mean(staleness[:rounds]) - mean(staleness[rounds:])) < 0.005


def test_the_words_of_a_tip_have_neither_order_nor_endings():
    assert words_of("Walking the dogs!") == words_of("the dog, walked")
    assert words_of("***") == frozenset()


def test_a_similar_tip_is_stale_and_another_is_not():
    audience = town()
    visit = audience.visits(0)[0]
    for _ in range(2):
        audience.remember(visit, "Water the roses for ten minutes.")
    assert audience.staleness(visit, "Water the roses for ten minutes!") == 1.0
    assert audience.staleness(visit, "Call your sister.") == 0.0


def test_an_audience_needs_situations_of_every_role():
    students = [each for each in WORLD if each.role == "student"]
    with pytest.raises(ConfigError, match=r"roles nurse, .*python -m reactune\.demo\.pool"):
        Town(1, situations=students)


def test_an_audience_without_methods_is_refused_by_their_names():
    with pytest.raises(ConfigError, match="no method visits and no method react"):
        load_audience(f"{__name__}:Mute", seed=1)


def test_people_visit_one_to_three_times_on_two_days_of_three():
    audience = town()
    per_day = [Counter(visit.user_id for visit in audience.visits(day)) for day in range(4)]
    assert all(set(counts.values()) <= {1, 2, 3} for counts in per_day)
    shares = [len(counts) / len(audience.people) for counts in per_day]
    assert 0.6 < mean(shares) < 0.7


def test_asking_for_probabilities_changes_none():
    audience = town()
    visit = audience.visits(0)[0]
    first = [audience.chances(visit, good_tip(visit)) for _ in range(3)]
    assert first[0] == first[1] == first[2]
    audience.remember(visit, good_tip(visit))
    assert audience.chances(visit, good_tip(visit)).done < first[0].done


def test_a_user_forgets_a_tip_after_ten_others():
    audience = town()
    visit = audience.visits(0)[0]
    audience.remember(visit, "Water the roses for ten minutes.")
    assert audience.staleness(visit, "Water the roses for ten minutes.") == 0.5
    for number in range(60):
        audience.remember(visit, f"Count to number{number} before{number} lunch{number}.")
    assert audience.staleness(visit, "Water the roses for ten minutes.") == 0.0


def test_two_people_of_a_role_do_not_share_a_situation_before_all_occurred():
    audience = town()
    nurses = [
        visit for visit in audience.visits(0) if audience.people[visit.user_id].role == "nurse"
    ]
    assert len({repr((visit.kind, visit.context)) for visit in nurses}) == len(nurses)
