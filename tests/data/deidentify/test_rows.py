"""One row at a time: what is dropped, withheld, scrubbed or refused, and why."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import PrivacyConfig
from reactune.data.deidentify.rows import (
    INCOMPLETE,
    UNFILLABLE,
    CleanContext,
    UnsafeRowError,
    clean_context,
    clean_tip,
    common_values,
    detectable_texts,
    read_context,
    withhold,
    without_rare,
)
from reactune.model.context import context_to_log, parse_context

RARE = PrivacyConfig(models={}, min_users_per_value=2, rare_keys=("city", "tags", "set.m"))
keys = st.sampled_from(["open_tasks", "free_text", "diagnosis", "v", "context", "email"])
contexts = st.dictionaries(keys, st.text(max_size=5), max_size=4)


def context_of(**parts):
    """A clean context with these placeholders."""
    return CleanContext("{}", "Write.", "Free text: <EMAIL_1>", "prompt", parts)


@given(context=contexts, is_assembled=st.booleans())
def test_exactly_the_keys_that_are_not_allowed_are_dropped(context, is_assembled):
    allowed = {"open_tasks", "free_text"}
    text = context_to_log(context) if is_assembled else json.dumps(context)
    if not is_assembled and context.keys() == {"v", "context"}:
        return
    logged, lost = read_context(text, allowed)
    assert logged.parts == {key: part for key, part in context.items() if key in allowed}
    assert lost == bool(context.keys() - allowed)
    assert logged.is_assembled == is_assembled
    assert parse_context(logged.text).parts == logged.parts
    assert lost or logged.text == text


@pytest.mark.parametrize("text", [None, "", "[]", "no json", '{"v": 9, "context": {}}'])
def test_a_context_that_cannot_be_read_loses_no_key(text):
    assert read_context(text, {"free_text"}) == (None, False)


def test_detectors_get_the_texts_of_the_tip_and_of_allowed_keys_in_their_order():
    logged = parse_context(
        json.dumps(
            {
                "b": ["two", 2, "three"],
                "a": "one",
                "hidden": "secret",
                "c": {"name": "four", "deep": {"no": 1}, "flag": True},
                "d": 3,
            }
        )
    )
    row = {"tip_content": "tip"}
    texts = list(detectable_texts(row, logged, ["a", "b", "c", "d"]))
    assert texts[0] == "tip"
    values = [text.rpartition(": ")[2] for text in texts[1:]]
    assert values == ["one", "two", "three", "name", "four", "flag"]
    assert list(detectable_texts(row, None, ["a"])) == ["tip"]
    assert list(detectable_texts({"tip_content": None}, None, ["a"])) == []


@pytest.mark.parametrize("tip", ["", "  ", "\n\t"])
def test_a_tip_without_text_is_incomplete(chat, tip):
    with pytest.raises(UnsafeRowError, match=INCOMPLETE):
        clean_tip(chat, tip, context_of())


def test_a_tip_is_stored_in_one_unicode_form_without_special_tokens(chat):
    assert clean_tip(chat, "Cafe\u0301 first.", context_of()) == "Café first."
    assert chat.stop not in clean_tip(chat, f"Go.{chat.stop}", context_of())


def test_a_placeholder_is_allowed_in_a_tip_only_if_the_model_sees_it(chat):
    context = context_of(**{"<EMAIL_1>": "bo@x.org"})
    assert clean_tip(chat, "Write to bo@x.org.", context) == "Write to <EMAIL_1>."
    assert clean_tip(chat, "Write to <EMAIL_1>.", context) == "Write to <EMAIL_1>."
    for tip in ("Write to <EMAIL_2>.", "Write to eve@x.org."):
        with pytest.raises(UnsafeRowError, match=UNFILLABLE):
            clean_tip(chat, tip, context)


def test_a_value_counts_as_common_by_its_users_not_by_its_rows():
    shared = [("ann", {"city": "Rome"})] * 5 + [
        ("bob", {"city": "Oslo"}),
        ("eve", {"city": "Oslo"}),
    ]
    assert common_values(shared, RARE) == {("city", '"Oslo"')}


def test_values_of_different_types_are_different_values():
    users = [("a", {"city": 1}), ("b", {"city": "1"}), ("c", {"city": True})]
    assert common_values(users, RARE) == frozenset()


@pytest.mark.parametrize(
    ("context", "kept", "lost"),
    [
        ({"city": "Rome", "mood": "fine"}, {"mood": "fine"}, ("Rome",)),
        ({"city": "Oslo"}, {"city": "Oslo"}, ()),
        ({"tags": ["p", "q", "p"]}, {"tags": ["p", "p"]}, ("q",)),
        ({"tags": ["q"]}, {}, ("q",)),
        ({"set": {"m": "x", "n": "y"}}, {"set": {"n": "y"}}, ("x",)),
        ({"set": {"m": "x"}}, {}, ("x",)),
        ({"city": 7}, {}, ()),
        ({"city": 12_345}, {}, ("12345",)),
        ({"city": True}, {}, ()),
        ({}, {}, ()),
    ],
)
def test_rare_values_are_withheld_from_texts_lists_and_entries(context, kept, lost):
    common = frozenset({("city", '"Oslo"'), ("tags", '"p"')})
    assert withhold(context, RARE, common) == (kept, lost)


def test_a_withheld_value_is_found_again_whatever_its_case_and_punctuation(chat):
    row = {"kind": "focus", "context_json": "", "tip": "Enjoy SAN-FRANCISCO!"}

    def shorter(kind, logged):
        return clean_context(chat, kind, logged)

    for lost in ("San Francisco", "san_francisco", "\uff33an Francisco"):
        with pytest.raises(UnsafeRowError, match="withheld value"):
            without_rare(row, {}, [lost], context_of=shorter, chat=chat)
    safe = without_rare(row, {}, ["Francis", "!"], context_of=shorter, chat=chat)
    assert safe["tip"] == row["tip"]
    assert parse_context(safe["context_json"]).parts == {}


def test_a_clean_context_is_stable(chat):
    logged = parse_context('{"free_text": "mail bo@x.org", "other": 1}')
    once = clean_context(chat, "focus", logged)
    twice = clean_context(chat, "focus", parse_context(once.context_json))
    assert (once.input, once.prompt, once.context_json) == (
        twice.input, twice.prompt, twice.context_json,
    )  # fmt: skip
    assert "bo@x.org" not in once.prompt
