"""Fingerprints: a piece of a text is found wherever it stands, and nothing else is."""

import hashlib
import os
import struct

from hypothesis import given
from hypothesis import strategies as st

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


def test_another_key_makes_other_fingerprints():
    assert not fingerprints_of(KEY, LONG) & fingerprints_of(OTHER, LONG)
    assert not find_fingerprints(OTHER, LONG.encode(), fingerprints_of(KEY, LONG))


def test_a_text_across_two_chunks_is_found():
    for place in (CHUNK_BYTES - 30, CHUNK_BYTES - 1, CHUNK_BYTES):
        data = bytes(place) + LONG.encode() + os.urandom(100)
        assert find_fingerprints(KEY, data, fingerprints_of(KEY, LONG))


def derived(secret):
    """The bytes that fingerprints are keyed with, as SHAKE-256 of a label and the secret."""
    return hashlib.shake_256(b"reactune print " + secret).digest(64 + 8 * 257)


def test_the_fingerprint_of_a_value_is_a_keyed_blake2b_of_it():
    for secret, value in ((b"k" * 32, "t-1"), (b"j" * 32, "t-1"), (b"k" * 32, "größer")):
        keyed = hashlib.blake2b(key=derived(secret)[:64], digest_size=16)
        keyed.update(b"whole " + value.encode())
        assert fingerprint_of(HashingKey(secret), value) == f"000000{keyed.hexdigest()}"


def windows_selected(secret, data):
    """Winnowing by its definition, in Python's integers: the least hash of each eight windows."""
    words = struct.unpack("<257Q", derived(secret)[64:])
    table, factor = words[:256], words[256] | 1
    hashes = []
    for place in range(len(data) - 15):
        value = 0
        for byte in data[place : place + 16]:
            value = (value * factor + table[byte]) % 2**64
        hashes.append(value ^ (value << 29) % 2**64)
    least = [min(hashes[place : place + 8]) for place in range(len(hashes) - 7)]
    return {
        (place, value)
        for place, value in enumerate(hashes)
        if any(value == each for each in least[max(place - 7, 0) : place + 1])
    }


@given(text=long_texts)
def test_fingerprints_are_those_of_winnowing_by_its_definition(text):
    data, key = text.encode(), derived(b"k" * 32)[:64]
    expected = {
        f"{value >> 40:06x}"
        f"{hashlib.blake2b(data[place : place + 16], key=key, digest_size=16).hexdigest()}"
        for place, value in windows_selected(b"k" * 32, data)
    }
    assert fingerprints_of(KEY, text) == expected


def test_a_text_that_is_too_short_has_no_fingerprints():
    assert fingerprints_of(KEY, "a" * (FOUND_BYTES - 1)) == frozenset()
    assert fingerprints_of(KEY, "a" * FOUND_BYTES)


def test_nothing_is_found_where_nothing_is_wanted_or_the_data_is_short():
    assert find_fingerprints(KEY, LONG.encode(), ()) == set()
    assert find_fingerprints(KEY, b"short", fingerprints_of(KEY, LONG)) == set()


def test_a_fingerprint_holds_nothing_of_the_text():
    assert all(len(each) == 38 and "essay" not in each for each in fingerprints_of(KEY, LONG))
