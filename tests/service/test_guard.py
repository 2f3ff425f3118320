from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import ServeConfig
from reactune.pii.spans import refill
from reactune.records import Completion, Prompt, canonical_json
from reactune.service.guard import GuardVerdict, Judged, judge, judge_text, whole_sentences

SETTINGS = ServeConfig(max_tip_chars=80, unsafe_texts=("Skip your Medicine", "gun"))


def prompt_of(**context):
    return Prompt(
        kind="focus",
        context_json=canonical_json({"v": 1, "context": context}),
        context=context,
        text="The office is open, call 555-0100-200 or go there.",
        token_ids=(),
        placeholders={"<EMAIL_1>": "anna@example.com"},
    )


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Water the plants before nine.", "passed"),
        ("Write to <EMAIL_1> now.", "passed"),
        ("", "empty"),
        ("word " * 15, "repeated"),
        ("x" * 81, "overlong"),
        ("Write to <EMAIL_2>.", "placeholder"),
        ("Write to <PERSON.", "placeholder"),
        ("Write to bob@example.org.", "personal data"),
        ("Pay to 4111 1111 1111 1111.", "personal data"),
        ("Call 555-0100-200.", "passed"),
        ("Call 555-0100-999.", "personal data"),
        ("Take it easy and skip   your MEDICINE today.", "unsafe"),
        ("Ask a gunner.", "passed"),
        ("Bring a gun.", "unsafe"),
        ("Go out. Go out. Go out.", "repeated"),
        ("call the bank, call the bank", "passed"),
        ("Take a WALK now!", "repeated"),
        ("half a \ud83d", "garbled"),
        ("a \0 in it", "garbled"),
        ("<think>no</think> Go out.", "special token"),
        ("Go out.<|im_end|>", "special token"),
        ("Go out.<end_of_turn>", "special token"),
        ("Go out. [/INST]", "special token"),
        ("Go out.</s>", "special token"),
        ("Aim for < 5 | or > 3.", "passed"),
    ],
)
def test_the_verdict_is_the_first_problem_of_a_text(text, verdict):
    recent = prompt_of(recent_tips=["Take a walk now.", "Breathe."])
    assert judge_text(text, recent, SETTINGS, marks=("</s>", "<unk>")) == verdict


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Drink water. Then go out", "Drink water."),
        ("Drink water.", "Drink water."),
        ("Drink water! Really? And th", "Drink water! Really?"),
        ('She said "go." And th', 'She said "go."'),
        ("Ask Dr. Smith. Then call Mr. Mi", "Ask Dr. Smith."),
        ("Walk 3.5 km today. Do 1.", "Walk 3.5 km today."),
        ("1. Drink wat", ""),
        ("Visit example.org and re", ""),
        ("Wait for it\u2026 then", "Wait for it\u2026"),
        ("\u6c34\u3092\u98f2\u3080\u3002\u6563", "\u6c34\u3092\u98f2\u3080\u3002"),
        ("no end at all", ""),
        ("", ""),
    ],
)
def test_a_text_is_cut_back_to_its_last_whole_sentence(text, whole):
    assert whole_sentences(text) == whole


@pytest.mark.parametrize(
    ("text", "stopped", "on_cut", "judged"),
    [
        ("Go out. Drink", "length", "sentence", Judged("Go out.", "passed", is_cut=True)),
        ("Go out and", "length", "sentence", Judged("", "cut", is_cut=True)),
        ("Bring a gun. Drink", "length", "sentence", Judged("Bring a gun.", "unsafe", is_cut=True)),
        ("Go out. Drink", "length", "retry", Judged("", "cut", is_cut=True)),
        (" Go out. Drink ", "stop", "sentence", Judged("Go out. Drink", "passed")),
        (" Go out. Drink ", "stop", "retry", Judged("Go out. Drink", "passed")),
    ],
)
def test_of_an_answer_that_was_cut_only_whole_sentences_may_be_shown(text, stopped, on_cut, judged):
    completion = Completion(text, 5, 3, stopped, 0.1)
    settings = SETTINGS.model_copy(update={"on_cut": on_cut})
    assert judge(completion, prompt_of(), settings) == judged


@given(st.text(max_size=80))
def test_what_is_cut_back_is_the_start_of_the_text_and_stays_as_it_is(text):
    whole = whole_sentences(text)
    assert text.startswith(whole)
    assert whole_sentences(whole) == whole


def test_without_a_list_nothing_is_unsafe_and_without_recent_tips_nothing_is_repeated():
    assert judge_text("Bring a gun.", prompt_of(), ServeConfig()) == "passed"
    assert judge_text("Take a walk now.", prompt_of(), ServeConfig()) == "passed"


@pytest.mark.parametrize(
    ("text", "limit", "verdict"),
    [
        ("x" * 20, 20, "passed"),
        ("x" * 21, 20, "overlong"),
        # Counted as the user reads it: the placeholder is shorter than the address.
        ("Write <EMAIL_1>", 20, "overlong"),
        ("Write <EMAIL_1>", 22, "passed"),
    ],
)
def test_a_text_is_measured_as_the_user_reads_it(text, limit, verdict):
    assert judge_text(text, prompt_of(), ServeConfig(max_tip_chars=limit)) == verdict


@pytest.mark.parametrize("signs", ["", " ", "?!", "..."])
def test_an_unsafe_phrase_without_words_blocks_nothing(signs):
    assert judge_text("Go out.", prompt_of(), ServeConfig(unsafe_texts=(signs,))) == "passed"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("\uff47\uff55\uff4e", "unsafe"),  # full-width letters
        ("GUN", "unsafe"),
        ("gun-free", "unsafe"),
        ("begun", "passed"),
    ],
)
def test_unsafe_words_are_compared_by_their_letters(text, verdict):
    assert judge_text(text, prompt_of(), SETTINGS) == verdict


def test_two_repeats_are_style_and_three_are_a_loop():
    phrase = "one two three four"
    assert judge_text(f"{phrase} a {phrase}", prompt_of(), ServeConfig()) == "passed"
    assert judge_text(f"{phrase} a {phrase} b {phrase}", prompt_of(), ServeConfig()) == "repeated"


@pytest.mark.parametrize("recent", ["Take a walk now.", ["Breathe.", "take a walk, now"], []])
def test_recent_tips_may_be_a_text_or_a_list(recent):
    verdict = judge_text("Take a walk now!", prompt_of(recent_tips=recent), ServeConfig())
    assert verdict == ("repeated" if recent else "passed")


@given(text=st.text(st.characters(codec=None), max_size=60))
def test_every_text_gets_a_verdict_and_one_that_passes_can_be_stored_and_shown(text):
    verdict = judge_text(text, prompt_of(), SETTINGS)
    assert verdict in get_args(GuardVerdict)
    if verdict == "passed":
        shown = refill(text, prompt_of().placeholders)
        assert 0 < len(shown) <= SETTINGS.max_tip_chars
        assert "\0" not in text
        text.encode()  # no lone surrogate


@given(text=st.text(max_size=40), noise=st.sampled_from(["!", " ", "...", "\n"]))
def test_a_loop_stays_a_loop_whatever_stands_around_it(text, noise):
    looping = f"Breathe in. Breathe in. Breathe in.{noise}{text}"
    assert judge_text(looping, prompt_of(), ServeConfig(max_tip_chars=1_000)) != "passed"
