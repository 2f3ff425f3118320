"""What people notice in a tip, how much they like it, and what they then do."""

import math
import random
from dataclasses import asdict, replace
from statistics import mean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.demo import preferences
from reactune.demo.preferences import (
    WEIGHTS,
    chances,
    coin_chances,
    dismissed_below,
    done_between,
    draw_person,
    draw_reaction,
    length_score,
    liking,
    logistic,
    part_of_day,
    stem,
    tip_features,
)
from reactune.demo.situations import KINDS

MORNING = {
    "time_of_day": "morning, 9 am",
    "user_settings": {"goal": "eat better", "minutes": 10},
    "open_tasks": ["water the roses", "clean the attic"],
}


def features(tip, kind="health", context=MORNING):
    return tip_features(tip, kind, context)


def average_person():
    person = draw_person("user-1", "student", random.Random(1))
    return replace(
        person,
        generosity=0.0,
        multipliers=dict.fromkeys(person.multipliers, 1.0),
        kinds=dict.fromkeys(KINDS, 0.0),
    )


def test_form_and_fit_of_a_tip_are_noticed():
    good = features("Water the roses for 10 minutes after breakfast.")
    assert (good.words, good.opens_with_action, good.names_a_task) == (8, 1.0, 1.0)
    assert (good.names_an_amount, good.fits_the_hour, good.breaks_off) == (1.0, 1.0, 0.0)
    robotic = features("Here's a tip: I'm sure that dinner")
    assert (robotic.about_itself, robotic.breaks_off) == (1.0, 1.0)
    assert (robotic.opens_with_action, robotic.clashes_with_the_hour) == (0.0, 1.0)
    assert features("Before dinner, water the roses.").opens_with_action == 0.6


@pytest.mark.parametrize(
    ("tip", "name", "value"),
    [
        ("Please water the roses.", "opens_with_action", 1.0),
        ("Roses need water.", "opens_with_action", 0.0),
        ("Water them.", "names_a_task", 0.5),
        ("Clean the attic.", "names_a_task", 1.0),
        ("Sing a song.", "names_a_task", 0.0),
        ("Drink a glass of water.", "names_an_amount", 1.0),
        ("Drink water.", "names_an_amount", 0.0),
        ("Eat some fruit.", "fits_the_person", 1.0),
        ("Sing a song.", "fits_the_person", 0.0),
        ("Drink water and stretch.", "fits_the_kind", 1.0),
        ("Stretch.", "fits_the_kind", 0.5),
        ("go go go go go go", "repeats_itself", 1.0),
        ("One two three four five six.", "repeats_itself", 0.0),
        ("Water the", "breaks_off", 1.0),
        ('"Water the roses."', "breaks_off", 0.0),
    ],
)
def test_a_feature_has_the_value_that_the_page_of_the_demo_states(tip, name, value):
    assert getattr(features(tip), name) == value


@given(st.text(max_size=200), st.sampled_from(KINDS))
def test_any_text_has_features_between_0_and_1(text, kind):
    values = asdict(features(text, kind))
    assert values.pop("words") >= 0
    assert all(0 <= share <= 1 for share in values.values())


@given(st.dictionaries(st.sampled_from(["time_of_day", "open_tasks", "free_text"]), st.just("x")))
def test_features_need_no_part_of_the_context(context):
    assert features("Go for a walk.", context=context).names_a_task == 0.0


def test_length_scores_1_from_8_to_18_words_and_0_at_3_and_30():
    scores = {words: length_score(words) for words in (0, 3, 8, 18, 24, 30, 99)}
    assert scores == {0: 0.0, 3: 0.0, 8: 1.0, 18: 1.0, 24: 0.5, 30: 0.0, 99: 0.0}


def test_liking_is_the_weighted_sum_that_the_page_of_the_demo_states():
    noticed = features("Water the roses for 10 minutes after breakfast.")
    # From -2.8: action, task, amount, hour, kind, goal, and a length of 8 words.
    expected = -2.8 + 1.1 + 1.3 + 0.7 + 0.5 + 0.7 * noticed.fits_the_kind + 0.7 + 2.2
    person = average_person()
    liked = liking(person, noticed, kind="health", staleness=0.0, mood=0.0)
    assert liked == pytest.approx(expected)
    stale = liking(person, noticed, kind="health", staleness=0.5, mood=0.25)
    assert stale == pytest.approx(expected - 3.0 + 0.25)


def test_every_weight_is_the_weight_of_a_feature():
    assert WEIGHTS.keys() | {"words"} == asdict(features("Walk.")).keys()


@given(st.floats(-20, 20), st.integers(0, 60))
def test_the_probabilities_of_reactions_sum_to_1(liked, words):
    chance = chances(liked, words)
    parts = (chance.done, chance.dismiss, chance.snooze, chance.no_reaction)
    assert sum(parts) == pytest.approx(1.0)
    assert all(0 <= part <= 1 for part in parts)
    assert chance.done <= preferences.MAX_DONE


def test_without_tastes_a_quarter_of_the_tips_is_done():
    draw = random.Random(4)
    people = [draw_person(f"user-{n}", "student", draw) for n in range(2_000)]
    assert mean(coin_chances(each).done for each in people) == pytest.approx(0.27, abs=0.01)


def test_reactions_are_drawn_with_their_probabilities():
    chance, draw = chances(0.5, 12), random.Random(2)
    drawn = [draw_reaction(chance, draw) for _ in range(20_000)]
    for reaction, expected in (
        ("done", chance.done),
        ("dismiss", chance.dismiss),
        ("snooze", chance.snooze),
        (None, chance.no_reaction),
    ):
        assert mean(each == reaction for each, _ in drawn) == pytest.approx(expected, abs=0.015)
    dismissals = [dwell / 1000 for reaction, dwell in drawn if reaction == "dismiss"]
    assert median(dismissals) == pytest.approx(chance.dismissal_seconds, rel=0.05)
    assert all(dwell is None for reaction, dwell in drawn if reaction is None)


def test_stated_probabilities_of_dwell_times_are_those_of_the_draws():
    chance, draw = chances(1.0, 14), random.Random(3)
    drawn = [draw_reaction(chance, draw) for _ in range(20_000)]
    positive = mean(r == "done" and 15_000 <= dwell <= 120_000 for r, dwell in drawn)
    assert done_between(chance, (15, 120)) == pytest.approx(positive, abs=0.015)
    negative = mean(r == "dismiss" and dwell < 5_000 for r, dwell in drawn)
    assert dismissed_below(chance, 5) == pytest.approx(negative, abs=0.015)
    assert dismissed_below(chance, 0) == 0.0


@given(st.floats(-700, 700))
def test_the_logistic_of_any_logit_is_a_probability(logit):
    assert 0 <= logistic(logit) <= 1
    assert logistic(logit) + logistic(-logit) == pytest.approx(1.0)
    if abs(logit) < 30:
        assert logistic(logit) == pytest.approx(1 / (1 + math.exp(-logit)))


def test_stems_lose_common_endings_but_keep_three_letters():
    words = ("walking", "walked", "walks", "boxes", "berries", "sing", "bus")
    assert [stem(word) for word in words] == ["walk", "walk", "walk", "box", "berr", "sing", "bus"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("late evening, 10 pm", "evening"),
        ("noon, 12 pm", "noon"),
        ("Early MORNING", "morning"),
        ("10 pm", ""),
    ],
)
def test_the_first_part_of_the_day_counts(text, part):
    assert part_of_day(text) == part


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("Water the roses for ten minutes after breakfast today.", "Sing a song."),
        ("Eat fruit and drink water before you clean the attic.", "Eat fruit and drink"),
        ("Stretch, then water the roses for a few minutes.", "My tip: I'd say stretch, my friend."),
    ],
)
def test_a_tip_that_serves_the_context_is_liked_more(better, worse):
    person = average_person()
    likings = [
        liking(person, features(tip), kind="health", staleness=0.0, mood=0.0)
        for tip in (better, worse)
    ]
    assert likings[0] > likings[1] + 1


def test_people_are_drawn_the_same_from_the_same_seed_and_differ():
    drawn = [draw_person("u", "nurse", random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(0.15 <= person.presence <= 0.95 for person in drawn)


def test_a_liked_tip_is_dismissed_later_and_done_more_often():
    low, high = chances(-2.0, 12), chances(2.0, 12)
    assert low.done < high.done
    assert low.dismissal_seconds < high.dismissal_seconds
    assert low.reading_seconds == high.reading_seconds == pytest.approx(3.6)
