"""Keyed fingerprints of texts: pieces of a text can be found again, and the text not be read."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reactune.privacy.hashing import HashingKey

WINDOW_BYTES, SPREAD = 16, 8
FOUND_BYTES = WINDOW_BYTES + SPREAD - 1
"""A piece of a text at least this long is found wherever it stands, as UTF-8."""
CHUNK_BYTES = 2**16  # small enough that the hashes of a chunk stay in the processor's cache
TAG_BITS, FIRST_BITS = 24, 16

Hashes = NDArray[np.uint64]
Slide = Callable[[Hashes, Hashes], Hashes]


def fingerprints_of(key: HashingKey, text: str) -> frozenset[str]:
    """Fingerprints of some windows of the text; none of one shorter than `FOUND_BYTES`.

    Winnowing (Schleimer, Wilkerson, Aiken, SIGMOD 2003): of each `SPREAD` neighbouring windows the
    one with the least keyed hash is selected, so every piece of `FOUND_BYTES` holds one.
    """
    data = text.encode()
    if len(data) < FOUND_BYTES:
        return frozenset()
    hashes = _rolling(key, data)
    least = _slide(hashes, np.minimum)
    edge = np.zeros(SPREAD - 1, np.uint64)
    # A hash is selected if it is the least of any span that it is in.
    is_selected = hashes == _slide(np.concatenate([edge, least, edge]), np.maximum)
    return frozenset(_fingerprints(key, data, hashes, np.flatnonzero(is_selected)))


def fingerprint_of(key: HashingKey, value: str) -> str:
    """The fingerprint of a whole value, however short."""
    return f"{0:06x}{_digest(key, b'whole ' + value.encode())}"


def find_fingerprints(key: HashingKey, data: bytes, wanted: Collection[str]) -> set[str]:
    """Which of the wanted fingerprints are of a window of the data."""
    wanted = set(wanted)
    tags = np.array(sorted({int(each[:6], 16) for each in wanted}), np.uint64)
    is_wanted = np.zeros(2**FIRST_BITS, np.bool_)
    is_wanted[tags >> np.uint64(TAG_BITS - FIRST_BITS)] = True
    found: set[str] = set()
    for start in range(0, len(data) - WINDOW_BYTES + 1 if wanted else 0, CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES + WINDOW_BYTES - 1]
        hashes = _rolling(key, chunk)
        places = np.flatnonzero(is_wanted[hashes >> np.uint64(64 - FIRST_BITS)])
        places = places[np.isin(_tags(hashes[places]), tags)]
        _, first = np.unique(hashes[places], return_index=True)
        found |= wanted.intersection(_fingerprints(key, chunk, hashes, places[first]))
    return found


def _fingerprints(
    key: HashingKey, data: bytes, hashes: Hashes, places: NDArray[np.int64]
) -> Iterator[str]:
    """Fingerprints of the windows at these places.

    Each begins with 24 bits of the keyed hash, so that only windows with a wanted beginning need a
    digest.
    """
    for place, tag in zip(places, _tags(hashes[places]), strict=True):
        yield f"{int(tag):06x}{_digest(key, data[place : place + WINDOW_BYTES])}"


def _tags(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - TAG_BITS)


def _digest(key: HashingKey, value: bytes) -> str:
    return hashlib.blake2b(value, key=_derived(key)[:64], digest_size=16).hexdigest()


def _rolling(key: HashingKey, data: bytes) -> Hashes:
    """A keyed polynomial of every window, modulo 2**64."""
    table, factor = _table(key)
    coded = table[np.frombuffer(data, np.uint8)]
    count = len(data) - WINDOW_BYTES + 1
    hashes = coded[:count].copy()
    for shift in range(1, WINDOW_BYTES):
        hashes *= factor
        hashes += coded[shift : shift + count]
    # The low bits of a polynomial mix badly; the high ones decide which is least.
    return hashes ^ (hashes << np.uint64(29))


def _slide(values: Hashes, choose: Slide) -> Hashes:
    """The least or greatest of each `SPREAD` neighbours, by doubling."""
    width = 1
    while width < SPREAD:
        values = choose(values[:-width], values[width:])
        width *= 2
    return values


@lru_cache(16)
def _table(key: HashingKey) -> tuple[Hashes, np.uint64]:
    words = np.frombuffer(_derived(key)[64:], "<u8").astype(np.uint64)
    return words[:256], words[256] | np.uint64(1)


@lru_cache(16)
def _derived(key: HashingKey) -> bytes:
    return hashlib.shake_256(b"reactune print " + key.secret).digest(64 + 8 * 257)
