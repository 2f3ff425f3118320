"""Personal data is replaced by typed placeholders such as `<EMAIL_1>`, and can be filled in again.

A detector returns the spans of personal data in texts.
"""

import re
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from reactune.config.sections import KINDS
from reactune.records import folded_text

Detector = Callable[[Sequence[str]], list[list["Span"]]]
_Name = tuple[str, int, bool]  # a name, the place of its first word in it, whether case matters not

PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]*)_(\d+)>")
BROKEN_PLACEHOLDER = re.compile(rf"<(?:{'|'.join(KINDS)})(?:_\d*)?>?", re.I)
MODEL_KINDS = {"PERSON", "ADDRESS", "PLACE", "ORGANIZATION", "TITLE", "GROUP"}
WORD = re.compile(r"\w+")
MIN_NAME = 3  # letters of a name that is replaced wherever else it occurs
EDGES = " \t\n,;:!?'\"()[]{}<>|-«»“”\u2018\u2019\u2013\u2014"


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a text; `score` is how sure the detector is, 0 to 1."""

    start: int
    end: int
    kind: str
    score: float


@dataclass(frozen=True)
class Text:
    """A text, and a label that helps detectors: `city: ` before `Berlin`.

    What a model takes for a name with a score below `least` is left alone, unless another text of
    the row names that person.
    """

    label: str
    value: str = field(repr=False)
    least: float = 0.0


def without_label(spans: Iterable[Span], label: str) -> list[Span]:
    """Spans in label and text, as places in the text."""
    shift = len(label)
    return [
        Span(max(span.start - shift, 0), span.end - shift, span.kind, span.score)
        for span in spans
        if span.end > shift
    ]


def spans_in(text: Text, found: Iterable[Span]) -> list[Span]:
    """What was found in label and text that counts, as places in the text."""
    spans = without_label(found, text.label)
    return [span for span in spans if span.kind not in MODEL_KINDS or span.score >= text.least]


def without_overlaps(text: str, spans: Iterable[Span]) -> list[Span]:
    """The spans in the order of the text; where two overlap, the first in the list is kept whole.

    The rest of the other is kept if it has a letter or a digit.
    """
    kept: list[Span] = []
    for span in spans:
        for piece in [_trim(text, free) for free in _free(span, kept)]:
            if piece is not None:
                insort(kept, piece, key=_start)
    return kept


def scrub(
    text: str,
    *,
    placeholders: MutableMapping[str, str],
    names: Iterable[str] = (),
    detect: Detector,
) -> str:
    """One text as by `scrub_rows`."""
    row = [Text("", text)]
    return scrub_rows([row], [placeholders], names=names, detect=detect)[0][0]


def scrub_rows(
    rows: Sequence[Sequence[Text]],
    placeholders: Sequence[MutableMapping[str, str]],
    *,
    names: Iterable[str] = (),
    detect: Detector,
) -> list[list[str]]:
    """The texts of every row with personal data replaced by typed placeholders (`<EMAIL_1>`).

    Scrubbing the result again changes nothing. `placeholders` holds one map from placeholder to
    value for each row; it is read, so that one value has one placeholder within the row, and
    extended. Placeholders that the texts hold already are kept, and their numbers are not reused.
    `names` are people the app knows of; they, and people found in one text, are replaced in all
    texts of the row.
    """
    people = {folded_text(name): name.strip() for name in names if name.strip()}
    work = [_Row(row, of) for row, of in zip(rows, placeholders, strict=True)]
    todo = [(row, index) for row in work for index in range(len(row.texts))]
    while todo:
        found = detect([row.given[index].label + row.texts[index] for row, index in todo])
        spans: dict[int, dict[int, list[Span]]] = {}
        for (row, index), here in zip(todo, found, strict=True):
            spans.setdefault(id(row), {})[index] = spans_in(row.given[index], here)
        todo = [
            (row, index)
            for row in work
            if id(row) in spans
            for index in row.replace(spans[id(row)], people)
        ]
    return [row.texts for row in work]


def refill(text: str, placeholders: Mapping[str, str]) -> str | None:
    """The text with the value of every placeholder, or None if one is unknown or broken."""
    if any(match.group() not in placeholders for match in PLACEHOLDER.finditer(text)):
        return None
    filled = PLACEHOLDER.sub(lambda match: placeholders[match.group()], text)
    return None if BROKEN_PLACEHOLDER.search(PLACEHOLDER.sub("", text)) else filled


class _Row:
    """The texts of one row, which share placeholders, while they are scrubbed."""

    def __init__(self, row: Sequence[Text], placeholders: MutableMapping[str, str]) -> None:
        self.given = row
        self.texts = [text.value for text in row]
        self._placeholders = placeholders
        self._placeholder_of = {folded_text(value): name for name, value in placeholders.items()}
        present = (match.group() for text in self.texts for match in PLACEHOLDER.finditer(text))
        self._taken = {*present, *placeholders}
        self._last: Counter[str] = Counter()  # kind = its number given last

    def replace(self, spans: Mapping[int, list[Span]], people: Mapping[str, str]) -> list[int]:
        """Replace these spans, and every known person; the indices of the texts that changed."""
        known = _by_first_word(people, _people_in(self._placeholders))
        changed = []
        for index, text in enumerate(self.texts):
            named = _places_of(known, text) if known else ()
            here = spans.get(index, [])
            # A name within an e-mail address or URL belongs to that.
            found = [
                *(span for span in here if span.kind not in MODEL_KINDS),
                *(Span(start, end, "PERSON", 1.0) for start, end in named),
                *(span for span in here if span.kind in MODEL_KINDS),
            ]
            if found:
                self.texts[index] = self._replace_spans(text, found, people)
            if self.texts[index] != text:
                changed.append(index)
        return changed

    def _replace_spans(self, text: str, found: Iterable[Span], people: Mapping[str, str]) -> str:
        present = [Span(*match.span(), "", 1.0) for match in PLACEHOLDER.finditer(text)]
        parts, end = [], 0
        for span in without_overlaps(text, [*present, *found]):
            if span.kind:
                value = text[span.start : span.end]
                value = people.get(folded_text(value), value)
                parts += [text[end : span.start], self._placeholder(span.kind, value)]
                end = span.end
        return "".join([*parts, text[end:]])

    def _placeholder(self, kind: str, value: str) -> str:
        key = folded_text(value)
        if key not in self._placeholder_of:
            numbers = count(self._last[kind] + 1)
            self._last[kind] = next(n for n in numbers if f"<{kind}_{n}>" not in self._taken)
            self._placeholder_of[key] = f"<{kind}_{self._last[kind]}>"
            self._taken.add(self._placeholder_of[key])
            self._placeholders[self._placeholder_of[key]] = value
        return self._placeholder_of[key]


def _free(span: Span, kept: Sequence[Span]) -> list[Span]:
    """The parts of the span outside of those that are kept, which are in the order of the text."""
    parts, start = [], span.start
    at = bisect_right(kept, span.start, key=_end)
    while at < len(kept) and kept[at].start < span.end:
        parts.append((start, kept[at].start))
        start = kept[at].end
        at += 1
    parts.append((start, span.end))
    return [Span(s, e, span.kind, span.score) for s, e in parts if s < e]


def _trim(text: str, span: Span) -> Span | None:
    start, end = span.start, span.end
    while start < end and text[start] in EDGES and not _opens(text[start:end]):
        start += 1
    while start < end and text[end - 1] in EDGES and not _closes(text[start:end]):
        end -= 1
    if not any(char.isalnum() for char in text[start:end]):
        return None
    return Span(start, end, span.kind, span.score)


def _opens(piece: str) -> bool:
    """Whether the first mark belongs to the span, as in `(030) 12345`, `[::1]` and `::1`."""
    return (piece[0] == "(" and ")" in piece) or piece.startswith("::") or piece[0] == "-"


def _closes(piece: str) -> bool:
    return (piece[-1] == ")" and "(" in piece) or piece.endswith("::")


def _people_in(placeholders: Mapping[str, str]) -> list[str]:
    return [
        value
        for placeholder, value in placeholders.items()
        if placeholder.startswith("<PERSON_") and len(value) >= MIN_NAME and value != value.lower()
    ]


def _by_first_word(given: Mapping[str, str], found: Iterable[str]) -> Mapping[str, list[_Name]]:
    """The names by their first word, the longest first; found ones count only in the same case.

    A model may have taken `Will` for a name: that must not replace every `will`.
    """
    names = dict.fromkeys(found, False) | dict.fromkeys(given.values(), True)
    by_word: dict[str, list[_Name]] = {}
    for name in sorted(names, key=lambda name: (-len(name), name)):
        if word := WORD.search(name):
            place = (name, word.start(), names[name])
            by_word.setdefault(word[0].lower(), []).append(place)
    return by_word


def _places_of(names: Mapping[str, list[_Name]], text: str) -> Iterator[tuple[int, int]]:
    """Where the text holds one of the names as whole words."""
    last = 0
    for word in WORD.finditer(text):
        for name, before, any_case in names.get(word[0].lower(), ()):
            start, end = word.start() - before, word.start() - before + len(name)
            there = text[max(start, 0) : end]
            is_same = there == name or (any_case and there.lower() == name.lower())
            if is_same and start >= last and not _is_within_word(text, start, end):
                yield start, end
                last = end
                break


def _is_within_word(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return bool(WORD.match(before) or WORD.match(after))


def _start(span: Span) -> int:
    return span.start


def _end(span: Span) -> int:
    return span.end
