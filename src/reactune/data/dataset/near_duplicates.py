"""Texts that nearly repeat an earlier one: MinHash proposes pairs, their shingles decide.

The same texts give the same result, on any machine; memory holds proposed texts only.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Hashes = npt.NDArray[np.uint64]
    Places = npt.NDArray[np.int64]


WORDS = 3
WORD = re.compile(r"\w+")
ROUNDING = 1e-9
PERMUTATIONS = 256
MISSED = 1e-3  # the chance that two texts exactly `share` alike are not compared
CHUNK = 1_000  # texts sketched at once


def mark_near_duplicates(
    texts: Iterable[str], share: float, *, folder: Path
) -> "npt.NDArray[np.bool_]":
    """For each text, whether it nearly repeats one before it that is not a repetition itself.

    Near means that the sets of 3-shingles of case-folded words have a Jaccard index of at least
    `share`. Pairs to compare are proposed by MinHash (Broder 1997) in bands (Leskovec, Rajaraman,
    Ullman, Mining of Massive Datasets, 3.4): of pairs exactly `share` alike one in a thousand is
    missed, of pairs more alike fewer; pairs less alike are never near. Sketches are files
    in the folder; in memory are only texts that share a band with another.
    """
    import numpy as np

    bands, rows = banding(share)
    lengths = _write_sketches(texts, bands=bands, rows=rows, folder=folder)
    near = np.zeros(len(lengths), np.bool_)
    holders: dict[int, list[int]] = defaultdict(list)
    kept: dict[int, frozenset[int]] = {}
    if not len(lengths):
        return near
    hashes, ends = np.memmap(folder / "shingles", np.uint64, "r"), np.cumsum(lengths)
    for place, buckets in _proposed(folder, bands):
        own = frozenset(hashes[ends[place] - lengths[place] : ends[place]].tolist())
        others = set(chain.from_iterable(holders[bucket] for bucket in buckets))
        if any(_overlap(own, kept[other]) >= share - ROUNDING for other in others):
            near[place] = True
            continue
        kept[place] = own
        for bucket in buckets:
            holders[bucket].append(place)
    return near


def banding(share: float) -> tuple[int, int]:
    """Bands and rows of each: as many rows as miss no more than `MISSED` of pairs `share` alike."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - share**rows) ** bands <= MISSED:
            return bands, rows
    return PERMUTATIONS, 1


def sketch(shingles: "Hashes", lengths: "Places") -> "Hashes":
    """The MinHash of texts whose shingles' hashes come one text after the other.

    One row a text: the least of `a x + b mod 2^64` for each of `PERMUTATIONS` pairs a, b.
    """
    import numpy as np

    starts = np.cumsum(lengths) - lengths
    factors, terms = _permutations()
    columns = [
        np.minimum.reduceat(shingles * factor + term, starts)
        for factor, term in zip(factors, terms, strict=True)
    ]
    return np.stack(columns, axis=1)


def shingle_hashes(texts: Sequence[str]) -> tuple["Hashes", "Places"]:
    """A hash for every run of three words, one text after the other, and how many each text has.

    A shorter text has one run, of all its words; one without words has one, of its characters.
    """
    import numpy as np

    words = [_three_or_more(WORD.findall(text.casefold()) or [text.casefold()]) for text in texts]
    lengths = np.array([len(each) for each in words], np.int64)
    hashes = np.fromiter(map(_word_hash, chain.from_iterable(words)), np.uint64, lengths.sum())
    runs = _mixed(np.stack([hashes[:-2], hashes[1:-1], hashes[2:]], axis=1))
    ends = np.cumsum(lengths)
    within = np.ones(len(hashes), np.bool_)
    within[ends - 1] = within[ends - 2] = False
    return runs[within[:-2]], lengths - WORDS + 1


def _three_or_more(words: list[str]) -> list[str]:
    return words if len(words) >= WORDS else words + [""] * (WORDS - len(words))


def _write_sketches(texts: Iterable[str], *, bands: int, rows: int, folder: Path) -> "Places":
    """Write a file of each band's hashes and one of all shingles; how many each text has."""
    import numpy as np

    lengths = [np.empty(0, np.int64)]
    with (folder / "shingles").open("wb") as shingles:
        files = [(folder / f"band{band}").open("wb") for band in range(bands)]
        left = iter(texts)
        while chunk := list(islice(left, CHUNK)):
            hashes, own = shingle_hashes(chunk)
            hashes.tofile(shingles)
            lengths.append(own)
            signatures = sketch(hashes, own)
            for band, file in enumerate(files):
                _mixed(signatures[:, band * rows : (band + 1) * rows]).tofile(file)
        for file in files:
            file.close()
    return np.concatenate(lengths)


def _proposed(folder: Path, bands: int) -> Iterator[tuple[int, list[int]]]:
    """The texts that share a band with another, oldest first, and the buckets they are in."""
    import numpy as np

    places, buckets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    given = 0
    for band in range(bands):
        hashes = np.fromfile(folder / f"band{band}", np.uint64)
        order = np.argsort(hashes, kind="stable")
        same = hashes[order][1:] == hashes[order][:-1]
        member = np.append(same, np.False_) | np.append(np.False_, same)
        bucket = np.cumsum(np.append(np.True_, ~same)) + given
        places.append(order[member])
        buckets.append(bucket[member])
        given = int(bucket[-1]) if len(bucket) else given
    where, which = np.concatenate(places), np.concatenate(buckets)
    by_place = np.argsort(where, kind="stable")
    where, which = where[by_place], which[by_place]
    different, starts = np.unique(where, return_index=True)
    for place, own in zip(different.tolist(), np.split(which, starts[1:]), strict=False):
        yield place, own.tolist()


def _mixed(runs: "Hashes") -> "Hashes":
    """One hash a row of the table, of all its columns in order."""
    import numpy as np

    mixed = np.zeros(len(runs), np.uint64)
    for column in runs.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


@lru_cache(100_000)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


@cache
def _permutations() -> tuple["Hashes", "Hashes"]:
    """Odd factors and terms, from a published function: the same wherever and whenever."""
    import numpy as np

    drawn = hashlib.shake_256(b"reactune minhash").digest(PERMUTATIONS * 16)
    factors, terms = np.frombuffer(drawn, "<u8").reshape(2, PERMUTATIONS)
    return factors | np.uint64(1), terms


def _overlap(one: frozenset[int], other: frozenset[int]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)
