"""Patterns: what has a fixed form is found, and its check decides."""

import string

import pytest
import stdnum.iban
import stdnum.luhn
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import KINDS, PrivacyConfig
from reactune.pii import patterns
from reactune.pii.patterns import (
    PATTERNS,
    find_patterns,
    is_card,
    is_iban,
    is_ip,
    is_phone,
    names_a_number,
)
from reactune.pii.spans import MODEL_KINDS


def found(text, kinds=KINDS):
    (spans,) = find_patterns([text], kinds=kinds)
    return [(text[span.start : span.end], span.kind) for span in spans]


# Numbers of states are the examples of python-stdnum's documentation, IBANs of the ISO registry,
# telephone numbers of the countries' own ranges for fiction or of libphonenumber's examples.
@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("my number is 020 7946 0958", "020 7946 0958", "PHONE"),
        ("call 202-555-0143 x12 today", "202-555-0143 x12", "PHONE"),
        ("appelle le 06 12 34 56 78", "06 12 34 56 78", "PHONE"),
        ("ring +61 2 5550 0123", "+61 2 5550 0123", "PHONE"),
        ("dial 555-0199", "555-0199", "PHONE"),
        ("phone: (99) 645-791", "(99) 645-791", "PHONE"),
        ("NL91ABNA0417164300 is mine", "NL91ABNA0417164300", "IBAN"),
        ("pay FR14 2004 1010 0505 0001 3M02 606", "FR14 2004 1010 0505 0001 3M02 606", "IBAN"),
        ("amex 378282246310005", "378282246310005", "CARD"),
        ("I am at 52.5200, 13.4050 now", "52.5200, 13.4050", "COORDINATES"),
        ("48°51'29\"N 2°17'40\"E", "48°51'29\"N 2°17'40\"E", "COORDINATES"),
        ("SSN 536-90-4399", "536-90-4399", "ID"),
        ("NHS 943 476 5870", "943 476 5870", "ID"),
        ("nino AB 12 34 56 C", "AB 12 34 56 C", "ID"),
        ("numéro 2 95 10 99 126 111 93", "2 95 10 99 126 111 93", "ID"),
        ("Steuer-ID 36 574 261 809", "36 574 261 809", "ID"),
        ("DNI 54362315-K", "54362315-K", "ID"),
        ("NIE X2482300W", "X2482300W", "ID"),
        ("codice fiscale RCCMNL83S18D969H", "RCCMNL83S18D969H", "ID"),
        ("BSN 111222333", "111222333", "ID"),
        ("pesel 44051401359", "44051401359", "ID"),
        ("aadhaar 2341 2341 2346", "2341 2341 2346", "ID"),
        ("PAN ACUPA7085R", "ACUPA7085R", "ID"),
        ("AHV 756.9217.0769.85", "756.9217.0769.85", "ID"),
        ("personnummer 880320-0016", "880320-0016", "ID"),
        ("passport number is C01X00T47", "C01X00T47", "ID"),
        ("born on 3 May 1987 in a barn", "3 May 1987", "BIRTHDATE"),
        ("date of birth: 1987-05-03", "1987-05-03", "BIRTHDATE"),
        ("geboren am 3. Mai 1987", "3. Mai 1987", "BIRTHDATE"),
        ("she is 34 years old", "34", "AGE"),
        ("see you on 2026-11-23", "2026-11-23", "DATE"),
        ("my zip code is 90210", "90210", "ADDRESS"),
        ("read example.co.uk/news now", "example.co.uk/news", "URL"),
        ("ping fe80::1 once", "fe80::1", "IP"),
    ],
)
def test_data_of_a_fixed_form_is_found_whole(text, value, kind):
    assert (value, kind) in found(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NL91ABNA0417164301 is mine", "IBAN"),
        ("amex 378282246310006", "CARD"),
        ("I am at 99.5200, 13.4050 now", "COORDINATES"),
        ("943 476 5871 is it", "ID"),
        ("X2482300A", "ID"),
        ("RCCMNL83S18D969A", "ID"),
        ("ACUXA7085R", "ID"),
        ("756.9217.0769.84", "ID"),
    ],
)
def test_a_wrong_check_digit_makes_it_something_else(text, kind):
    assert kind not in [each for _, each in found(text)]


@given(st.text(string.digits, min_size=12, max_size=18))
def test_a_card_number_is_one_whose_luhn_digit_is_right(number):
    assert is_card(number) == stdnum.luhn.is_valid(number)
    assert is_card(" ".join(number + stdnum.luhn.calc_check_digit(number)))


@pytest.mark.parametrize("number", ["41111111111", "0" * 20, ""])
def test_too_few_or_many_digits_are_no_card(number):
    assert not is_card(number)


@pytest.mark.parametrize(
    "iban",
    [
        "DE89370400440532013000",
        "GB82 WEST 1234 5698 7654 32",
        "nl91abna0417164300",
        "NO9386011117947",
    ],
)
def test_an_iban_is_one_with_its_own_check_digits_alone(iban):
    assert stdnum.iban.is_valid(iban)
    for other in range(2, 99):
        changed = f"{iban[:2]}{other:02}{iban[4:]}"
        assert is_iban(changed) == (changed == iban)


@given(st.ip_addresses())
def test_every_ip_address_is_one(address):
    assert is_ip(str(address))


@pytest.mark.parametrize("value", ["256.1.1.1", "1.2.3", "::1::", "1:2:3:4:5:6:7:8:9", ""])
def test_what_only_resembles_an_ip_address_is_none(value):
    assert not is_ip(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("+49 170 1234567", True),
        ("020 7946 0958 x12", True),
        ("12345678", False),
        ("1234567890123456", False),
        ("2026-11-23 10 30 15", False),
        ("23.11.2026 1030", False),
    ],
)
def test_a_telephone_number_has_nine_to_fifteen_digits_and_no_date(value, expected):
    assert is_phone(value) == expected


@pytest.mark.parametrize(
    ("text", "is_place"),
    [
        ("90.0000, 180.0000", True),
        ("-90.0000, -180.0000", True),
        ("90.1000, 0.1000", False),
        ("0.1000, 180.1000", False),
    ],
)
def test_coordinates_are_within_the_earth(text, is_place):
    assert patterns.is_place_on_earth(text) == is_place


@pytest.mark.parametrize(
    ("value", "expected"),
    [("030 901820", True), ("12345", False), ("1234567890123", False), ("2026-11-23", False)],
)
def test_a_short_telephone_number_has_six_to_twelve_digits_and_no_date(value, expected):
    assert patterns.is_short_phone(value) == expected


def test_every_pattern_has_a_hint_that_is_tested_and_a_kind_that_settings_know():
    hints = patterns.HINTS.keys() | patterns.HINTS_WITH_DIGITS.keys()
    assert {each.hint for each in PATTERNS} <= hints
    assert {each.kind for each in PATTERNS} <= set(KINDS)


def test_every_kind_is_found_by_a_pattern_or_by_a_name_model():
    assert set(KINDS) == {each.kind for each in PATTERNS} | MODEL_KINDS
    assert set(PrivacyConfig().kinds) <= set(KINDS)


@given(st.text(st.sampled_from("aé1 .:@/-+(),xnodbuil°"), max_size=40))
def test_a_text_in_which_a_pattern_matches_has_its_hint(text):
    is_matched = any(
        pattern.is_valid(value := match[match.lastgroup or 0])
        and any(char.isalnum() for char in value)
        for pattern in PATTERNS
        for match in pattern.regex.finditer(text)
    )
    assert bool(found(text)) == is_matched


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a@b.org", "EMAIL"),
        ("www.b.org", "URL"),
        ("@anna", "HANDLE"),
        ("::1", "IP"),
        ("Monday", "DATE"),
    ],
)
def test_only_kinds_that_are_asked_for_are_found(text, kind):
    assert kind in [each for _, each in found(text)]
    assert kind not in [each for _, each in found(text, set(KINDS) - {kind})]


def test_texts_keep_their_order_and_may_be_empty():
    spans = find_patterns(["", "a@b.org", "nothing"], kinds=KINDS)
    assert [len(each) for each in spans] == [0, 1, 0]
    assert find_patterns([], kinds=KINDS) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("https://b.org/a?x=1.", "https://b.org/a?x=1"),
        ("(see www.b.org/a)", "www.b.org/a"),
        ("b.org, c", "b.org"),
        ("<http://b.org>", "http://b.org"),
    ],
)
def test_a_url_ends_before_the_marks_of_the_sentence(text, value):
    assert found(text) == [(value, "URL")]


@pytest.mark.parametrize("text", ["1.2.3", "e.g. this", "file.py", "a.b", "3.14"])
def test_words_with_dots_are_no_urls(text):
    assert found(text) == []


@pytest.mark.parametrize(
    "date",
    [
        "January 3, 2020", "3 Jan 2020", "3. März 2020", "3 de mayo de 2020", "2020/01/03",
        "3.1.2020", "1999-12-31 10:30", "the 3rd of May"[4:],
    ],
)  # fmt: skip
def test_a_date_is_found_in_the_ways_that_people_write_it(date):
    assert found(f"until {date}, then") == [(date, "DATE")]


@pytest.mark.parametrize("text", ["may 200 of us", "10/12", "1.5", "march on"])
def test_what_is_no_date_stays(text):
    assert "DATE" not in [kind for _, kind in found(text)]


@pytest.mark.parametrize(
    "text", ["34 years old", "aged 34", "a 34-year-old", "i am 34.", "turned 34", "34 Jahre alt"]
)
def test_an_age_is_found_as_the_number_alone(text):
    assert found(text) == [("34", "AGE")]


def test_a_named_group_of_a_pattern_is_the_last_one_that_matches():
    for pattern in PATTERNS:
        assert pattern.regex.groupindex.keys() <= {"value", "this"}
        assert pattern.regex.groups == len(pattern.regex.groupindex), pattern.kind


@pytest.mark.parametrize(
    ("label", "is_given"),
    [("phone: ", True), ("phone numbers: ", True), ("date of birth: ", True), ("card: ", True),
     ("count: ", False), ("created at: ", False), ("idea: ", False), ("telescope: ", False)],
)  # fmt: skip
def test_the_name_of_a_field_says_whether_a_number_is_somebodys(label, is_given):
    assert names_a_number(label) == is_given


@pytest.mark.parametrize(
    ("text", "number"), [("call 5551234 now", "5551234"), ("mobile: 01701234567", "01701234567")]
)
def test_digits_in_one_are_a_telephone_number_right_after_its_word(text, number):
    (spans,) = find_patterns([text], kinds={"PHONE"})
    assert [text[span.start : span.end] for span in spans] == [number]
    assert find_patterns(["call 123 times, 5551234 steps"], kinds={"PHONE"}) == [[]]
