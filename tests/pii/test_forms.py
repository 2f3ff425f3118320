"""Forms in any writing are found whole, and numbers of harmless tips are left alone."""

from pathlib import Path

import pytest

from reactune.pii.detectors import detect_patterns, fold
from reactune.pii.patterns import labelled

HARMLESS = Path(__file__).with_name("harmless_tips.txt").read_text(encoding="utf-8").splitlines()


def found(text):
    (spans,) = detect_patterns([text])
    return [(text[span.start : span.end], span.kind) for span in spans]


@pytest.mark.parametrize("tip", HARMLESS)
def test_numbers_of_a_harmless_tip_are_no_personal_data(tip):
    assert found(tip) == []


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("+49\u00a0170\u20111234567", "PHONE"),
        ("020\u202f7946\u20130958", "PHONE"),
        ("\uff10\uff12\uff10 7946 0958", "PHONE"),
        ("71-33-52-22", "PHONE"),
        ("4111.1111.1111.1111", "CARD"),
        ("4111\u20131111\u20131111\u20131111", "CARD"),
        ("\uff14\uff11\uff11\uff11 1111 1111 1111", "CARD"),
        ("GB82-WEST-1234-5698-7654-32", "IBAN"),
        ("DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "IBAN"),
        ("DE89\u200b370400440532013000", "IBAN"),
        ("192.168.0.1", "IP"),
        ("10.0.0.1", "IP"),
        ("::ffff:192.0.2.1", "IP"),
        ("o'brien@example.com", "EMAIL"),
        ("o\u2019brien@example.com", "EMAIL"),
        ("an\u200bna@exa\u00admple.com", "EMAIL"),
        ("NW1 6XE", "ADDRESS"),
        ("SW1A 1AA", "ADDRESS"),
        ("K1A 0B1", "ADDRESS"),
        ("anna.k%40example.com", "EMAIL"),
        ("anna (at) example.com", "EMAIL"),
        ("anna[at]example[dot]com", "EMAIL"),
        ("4111  1111  1111  1111", "CARD"),
        ("4111/1111/1111/1111", "CARD"),
        ("192\u2024168\u20240\u20241", "IP"),
        ("415\u00b7555\u00b72671", "PHONE"),
        ("+49\t151\t12345678", "PHONE"),
        ("+49 \U0001d7cf\U0001d7d3\U0001d7cf 12345678", "PHONE"),
        ("anna@mu\u0308ller.de", "EMAIL"),
    ],
)
def test_a_form_is_found_whole_in_any_spaces_hyphens_and_digits(value, kind):
    assert found(f"now {value} \u2013 then") == [(value, kind)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("my ip is 10.11.12.13", "10.11.12.13"),
        ("ssh to 1.2.3.4 first", "1.2.3.4"),
        ("open 1.2.3.4:8080 now", "1.2.3.4"),
    ],
)
def test_small_parts_are_an_ip_address_beside_a_word_or_a_port(text, value):
    assert found(text) == [(value, "IP")]


@pytest.mark.parametrize("text", ["PI4 2GB", "M1 2GB", "Q1 3AB", "A1 2BC4", "nw1 6xe", "10 4CV"])
def test_letters_and_digits_of_another_form_are_no_postcode(text):
    assert found(f"now {text} then") == []


@pytest.mark.parametrize("text", ["tel 22 33 44 55", "call 12-14-16-18", "phone: 5000 8000"])
def test_beside_a_word_of_telephones_any_groups_are_a_number(text):
    assert [kind for _, kind in found(text)] == ["PHONE"]


@pytest.mark.parametrize("name", ["phoneNumber", "phone_number", "PhoneNumber", "phone number"])
def test_words_of_a_fields_name_are_read_however_they_are_joined(name):
    assert labelled(name, "x").label == "phone number: "
    assert found(labelled(name, "").label + "12-14-16-18")[0][1] == "PHONE"


def test_the_date_in_a_field_of_birth_is_one():
    text = labelled("dateOfBirth", "").label + "1990-02-17"
    assert found(text) == [("1990-02-17", "BIRTHDATE")]


def test_folding_keeps_the_place_of_every_character():
    text = "a\u200b\u00a0\uff15\u2013"
    folded, places = fold(text)
    assert (folded, places) == ("a 5-", [(0, 1), (2, 3), (3, 4), (4, 5)])
    assert fold("e\u0301\u0323x") == ("\u1eb9\u0301x", [(0, 3), (0, 3), (3, 4)])
    assert fold("a\u00a0b") == ("a b", None)
    assert fold("ab") == ("ab", None)
