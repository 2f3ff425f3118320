"""Words of a text, and the features by which the tagger knows them.

Training and running share this module, so both see the same numbers.
"""

import gzip
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from zlib import crc32

LEXICON = Path(__file__).with_name("lexicon.txt.gz")
ROWS = 1 << 15  # rows of the embedding table
MAX_WORD = 40  # characters that features look at
CACHED_WORDS = 1 << 16
WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]|_|\n")

LONG_RUN = re.compile(r"(.)\1{4,}")

Word = tuple[int, int]  # where it stands in the text


def words_of(text: str) -> list[Word]:
    """Runs of letters, runs of digits, single marks and line breaks."""
    return [match.span() for match in WORD.finditer(text)]


@lru_cache(CACHED_WORDS)
def features_of(word: str) -> tuple[int, ...]:
    """Rows of the embedding table that stand for the word: form, parts, shape, lexicon."""
    word = word[:MAX_WORD]
    low = word.casefold()
    framed = f"^{low}$"
    names = [f"w{low}", f"h{shape_of(word)}", f"l{classes_of(low)}", f"z{min(len(word), 12)}"]
    names += [f"p{low[:n]}" for n in (1, 2, 3)]
    names += [f"s{low[-n:]}" for n in (1, 2, 3, 4)]
    names += [f"g{framed[at : at + 3]}" for at in range(len(framed) - 2)]
    return tuple(crc32(name.encode("utf-8", "surrogatepass")) % ROWS for name in names)


def shape_of(word: str) -> str:
    """The word with its letters as `X` and `x`, digits as `d`; runs are cut at four."""
    signs = word.translate(SIGNS) if max(word) < END_OF_SIGNS else "".join(map(_sign, word))
    return LONG_RUN.sub(r"\1\1\1\1", signs) if len(signs) > 4 else signs


def classes_of(low: str) -> str:
    """The letters of the lexicon's lists that hold the word; see scripts/tagger_lexicon.py."""
    return lexicon().get(low, "")


@cache
def lexicon() -> Mapping[str, str]:
    """Word, casefolded = the letters of the lists that hold it."""
    with gzip.open(LEXICON, "rt", encoding="utf-8") as lines:
        pairs = (line.rstrip("\n").split("\t") for line in lines)
        return {word: classes for classes, words in pairs for word in words.split(" ")}


def _sign(char: str) -> str:
    return "d" if char.isdigit() else "X" if char.isupper() else "x" if char.isalpha() else char


END_OF_SIGNS = "\u0530"  # Latin, Greek and Cyrillic stand before it
SIGNS = {code: _sign(chr(code)) for code in range(ord(END_OF_SIGNS))}
