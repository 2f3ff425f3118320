"""Fingerprints: a piece of a text is found wherever it stands, and nothing else is."""

import os

from hypothesis import given
from hypothesis import strategies as st

from reactune.erasure.requests import texts_in
from reactune.privacy.fingerprints import (
    CHUNK_BYTES,
    FOUND_BYTES,
    find_fingerprints,
    fingerprint_of,
    fingerprints_of,
)
from reactune.privacy.hashing import HashingKey

KEY, OTHER = HashingKey(b"k" * 32), HashingKey(b"j" * 32)
LONG = "Write the first line of your essay now, then drink a glass of water."
long_texts = st.text(st.characters(codec="utf-8"), min_size=FOUND_BYTES, max_size=200)


@given(
    text=long_texts, before=st.binary(max_size=100), after=st.binary(max_size=100), cut=st.data()
)
def test_any_piece_that_is_long_enough_is_found_between_any_bytes(text, before, after, cut):
    data = text.encode()
    start = cut.draw(st.integers(0, len(data) - FOUND_BYTES))
    piece = data[start : start + FOUND_BYTES]
    assert find_fingerprints(KEY, before + piece + after, fingerprints_of(KEY, text))


@given(text=long_texts, other=st.binary(max_size=300))
def test_what_shares_no_window_with_a_text_is_not_taken_for_it(text, other):
    data = text.encode()
    windows = {data[place : place + 16] for place in range(len(data) - 15)}
    shared = any(other[place : place + 16] in windows for place in range(len(other) - 15))
    assert shared or not find_fingerprints(KEY, other, fingerprints_of(KEY, text))


def test_another_key_makes_other_prints():
    assert not fingerprints_of(KEY, LONG) & fingerprints_of(OTHER, LONG)
    assert not find_fingerprints(OTHER, LONG.encode(), fingerprints_of(KEY, LONG))


def test_a_text_across_two_chunks_is_found():
    for place in (CHUNK_BYTES - 30, CHUNK_BYTES - 1, CHUNK_BYTES):
        data = bytes(place) + LONG.encode() + os.urandom(100)
        assert find_fingerprints(KEY, data, fingerprints_of(KEY, LONG))


def test_a_short_text_has_no_prints_but_a_whole_value_has_one():
    assert fingerprints_of(KEY, "a" * (FOUND_BYTES - 1)) == frozenset()
    assert fingerprint_of(KEY, "t-1") == fingerprint_of(KEY, "t-1") != fingerprint_of(KEY, "t-2")


def test_a_print_says_nothing_of_the_text():
    assert all(len(each) == 38 and "essay" not in each for each in fingerprints_of(KEY, LONG))


def test_names_and_values_of_a_context_are_texts():
    context = '{"v":1,"context":{"open_tasks":["one",{"two":3}],"free_text":"four"}}'
    assert set(texts_in(context)) == {
        "v", "context", "open_tasks", "one", "two", "free_text", "four",
    }  # fmt: skip
    assert list(texts_in("no JSON")) == ["no JSON"]
