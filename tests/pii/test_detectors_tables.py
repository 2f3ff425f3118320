import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import PrivacyConfig
from reactune.errors import PrivacyError
from reactune.pii.detectors import open_detector
from reactune.pii.spans import refill
from reactune.pii.spans import scrub as scrub_with
from reactune.privacy.hashing import HashingKey, load_hashing_key, user_key

KEY = HashingKey(b"k" * 32)
BY_FORM = open_detector(PrivacyConfig(models={}))
scrub = partial(scrub_with, detect=BY_FORM)


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


def test_user_keys_are_equal_for_equal_ids_only_and_depend_on_the_key():
    assert user_key(KEY, "u1") == user_key(KEY, "u1") != user_key(KEY, "u2")
    assert user_key(KEY, "u1") != user_key(HashingKey(b"j" * 32), "u1")
    # RFC 4231, test case 2, through the same construction.
    assert user_key(HashingKey(b"Jefe"), "what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@pytest.mark.parametrize("value", ["", "short"])
def test_a_missing_or_short_key_is_refused_with_the_variable_named(value):
    with pytest.raises(PrivacyError, match=r"REACTUNE_KEY holds \d+ characters"):
        load_hashing_key(PrivacyConfig(), {"REACTUNE_KEY": value})


def test_a_key_is_never_printed():
    assert "kkkk" not in repr(KEY)
    assert len(KEY.key_id) == 8
