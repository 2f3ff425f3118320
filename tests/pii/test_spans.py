"""Placeholders: personal data is replaced everywhere in a row, and can be filled in again."""

import re
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pii_fixtures import texts
from reactune.config.sections import PrivacyConfig
from reactune.pii.detectors import open_detector
from reactune.pii.patterns import labelled
from reactune.pii.spans import (
    Span,
    Text,
    refill,
    scrub_rows,
    without_label,
    without_overlaps,
)
from reactune.pii.spans import scrub as scrub_with

BY_DEFAULT = open_detector(PrivacyConfig())
PATTERNS_ONLY = open_detector(PrivacyConfig(models={}))
scrub = partial(scrub_with, detect=PATTERNS_ONLY)


def plain(*texts):
    return [Text("", text) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail anna.b+x@mail.example.org now", "mail <EMAIL_1> now"),
        ("see https://example.org/a?b=1, then", "see <URL_1>, then"),
        ("call +49 170 1234567 today", "call <PHONE_1> today"),
        ("call (030) 901820-22 today", "call <PHONE_1> today"),
        ("pay DE89 3704 0044 0532 0130 00 soon", "pay <IBAN_1> soon"),
        ("pay GB82WEST12345698765432 soon", "pay <IBAN_1> soon"),
        ("card 4111 1111 1111 1111 ok", "card <CARD_1> ok"),
        ("from 192.168.0.17 and 2001:db8::1", "from <IP_1> and <IP_2>"),
        ("ask @anna_b about it", "ask <HANDLE_1> about it"),
    ],
)
def test_personal_data_becomes_a_typed_placeholder(text, expected):
    placeholders = {}
    assert scrub(text, placeholders=placeholders) == expected
    assert refill(expected, placeholders) == text


@pytest.mark.parametrize(
    "text",
    [
        "meet on 2026-11-23 at 10:30",
        "walk 10 000 steps",
        "week 201303, version 1.2.3",
        "card 4111 1111 1111 1112 has a wrong check digit"[:9],
        "two or 3 things at 12:30:45",
    ],
)
def test_harmless_numbers_stay(text):
    assert scrub(text, placeholders={}) == text


def test_one_value_keeps_one_placeholder_within_a_request():
    placeholders = {}
    first = scrub("a@b.org and c@d.org", placeholders=placeholders)
    second = scrub("again c@d.org", placeholders=placeholders)
    assert (first, second) == ("<EMAIL_1> and <EMAIL_2>", "again <EMAIL_2>")


def test_names_the_app_knows_are_hidden_in_any_case_but_not_inside_words():
    hidden = scrub("Call ANNA and Annabel Lee", placeholders={}, names=["anna", "Annabel Lee"])
    assert hidden == "Call <PERSON_1> and <PERSON_2>"


def test_a_placeholder_that_a_user_typed_is_not_given_to_a_value():
    placeholders = {}
    hidden = scrub("<EMAIL_1> or a@b.org", placeholders=placeholders)
    assert hidden == "<EMAIL_1> or <EMAIL_2>"
    assert refill(hidden, placeholders) is None


@pytest.mark.parametrize("tip", ["Write to <PERSON_3>.", "Write to <EMAIL_1", "Ask <PERSON>"])
def test_a_placeholder_that_cannot_be_refilled_blocks_the_tip(tip):
    assert refill(tip, {"<PERSON_1>": "Anna"}) is None


def test_a_value_that_looks_like_a_placeholder_is_not_filled_in_twice():
    assert refill("<PERSON_1>", {"<PERSON_1>": "<PERSON_2>", "<PERSON_2>": "x"}) == "<PERSON_2>"


@given(st.text(max_size=80), st.emails(), st.text(max_size=80))
def test_no_planted_address_survives_and_scrubbing_again_changes_nothing(before, email, after):
    placeholders = {}
    hidden = scrub(f"{before} {email} {after}", placeholders=placeholders)
    if re.fullmatch(r"[\w.+%-]+@[\w.-]+", email):
        assert email not in hidden
    assert scrub(hidden, placeholders={}) == hidden


def test_a_person_found_in_one_text_is_replaced_in_all_texts_of_the_row():
    rows = [plain("meet Zoltán Kovács at noon", "ZK: Zoltán Kovács, 2pm"), plain("hello there")]
    maps = [{}, {}]
    (first, second) = scrub_rows(rows, maps, detect=BY_DEFAULT)
    assert first == ["meet <PERSON_1> at noon", "ZK: <PERSON_1>, 2pm"]
    assert (second, maps) == (["hello there"], [{"<PERSON_1>": "Zoltán Kovács"}, {}])


def test_a_name_that_is_a_word_as_well_hides_the_word_only_where_it_is_a_name():
    (texts,) = scrub_rows([plain("ask Will Smith first", "i will do it")], [{}], detect=BY_DEFAULT)
    assert texts == ["ask <PERSON_1> first", "i will do it"]


def test_the_name_of_a_field_helps_to_classify_its_value():
    rows = [[labelled("city", "Florence")], [labelled("first_name", "Florence")]]
    assert scrub_rows(rows, [{}, {}], detect=BY_DEFAULT) == [["Florence"], ["<PERSON_1>"]]


def test_one_address_in_two_writings_is_one_placeholder():
    text = "Mail Bo@X.org, then bo@x.org"
    assert scrub(text, placeholders={}) == "Mail <EMAIL_1>, then <EMAIL_1>"


@given(st.lists(texts, max_size=3))
def test_scrubbing_again_changes_nothing_and_refilling_gives_the_texts_back(row):
    placeholders = {}
    (once,) = scrub_rows([plain(*row)], [placeholders], detect=BY_DEFAULT)
    assert scrub_rows([plain(*once)], [{}], detect=BY_DEFAULT) == [once]
    standing = {"<PERSON_1>": "<PERSON_1>", "<EMAIL_2>": "<EMAIL_2>"}
    again = [refill(text, {**standing, **placeholders}) for text in once]
    assert [text and " ".join(text.casefold().split()) for text in again] == [
        " ".join(text.casefold().split()) for text in row
    ]


def test_of_two_spans_that_overlap_the_first_is_whole_and_the_rest_of_the_other_stays():
    text = "12 Main Street, 030 901820, Berlin"
    phone, address = Span(16, 26, "PHONE", 1.0), Span(0, 34, "ADDRESS", 0.9)
    kept = without_overlaps(text, [phone, address])
    assert [(text[s.start : s.end], s.kind) for s in kept] == [
        ("12 Main Street", "ADDRESS"), ("030 901820", "PHONE"), ("Berlin", "ADDRESS"),
    ]  # fmt: skip


def test_of_spans_in_label_and_text_only_the_part_in_the_text_is_left():
    label, found = "city: ", [Span(0, 4, "A", 1.0), Span(3, 9, "B", 0.5), Span(6, 8, "C", 1.0)]
    assert without_label(found, label) == [Span(0, 3, "B", 0.5), Span(0, 2, "C", 1.0)]


@pytest.mark.parametrize(
    ("text", "span", "kept"),
    [
        ("see (030) 12345.", (4, 16), "(030) 12345."),
        ("see (030) 12345, then", (4, 16), "(030) 12345"),
        (' "Anna" ', (0, 8), "Anna"),
        ("at ::1,", (3, 7), "::1"),
        ("from fe80::, then", (5, 12), "fe80::"),
        ("-12.5, 3.1", (0, 10), "-12.5, 3.1"),
    ],
)
def test_a_span_loses_marks_at_its_edges_that_do_not_belong_to_it(text, span, kept):
    (found,) = without_overlaps(text, [Span(*span, "X", 1.0)])
    assert text[found.start : found.end] == kept


def test_a_span_without_letters_and_digits_is_dropped():
    assert without_overlaps("a -- b", [Span(1, 5, "X", 1.0)]) == []


spans = st.builds(
    lambda start, length, kind: Span(start, start + length, kind, 1.0),
    st.integers(0, 18), st.integers(1, 8), st.sampled_from("XYZ"),
)  # fmt: skip


@given(st.lists(spans, max_size=6))
def test_spans_without_overlaps_are_ordered_and_cover_no_more_than_before(found):
    text = "ab, cd ef-gh (ij) kl mn op"
    kept = without_overlaps(text, found)
    assert all(left.end <= right.start for left, right in pairwise(kept))
    covered = {place for span in found for place in range(span.start, span.end)}
    assert all(set(range(span.start, span.end)) <= covered for span in kept)
    assert all(
        any(span.start <= place < span.end for span in kept)
        for place in covered
        if place < len(text) and text[place].isalnum()
    )
    assert without_overlaps(text, kept) == kept


def test_every_row_has_its_own_placeholders():
    rows, maps = [plain("a@b.org", "c@d.org"), plain("c@d.org")], [{}, {}]
    assert scrub_rows(rows, maps, detect=PATTERNS_ONLY) == [
        ["<EMAIL_1>", "<EMAIL_2>"],
        ["<EMAIL_1>"],
    ]
    assert maps == [{"<EMAIL_1>": "a@b.org", "<EMAIL_2>": "c@d.org"}, {"<EMAIL_1>": "c@d.org"}]


def test_a_known_name_is_stored_as_the_app_writes_it():
    placeholders = {}
    assert scrub("tell ANNA", placeholders=placeholders, names=[" Anna ", " "]) == "tell <PERSON_1>"
    assert placeholders == {"<PERSON_1>": "Anna"}


def test_a_known_name_within_an_address_belongs_to_the_address():
    assert scrub("mail anna@b.org", placeholders={}, names=["Anna"]) == "mail <EMAIL_1>"


@pytest.mark.parametrize("text", ["", "no placeholder", "1 < 2 and <b>", "<OTHER_1"])
def test_a_text_without_placeholders_is_refilled_as_it_is(text):
    assert refill(text, {}) == text
