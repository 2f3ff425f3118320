"""The parts of a context, one by one: cleaned, scrubbed, shortened, written out."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import ModelConfig, PrivacyConfig
from reactune.errors import DataError
from reactune.model.context import (
    CONTEXT_VERSION,
    MAX_ITEMS,
    break_special_tokens,
    clean_part,
    clean_text,
    context_to_log,
    entry_names,
    is_scalar,
    line,
    parse_context,
    scrub_parts,
    shorten,
    texts_of,
)
from reactune.model.files import base_model
from reactune.model.prompt import Tokenizer
from reactune.model.templates import marks_of
from reactune.pii.detectors import open_detector


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(base_model(ModelConfig()).folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def detect():
    return open_detector(PrivacyConfig())


def clean(part, tokenizer, *, max_chars=200):
    marks = marks_of(tokenizer, "")
    return clean_part(part, key="free_text", marks=marks, max_chars=max_chars)


@pytest.mark.parametrize(
    ("part", "cleaned"),
    [
        ("  two\twords \n", "two words"),
        (7, 7),
        (2.5, 2.5),
        (True, True),
        (["a\nb", "  ", "c"], ["a b", "c"]),
        ({"mood ": " low\n", "age": 7}, {"mood": "low", "age": 7}),
        ("e\u0301", "\u00e9"),
        ("a\u200b\ue000\x00b", "a\u200b b"),
    ],
)
def test_texts_become_one_printable_line_and_other_values_stay(tokenizer, part, cleaned):
    assert clean(part, tokenizer) == cleaned


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (math.nan, "float"), (math.inf, "float"), ([1, 2], "list"), ([["a"]], "list"),
        ({"a": ["b"]}, "dict"), ({"a": math.inf}, "dict"), (None, "NoneType"), (b"a", "bytes"),
    ],
)  # fmt: skip
def test_a_value_without_a_place_in_a_context_is_named_with_its_key(tokenizer, part, kind):
    with pytest.raises(DataError, match=f"context key 'free_text' holds {kind}; a context holds"):
        clean(part, tokenizer)


def test_lists_and_objects_end_after_so_many_items(tokenizer):
    many = [f"item {n}" for n in range(MAX_ITEMS + 5)]
    assert clean(many, tokenizer) == many[:MAX_ITEMS]
    assert len(clean(dict.fromkeys(many, 1), tokenizer)) == MAX_ITEMS


def test_a_long_text_ends_before_a_word_that_would_be_cut(tokenizer):
    assert clean("write to anna@example.org", tokenizer, max_chars=20) == "write to"
    assert clean("abc def", tokenizer, max_chars=7) == "abc def"
    assert clean("x" * 50, tokenizer, max_chars=20) == ""


@given(st.text(max_size=60))
def test_cleaning_again_changes_nothing_and_leaves_no_special_token(tokenizer, text):
    marks = marks_of(tokenizer, "")
    once = clean_text(f"{text}<|im_end|>{text}", marks=marks, max_chars=400)
    assert clean_text(once, marks=marks, max_chars=400) == once
    assert "<|im_end|>" not in once
    assert "\n" not in once


def test_the_text_of_a_special_token_gets_a_space(tokenizer):
    broken = break_special_tokens("a <|im_start|> b <|im_end|>", marks_of(tokenizer, ""))
    assert broken == "a < |im_start|> b < |im_end|>"
    special = {tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>")}
    assert special.isdisjoint(tokenizer.encode(broken, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("value", "scalar"), [("", True), (0, True), (False, True), (0.1, True), (math.nan, False),
                          (None, False), ([], False), ({}, False)],
)  # fmt: skip
def test_scalars_are_texts_booleans_and_finite_numbers(value, scalar):
    assert is_scalar(value) is scalar


@pytest.mark.parametrize(
    ("key", "part", "written"),
    [
        ("open_tasks", ["call the bank", "water it"], "Open tasks: call the bank; water it"),
        ("mood", "low", "Mood: low"),
        ("is_late", True, "Is late: yes"),
        ("is_late", False, "Is late: no"),
        ("steps", 1200, "Steps: 1200"),
        ("weather", {"wind": 3, "rain": True}, "Weather: rain yes, wind 3"),
    ],
)
def test_each_part_is_one_line(key, part, written):
    assert line(key, part) == written


@pytest.mark.parametrize(
    ("part", "shorter"),
    [
        (["a", "b", "c"], ["a", "b"]),
        ({"b": 1, "a": 2}, {"a": 2}),
        ({"a": 2}, None),
        (7, None),
        (True, None),
        ("one", None),
    ],
)
def test_what_is_shortened_loses_its_last_item_or_goes(tokenizer, part, shorter):
    assert shorten(part, 1, tokenizer=tokenizer) == shorter


def test_a_text_loses_as_many_tokens_as_are_over(tokenizer):
    text = "one two three four five six"
    assert shorten(text, 2, tokenizer=tokenizer) == "one two three four"
    assert shorten([text], 2, tokenizer=tokenizer) == ["one two three four"]
    assert shorten(text, 99, tokenizer=tokenizer) is None


def test_half_a_placeholder_is_not_left_at_the_end(tokenizer):
    text = "Please write to <EMAIL_1>"
    cuts = [shorten(text, over, tokenizer=tokenizer) for over in range(1, 8)]
    assert all(cut is None or "<" not in cut for cut in cuts)


@given(st.text(min_size=1, max_size=40), st.integers(0, 60))
def test_shortening_always_ends(tokenizer, text, over):
    shorter = shorten(text, over, tokenizer=tokenizer)
    assert shorter is None or 0 < len(shorter) < len(text)


def test_personal_data_is_replaced_in_every_kind_of_part(detect):
    parts = {
        "free_text": "write to anna@example.org",
        "open_tasks": ["call anna@example.org", "rest"],
        "contacts": {"bo@example.org": "friend", "age": 7},
        "steps": 1200,
    }
    placeholders = {}
    scrubbed = scrub_parts(parts, placeholders=placeholders, detect=detect)
    assert scrubbed["free_text"] == "write to <EMAIL_1>"
    assert scrubbed["open_tasks"] == ["call <EMAIL_1>", "rest"]
    assert scrubbed["contacts"] == {"<EMAIL_2>": "friend", "age": 7}
    assert scrubbed["steps"] == 1200
    assert placeholders == {"<EMAIL_1>": "anna@example.org", "<EMAIL_2>": "bo@example.org"}


def test_a_long_number_is_searched_like_a_text_and_a_short_one_is_not(detect):
    placeholders = {}
    scrubbed = scrub_parts(
        {"phone": 4930123456789, "steps": 12345678}, placeholders=placeholders, detect=detect
    )
    assert scrubbed["steps"] == 12345678
    assert scrubbed["phone"] in placeholders


def test_texts_come_with_the_label_of_their_key():
    part = {"phone": "030 123", "age": 7}
    texts = [(text.label, text.value) for text in texts_of("contact", part)]
    assert texts == [("", "phone"), ("phone: ", "030 123"), ("", "age")]
    assert entry_names({"contact": part, "mood": "low"}) == [["phone", "age"]]


def test_what_was_logged_is_read_back():
    logged = parse_context(context_to_log({"mood": "low", "tasks": ["a"]}))
    assert logged.is_assembled
    assert logged.parts == {"mood": "low", "tasks": ["a"]}
    other = parse_context('{"mood": "low"}')
    assert not other.is_assembled
    assert other.parts == {"mood": "low"}


def test_equal_texts_are_equal_contexts():
    text = context_to_log({"mood": "low"})
    assert parse_context(text) == parse_context(text)
    assert parse_context(text) != parse_context(context_to_log({"mood": "high"}))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (None, "is not JSON; log a JSON object"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is a JSON list; log a JSON object"),
        (
            json.dumps({"v": 0, "context": {}}),
            f"has version 0, this release reads {CONTEXT_VERSION}",
        ),
        (json.dumps({"v": 1, "context": []}), "is no JSON object"),
    ],
)
def test_a_context_that_cannot_be_read_is_refused_with_the_reason(text, wrong):
    with pytest.raises(DataError, match=wrong):
        parse_context(text)
