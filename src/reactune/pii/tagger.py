"""Names of people, places and organisations, and postal addresses, by a small neural network.

Three convolutions over sums of word features, in numpy; trained by scripts/train_tagger.py. A word
has hashed features and, if it is frequent, a vector of its own, from a language model's embeddings.
The weights depend on the features: change neither without training again.
"""

import gzip
import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from reactune.pii.spans import Span, without_overlaps

Word = tuple[int, int]  # start and end in the text
Matrix: TypeAlias = NDArray[np.float32]

LEXICON = Path(__file__).with_name("lexicon.txt.gz")
WEIGHTS = Path(__file__).with_name("tagger.npz")
ROWS = 1 << 15  # rows of the embedding table
WINDOW = 5  # words that one convolution sees at once
DILATION = 2  # the last convolution sees every second word
MARGIN = DILATION * (WINDOW // 2)  # empty rows between two texts: neither influences the other
CHUNK_WORDS = 6_000
REACH = 2 * (WINDOW // 2) + MARGIN  # words on either side that influence a word
CACHED_FEATURES = 1 << 16
CACHED_PRODUCTS = 10_000  # 2.5 KB each
MOSTLY = 0.6  # share of a text's words
CASES, MIXED, ALL_SMALL = 4, 0, 1
PROSE_WORDS, PROSE_ENDS = 12, {".", '"', "\u201d", ")"}
SIGNS_OF_POSTS, WEB = "@#", {"http", "https"}
MAX_WORD = 40  # characters that features use
MIN_ADDRESS = 4  # characters
# Kinds that say less about a person and are less clear need a higher score.
MIN_SCORE = {"ADDRESS": 0.5, "ORGANIZATION": 0.75, "TITLE": 0.5, "GROUP": 0.75}
# And so do small letters, or capitals alone, where other words have both; and the most common words
# in small letters, which are names only where nothing else fits.
SURE_OF_SMALL, SURE_OF_CAPITALS, SURE_OF_COMMON, MOST_COMMON = 0.6, 0.4, 0.9, "1"
# As do these and marks within a name: `Asia, Africa` and `Riyadh and Jeddah` are two.
SURE_OF_LINK = 0.4

WORD = re.compile(r"(?<!\w)@\w+|[^\W\d_]+|\d+|[^\w\s]|_|\n")
LETTERS = re.compile(r"[^\W\d_]{2,}")
NO_COMMA = re.compile(r"[^\s,](?:[^,]*[^\s,])?")
LONG_RUN = re.compile(r"(.)\1{4,}")
# Parts of a building, which are no address without a street or a town.
UNITS = {"room", "floor"}
MAX_WITHIN = 2  # words between two parts of an address
WITHIN_ADDRESS = re.compile(r"[\s,.#/-]{0,4}(?:[^\W_]{1,14}[\s,.#/-]{1,4}){0,2}")


@dataclass(frozen=True)
class Tagger:
    """The weights. `kinds[0]` is the kind of a word that is no part of a name."""

    kinds: tuple[str, ...]
    threshold: float
    table: Matrix = field(repr=False)  # features and frequent words x width
    by_style: Matrix = field(repr=False)  # styles of a text x hidden
    flat_first: Matrix = field(repr=False)  # width x (window x hidden)
    first_bias: Matrix = field(repr=False)
    second: Matrix = field(repr=False)  # window x hidden x hidden
    second_bias: Matrix = field(repr=False)
    third: Matrix = field(repr=False)
    third_bias: Matrix = field(repr=False)
    out: Matrix = field(repr=False)  # hidden x kinds
    out_bias: Matrix = field(repr=False)
    frequent: Mapping[str, int] = field(repr=False)  # word = its row of the table
    products: dict[str, Matrix] = field(repr=False, default_factory=dict)


@cache
def load_tagger(file: Path = WEIGHTS) -> Tagger:
    """The tagger of a file; read once."""
    with np.load(file) as held:
        table = held["table"].astype(np.float32) * held["scale"].astype(np.float32)[:, None]
        names = ("first_bias", "by_style", "second", "second_bias", "third", "third_bias", "out",
                 "out_bias")  # fmt: skip
        words = bytes(held["words"]).decode().split("\n")
        first = held["first"].transpose(1, 0, 2).reshape(table.shape[1], -1)
        # With another memory order, matrix products take many times as long.
        arrays: dict[str, Any] = {
            name: np.ascontiguousarray(held[name], np.float32) for name in names
        }
        return Tagger(
            kinds=tuple(str(kind) for kind in held["kinds"]),
            threshold=float(held["threshold"]),
            table=table,
            flat_first=np.ascontiguousarray(first, np.float32),
            frequent={word: row for row, word in enumerate(words, start=ROWS)},
            **arrays,
        )


def find_names(
    tagger: Tagger, texts: Sequence[str], *, kinds: Collection[str], threshold: float | None = None
) -> list[list[Span]]:
    """The spans of these kinds in every text; texts do not influence each other.

    A word from the threshold on belongs to a name; without one, the tagger's counts.
    """
    threshold = tagger.threshold if threshold is None else threshold
    wanted = [number for number, kind in enumerate(tagger.kinds) if kind in kinds]
    if not wanted:
        return [[] for _ in texts]
    return [spans for chunk in _chunks(texts) for spans in _find(tagger, chunk, wanted, threshold)]


def probabilities(tagger: Tagger, texts: Sequence[Sequence[str]]) -> tuple[Matrix, list[int]]:
    """The probability of each kind for each word (one row each), and each text's first row.

    Between two texts there are rows of no word. Memory for all but the result is bounded.
    """
    rows = np.full(sum(len(words) + MARGIN for words in texts) + MARGIN, -1)
    styles = np.zeros(len(rows), np.intp)
    known: dict[str, int] = {}
    at, starts = MARGIN, []
    for words in texts:
        starts.append(at)
        rows[at : at + len(words)] = [known.setdefault(word, len(known)) for word in words]
        styles[at : at + len(words)] = style_of(words)
        at += len(words) + MARGIN
    scores = np.zeros((len(rows), len(tagger.kinds)), np.float32)
    all_words = list(known)
    for first in range(0, len(rows), CHUNK_WORDS):
        end = min(first + CHUNK_WORDS, len(rows))
        near = slice(max(first - REACH, 0), min(end + REACH, len(rows)))
        found = _block(tagger, all_words, rows[near], styles[near])
        scores[first:end] = found[first - near.start : end - near.start]
    return scores, starts


def _block(
    tagger: Tagger, all_words: Sequence[str], rows: NDArray[np.intp], styles: NDArray[np.intp]
) -> Matrix:
    """Probabilities for rows of words, by number; right but for `REACH` rows at either end."""
    numbers, places = np.unique(rows, return_inverse=True)
    if numbers[0] < 0:  # the rows of no word: they stay -1
        numbers, places = numbers[1:], places - 1
    if not len(numbers):
        return np.zeros((len(rows), len(tagger.kinds)), np.float32)
    is_word = (rows >= 0)[:, None]
    products = _products(tagger, [all_words[number] for number in numbers])
    seen = _first_convolution(tagger, products, places) + tagger.by_style[styles]
    seen = np.maximum(seen, 0) * is_word
    seen = (np.maximum(_convolve(seen, tagger.second, tagger.second_bias), 0) + seen) * is_word
    third = _convolve(seen, tagger.third, tagger.third_bias, dilation=DILATION)
    scores = (np.maximum(third, 0) + seen) @ tagger.out + tagger.out_bias
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    return np.asarray(scores * is_word, np.float32)


def style_of(words: Sequence[str]) -> int:
    """The text's case, and 4 more where it is a whole sentence of prose, and no post.

    Prose names people in other ways, and has other things that look like names.
    """
    is_prose = len(words) >= PROSE_WORDS and words[-1] in PROSE_ENDS
    is_prose = is_prose and not any(word[0] in SIGNS_OF_POSTS or word in WEB for word in words)
    return case_of(words) + CASES * is_prose


def case_of(words: Sequence[str]) -> int:
    """How a text writes its words: 0 mixed, 1 all small, 2 mostly in capitals, 3 as in titles."""
    letters = [word for word in words if word[0].isalpha() and len(word) > 1]
    large = sum(word[0].isupper() for word in letters)
    if not large:
        return ALL_SMALL
    if sum(word.isupper() for word in letters) > MOSTLY * len(letters):
        return 2
    return 3 if len(letters) > 3 and large > MOSTLY * len(letters) else 0


def words_of(text: str) -> list[Word]:
    """Runs of letters, runs of digits, single marks and line breaks."""
    return [match.span() for match in WORD.finditer(text)]


@lru_cache(CACHED_FEATURES)
def features_of(word: str) -> tuple[int, ...]:
    """Rows of the embedding table for the word: form, parts, shape, lexicon."""
    word = word[:MAX_WORD]
    low = word.casefold()
    framed = f"^{low}$"
    names = [f"w{low}", f"h{shape_of(word)}", f"l{classes_of(low)}", f"z{min(len(word), 12)}"]
    names += [f"p{low[:n]}" for n in (1, 2, 3)]
    names += [f"s{low[-n:]}" for n in (1, 2, 3, 4)]
    names += [f"g{framed[at : at + 3]}" for at in range(len(framed) - 2)]
    return tuple(crc32(name.encode("utf-8", "surrogatepass")) % ROWS for name in names)


def rows_of(tagger: Tagger, word: str) -> tuple[int, ...]:
    """The rows of the table that add up to the word's vector."""
    for form in (word, word.capitalize(), word.lower()):
        if form in tagger.frequent:
            return (*features_of(word), tagger.frequent[form])
    return features_of(word)


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


END_OF_SIGNS = "\u0530"  # Latin, Greek and Cyrillic come before it
SIGNS = {code: _sign(chr(code)) for code in range(ord(END_OF_SIGNS))}


def _find(
    tagger: Tagger, texts: Sequence[str], wanted: Sequence[int], threshold: float
) -> list[list[Span]]:
    words = [words_of(text) for text in texts]
    as_text = [[text[s:e] for s, e in of] for text, of in zip(texts, words, strict=True)]
    likelihood, starts = probabilities(tagger, as_text)
    likelihood = likelihood[:, wanted] * _may_be_name(as_text, starts, len(likelihood))
    likely, best = likelihood.sum(axis=1), likelihood.argmax(axis=1)
    found: list[list[Span]] = [[] for _ in texts]
    signs = _rows_of_signs(as_text, starts)
    named = [
        row
        for row in np.flatnonzero(likely >= threshold).tolist()
        if likely[row] >= SURE_OF_LINK or not _is_link(_word_at(as_text, starts, row))
    ]
    for first, end in _runs(named, best, signs):
        number = bisect_right(starts, first) - 1
        kind = tagger.kinds[wanted[best[first]]]
        at, last = words[number][first - starts[number]][0], words[number][end - 1 - starts[number]]
        score = round(float(likely[first:end].max()), 3)
        value = texts[number][at : last[1]]
        least = max(MIN_SCORE.get(kind, 0), _sure_of_case(value, as_text[number]))
        if score >= least and _can_be(kind, value):
            span = _whole(texts[number], Span(at, last[1], kind, score))
            found[number] += _at_commas(texts[number], span)
    return [
        without_overlaps(text, filter(partial(_is_plausible, text), _joined(text, spans)))
        if spans
        else []
        for text, spans in zip(texts, found, strict=True)
    ]


def _may_be_name(
    texts: Sequence[Sequence[str]], starts: Sequence[int], count: int
) -> NDArray[np.float32]:
    """Which rows are no handle (`@anna`): these have a form of their own."""
    may_be = np.ones((count, 1), np.float32)
    for words, start in zip(texts, starts, strict=True):
        for number, word in enumerate(words):
            if word[0] == "@" and len(word) > 1:
                may_be[start + number] = 0
    return may_be


def _rows_of_signs(texts: Sequence[Sequence[str]], starts: Sequence[int]) -> set[int]:
    """The rows of an `@` that stands alone, as in `@ anna_k @ bo`: with each a name begins."""
    return {
        start + number
        for words, start in zip(texts, starts, strict=True)
        if "@" in words
        for number, word in enumerate(words)
        if word == "@"
    }


def _word_at(texts: Sequence[Sequence[str]], starts: Sequence[int], row: int) -> str:
    number = bisect_right(starts, row) - 1
    return texts[number][row - starts[number]]


def _sure_of_case(value: str, words: Sequence[str]) -> float:
    """The score that a name in small letters, or in capitals, needs among these words."""
    if value.islower():
        if _is_small(value):
            return SURE_OF_COMMON
        return 0 if case_of(words) == ALL_SMALL else SURE_OF_SMALL
    is_loud = value.isupper() and not value.istitle()  # `U.S.` is both
    return SURE_OF_CAPITALS if is_loud and case_of(words) == MIXED else 0


def _is_link(word: str) -> bool:
    """Whether the word is a mark or a common word in small letters, such as `and`."""
    return not word[0].isalnum() or _is_small(word)


def _whole(text: str, span: Span) -> Span:
    """The span, extended by adjacent letters and digits, as in `6XE`."""
    start, end = span.start, span.end
    while start and text[start - 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum():
        end += 1
    return Span(start, end, span.kind, span.score)


def _at_commas(text: str, span: Span) -> list[Span]:
    """`Newark, Ohio` as two places, so that `Ohio` alone gets the same placeholder."""
    if span.kind != "PLACE":
        return [span]
    parts = [match.span() for match in NO_COMMA.finditer(text, span.start, span.end)]
    return [Span(start, end, span.kind, span.score) for start, end in parts] or [span]


def _joined(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans, where a word or two between two parts of an address join them."""
    joined: list[Span] = []
    for span in spans:
        if span.kind == "ADDRESS":
            near = [s for s in joined[-MAX_WITHIN - 1 :] if s.kind == "ADDRESS"]
            if near and WITHIN_ADDRESS.fullmatch(text, near[-1].end, span.start):
                before = near[-1]
                while joined and joined[-1].end > before.start:
                    joined.pop()
                span = Span(before.start, span.end, span.kind, max(before.score, span.score))
        joined.append(span)
    return joined


def _is_plausible(text: str, span: Span) -> bool:
    """Whether an address has a word with a capital or of a street: `Room 2, floor 3` is none."""
    if span.kind != "ADDRESS":
        return True
    words = [w for w in LETTERS.findall(text, span.start, span.end) if w.casefold() not in UNITS]
    return any(word[0].isupper() or "s" in classes_of(word.casefold()) for word in words)


def _runs(
    rows: Sequence[int], best: NDArray[np.intp], begins: Collection[int] = ()
) -> Iterator[tuple[int, int]]:
    """First row and end of adjacent rows of one kind: together they are one name.

    With a row of `begins`, a name begins in any case.
    """
    first = end = -1
    for row in rows:
        if row != end or best[row] != best[first] or row in begins:
            if end > first:
                yield first, end
            first = row
        end = row + 1
    if end > first:
        yield first, end


def _products(tagger: Tagger, words: Sequence[str]) -> Matrix:
    """Words x window x hidden: each word's vector times each matrix of the first convolution.

    Cached: most words of a text occurred in earlier texts.
    """
    products = [tagger.products.get(word) for word in words]
    new = [number for number, product in enumerate(products) if product is None]
    if new:
        features = [rows_of(tagger, words[number]) for number in new]
        starts = np.cumsum([0, *(len(of) for of in features[:-1])])
        flat = np.array([row for of in features for row in of])
        vectors = np.add.reduceat(tagger.table[flat], starts)
        if len(tagger.products) > CACHED_PRODUCTS:
            tagger.products.clear()
        for number, product in zip(new, vectors @ tagger.flat_first, strict=True):
            tagger.products[words[number]] = products[number] = product
    return np.array(products, np.float32).reshape(len(words), WINDOW, -1)


def _first_convolution(tagger: Tagger, products: Matrix, rows: NDArray[np.intp]) -> Matrix:
    """The sum of the products of the words in each row's window."""
    nothing = np.zeros((1, *products.shape[1:]), np.float32)
    products = np.concatenate([products, nothing])  # for row -1, which is no word
    inner = len(rows) - WINDOW + 1
    summed = np.zeros((len(rows), products.shape[2]), np.float32)
    middle = summed[WINDOW // 2 : WINDOW // 2 + inner]
    middle += tagger.first_bias
    for offset in range(WINDOW):
        middle += products[rows[offset : offset + inner], offset]
    return summed


def _convolve(rows: Matrix, weights: Matrix, bias: Matrix, *, dilation: int = 1) -> Matrix:
    """Each row from its window; the margins at both ends are left empty."""
    margin = dilation * (WINDOW // 2)
    inner = len(rows) - 2 * margin
    summed = np.zeros((len(rows), len(bias)), np.float32)
    middle = summed[margin : margin + inner]
    middle += bias
    for number in range(WINDOW):
        first = number * dilation
        middle += rows[first : first + inner] @ weights[number]
    return summed


def _is_small(value: str) -> bool:
    """Whether the value is of common words in small letters, as `friend` or `will`."""
    return value.islower() and all(MOST_COMMON in classes_of(word) for word in value.split())


def _can_be(kind: str, value: str) -> bool:
    """Whether the value is long enough: a name has two letters, an address is no plain word."""
    if kind == "ADDRESS":
        is_small_word = value.islower() and value.isalpha()
        return len(value) >= MIN_ADDRESS and not is_small_word
    if kind == "PLACE" and _is_nationality(value):
        return False
    return sum(char.isalpha() for char in value) > 1


def _is_nationality(value: str) -> bool:
    """Whether the value is a word such as `Italian`, and no place of that name is large."""
    classes = classes_of(value.casefold())
    return "g" in classes and not {"N", "C"} & set(classes)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text) // 4
        if size >= CHUNK_WORDS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
