import pytest

from reactune.config.sections import ServeConfig
from reactune.records import Prompt, canonical_json
from reactune.service.guard import judge_text

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
    ],
)
def test_the_guard_says_what_is_wrong_with_a_text(text, verdict):
    recent = prompt_of(recent_tips=["Take a walk now.", "Breathe."])
    assert judge_text(text, recent, SETTINGS) == verdict


def test_without_a_list_nothing_is_unsafe_and_without_recent_tips_nothing_said_before():
    assert judge_text("Bring a gun.", prompt_of(), ServeConfig()) == "passed"
    assert judge_text("Take a walk now.", prompt_of(), ServeConfig()) == "passed"
