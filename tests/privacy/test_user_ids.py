"""One person has one id, whatever the door and the spelling."""

import unicodedata
from decimal import Decimal
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.privacy.user_ids import (
    MAX_ID_CHARS,
    IdError,
    canonical_id,
    earlier_forms,
    id_in_header,
    id_in_url,
    id_of_somebody,
    ids_in_lines,
    rare_forms,
)

ID_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
UUID_OF_ANNA = "0189d3ab-77e2-7c41-9d3a-5f00c0ffee01"


@pytest.mark.parametrize(
    ("value", "user_id"),
    [
        ("u-7", "u-7"),
        ("  u-7\t\n", "u-7"),
        ("\ufeffu-7\r", "u-7"),
        ("zoe\u0308-7", "zo\u00eb-7"),
        ("100%25", "100%25"),
        ("7.0", "7.0"),
        ("U-7", "U-7"),
        (7, "7"),
        (7.0, "7"),
        (-0.0, "0"),
        (7.5, "7.5"),
        (Decimal("7.00"), "7"),
        (Decimal("700"), "700"),
        (Decimal("-0.0"), "0"),
        (Decimal("1E+3"), "1000"),
        (
            Decimal("123456789012345678901234567890123456.00"),
            "123456789012345678901234567890123456",
        ),
        (Decimal("7.50"), "7.5"),
        (2**70, str(2**70)),
        (b"u-7", "u-7"),
        (b"u-7\0\0\0", "u-7"),
        ("zo\u00eb-7".encode(), "zo\u00eb-7"),
        (b"sixteen letters!", "sixteen letters!"),
        (UUID(UUID_OF_ANNA), UUID_OF_ANNA),
        (UUID_OF_ANNA.upper(), UUID_OF_ANNA),
        (UUID(UUID_OF_ANNA).bytes, UUID_OF_ANNA),
        ("u-7".ljust(20), "u-7"),
    ],
)
def test_an_id_has_one_spelling_by_its_type_and_not_by_its_looks(value, user_id):
    assert canonical_id(value) == user_id


@pytest.mark.parametrize(
    "value",
    [
        None, "", " \ufeff ", True, [7], {"id": 7}, float("nan"), float("inf"), 2.0**53,
        Decimal("NaN"), "\ud83d", "u\0007", b"\xff\xfe", "x" * (MAX_ID_CHARS + 1),
    ],
)  # fmt: skip
def test_what_is_no_id_is_refused_without_being_quoted(value):
    with pytest.raises(IdError) as error:
        canonical_id(value)
    assert error.value.reason in str(error.value)
    assert not value or repr(value) not in str(error.value)


@pytest.mark.parametrize(
    "value",
    ["undefined", " null\n", "None", "[object Object]", float("nan"), UUID(int=0), bytes(16), ""],
)
def test_the_text_of_a_missing_value_names_nobody(value):
    with pytest.raises(IdError):
        id_of_somebody(value)


@pytest.mark.parametrize("value", ["Null", "none", "nullius", "undefined-7", 0, UUID(int=1)])
def test_an_id_that_only_resembles_a_missing_value_stays_as_it_came(value):
    assert id_of_somebody(value) is value


@given(ID_TEXTS)
def test_every_spelling_of_a_text_is_one_id_and_stays_it(text):
    try:
        user_id = canonical_id(text)
    except IdError:
        return
    assert canonical_id(user_id) == user_id
    for form in ("NFC", "NFD"):
        assert canonical_id(unicodedata.normalize(form, text)) == user_id
    assert canonical_id(f"\ufeff {text} \r\n") == user_id
    if user_id.isprintable():  # bytes that are not may be a UUID
        assert canonical_id(user_id.encode()) == user_id


@given(ID_TEXTS)
def test_a_header_holds_an_id_raw_or_in_ascii(text):
    try:
        user_id = canonical_id(text)
    except IdError:
        return
    raw = user_id.encode().decode("latin-1")  # as a server hands a header on
    if not user_id.casefold().startswith("utf-8'"):
        assert canonical_id(id_in_header(raw)) == user_id
    assert canonical_id(id_in_header(f"UTF-8''{quote(user_id, safe='')}")) == user_id
    assert canonical_id(id_in_header(f"utf-8'en'{quote(user_id)}")) == user_id


@pytest.mark.parametrize("value", ["zo\u00eb", "UTF-8''zo%EB"])
def test_a_header_that_is_not_utf_8_is_refused(value):
    with pytest.raises(IdError, match="not UTF-8"):
        id_in_header(value)


def test_a_percent_sign_in_a_header_is_itself():
    assert id_in_header("zo%C3%AB") == "zo%C3%AB"


def test_bytes_that_a_server_could_not_decode_name_nobody():
    assert id_in_url("zo\u00eb") == "zo\u00eb"
    with pytest.raises(IdError, match="percent-encode"):
        id_in_url("zo\ufffd")


def test_lines_hold_one_id_each_and_no_other_separator_splits_one():
    assert ids_in_lines("\ufeffu-7\r\n\n u 8 \n \nzo\u00eb\u2028x".encode()) == [
        "u-7\r", " u 8 ", "zo\u00eb\u2028x",
    ]  # fmt: skip
    with pytest.raises(IdError, match="not UTF-8"):
        ids_in_lines(b"u-7\nzo\xeb\n")


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (" u-7", " u-7"),
        ("zo\u00eb", "zoe\u0308"),
        ("zo\u00eb", "zo\u00c3\u00ab"),
        (UUID_OF_ANNA, UUID_OF_ANNA.upper()),
        (7, "7.0"),
        (Decimal("7.00"), "7.00"),
        (b"u-7", "\\x752d37"),
        ("zo\u00eb".encode(), "zo\\xC3\\xAB"),
    ],
)
def test_what_an_earlier_version_hashed_is_known(value, form):
    assert form in earlier_forms(value)
    assert canonical_id(value) not in earlier_forms(value)


def test_a_plain_id_costs_no_second_look():
    assert earlier_forms("u-7") == ()


def test_padding_and_binary_columns_are_among_the_rare_forms():
    forms = rare_forms("u-7")
    assert {"u-7       ", "u-7\r", "\ufeffu-7", "\\x752d37"} <= {*forms}
    assert "7.00" in rare_forms("7")
    assert len(forms) < 40
