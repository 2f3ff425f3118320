"""Texts that are nearly the same: Jaccard overlap of their word 3-shingles, exactly.

Pure; which texts are compared with which, and what becomes of them, is `rules.py`'s.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from math import ceil

WORDS = 3
WORD = re.compile(r"\w+")
ROUNDING = 1e-9
SIGNATURE_BITS = 256


def first_of_each(texts: Sequence[str], share: float) -> list[int]:
    """Places of the texts that are near no text kept before them.

    Near means that the sets of 3-shingles of case-folded words have a Jaccard index of at least
    `share`. Exact, by prefix filtering (Chaudhuri, Ganti, Kaushik, ICDE 2006; Bayardo, Ma,
    Srikant, WWW 2007): two such sets share one of the |x| - ceil(share |x|) + 1 rarest shingles
    of either, so only texts that share one are compared.
    """
    numbers: dict[tuple[str, ...], int] = {}
    sets = [
        frozenset(numbers.setdefault(shingle, len(numbers)) for shingle in shingles(text))
        for text in texts
    ]
    frequency = Counter(chain.from_iterable(sets))
    signatures = [_signature(own) for own in sets]
    most_different = (1 - share) / (1 + share) + ROUNDING
    holders: dict[int, list[int]] = defaultdict(list)
    kept = []
    for place, own in enumerate(sets):
        rarest_first = sorted(own, key=lambda shingle: (frequency[shingle], shingle))
        prefix = rarest_first[: len(own) - ceil(share * len(own) - ROUNDING) + 1]
        others = set(chain.from_iterable(holders[shingle] for shingle in prefix))
        signature = signatures[place]
        if any(
            (signature ^ signatures[other]).bit_count()
            <= most_different * (len(own) + len(sets[other]))
            and _overlap(own, sets[other]) >= share - ROUNDING
            for other in others
        ):
            continue
        kept.append(place)
        for shingle in prefix:
            holders[shingle].append(place)
    return kept


def _signature(numbers: Iterable[int]) -> int:
    """Bits of which no more differ between two sets than elements do: a cheap first look."""
    signature = 0
    for number in numbers:
        signature ^= 1 << number % SIGNATURE_BITS
    return signature


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every run of three words; of a shorter text all its words, of one without words the text."""
    words = tuple(WORD.findall(text.casefold())) or (text.casefold(),)
    return frozenset(words[i : i + WORDS] for i in range(max(1, len(words) - WORDS + 1)))


def _overlap(one: frozenset[int], other: frozenset[int]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)
