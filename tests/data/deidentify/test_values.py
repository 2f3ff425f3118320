"""Texts of a row are found wherever they stand, and put back without a change beside them."""

import json
from datetime import date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.data.deidentify.values import json_text, pieces_of, row_with

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters='[{"'), max_size=6)
scalars = st.one_of(texts, st.integers(), st.booleans(), st.none(), st.floats())
values = st.recursive(
    scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(texts, part, max_size=3)
)
cells = st.recursive(
    st.one_of(texts, st.integers(), st.binary(max_size=0), st.dates(), st.none()),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(texts, part, max_size=3)
        | st.lists(st.tuples(texts, part), max_size=2)
    ),
)


def texts_of(row, columns=()):
    return [piece.text.value for piece in pieces_of(row, columns)]


@given(st.dictionaries(texts, values, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_texts_put_back_unchanged_give_the_same_source(row, indent, is_ascii):
    source = json.dumps(row, indent=indent, ensure_ascii=is_ascii)
    assert row_with(source, iter(texts_of(source))) == source


@given(st.dictionaries(texts, cells, max_size=3))
def test_texts_put_back_unchanged_give_the_same_cells(row):
    pairs = tuple(row.items())
    rest = iter(texts_of(pairs))
    assert row_with(pairs, rest) == pairs
    assert next(rest, None) is None


@given(st.dictionaries(texts, values, max_size=4))
def test_every_text_of_json_is_found_with_its_key(row):
    def within(value):
        if isinstance(value, str):
            return [value]
        if isinstance(value, dict):
            return [each for key, part in value.items() for each in (key, *within(part))]
        return [each for part in value for each in within(part)] if isinstance(value, list) else []

    found = [p.text.value for p in pieces_of(json.dumps(row)) if p.role != "number"]
    assert found == within(row)


@given(st.dictionaries(texts, values, min_size=1, max_size=3), texts)
def test_new_texts_stand_where_the_old_ones_stood(row, new):
    source = json.dumps(row)
    after = row_with(source, iter([f"{new}{n}" for n in range(len(texts_of(source)))]))
    assert texts_of(after) == [f"{new}{n}" for n in range(len(texts_of(source)))]


def test_labels_are_the_nearest_key_also_of_items_of_lists():
    source = '{"a_b": ["x", {"cD": "y"}, "z"], "e": "[\\"w\\"]"}'
    found = [(p.text.label, p.text.value) for p in pieces_of(source) if p.role == "value"]
    assert found == [("a b: ", "x"), ("c d: ", "y"), ("a b: ", "z"), ("e: ", "w")]


def test_columns_limit_what_is_looked_at():
    source = '{"a": {"b": "x"}, "c": "y", "a": "z"}'
    assert texts_of(source, ["a"]) == ["b", "x", "z"]
    assert row_with(source, iter("123"), ["a"]) == '{"a": {"1": "2"}, "c": "y", "a": "3"}'
    pairs = (("a", "x"), ("c", "y"), ("a", "z"))
    assert texts_of(pairs, ["a"]) == ["x", "z"]
    assert row_with(pairs, iter("12"), ["a"]) == (("a", "1"), ("c", "y"), ("a", "2"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4917012345678, "4917012345678"),
        (4917012345678.0, "4917012345678"),
        (Decimal("4917012345678.00"), "4917012345678"),
        (date(1990, 2, 17), "1990-02-17"),
        (datetime(1990, 2, 17, 12), "1990-02-17"),
        (True, None),
        (1.5, None),
        (float("nan"), None),
        (None, None),
    ],
)
def test_numbers_and_days_are_looked_at_under_a_name_that_says_so(value, text):
    assert texts_of((("phone", value),)) == ([] if text is None else [text])
    assert texts_of((("count", value),)) == []


def test_half_characters_are_escaped_in_json():
    assert json_text({"a": "é\ud83d"}) == '{"a": "é\\ud83d"}'


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ('{"phone": {"home": 4915112345678}}', "phone: "),
        ('{"phones": [{"x": 4915112345678}]}', "phones x: "),
        ('{"a": "{\\"mobile\\": {\\"work\\": 4915112345678}}"}', "mobile: "),
    ],
)
def test_what_stands_within_telephone_numbers_is_one(source, label):
    held = [p.text for p in pieces_of(source) if p.role == "number"]
    assert [(text.label, text.value) for text in held] == [(label, "4915112345678")]
    assert not any(p.role == "number" for p in pieces_of('{"note": {"home": 4915112345678}}'))


def test_structures_and_maps_of_telephone_numbers_are_looked_into():
    row = (("phone", {"home": 4915112345678}), ("more", [("mobile", [("work", 1512345678)])]))
    assert [p.text.label for p in pieces_of(row) if p.role == "number"] == [
        "phone: ",
        "mobile: ",
    ]
