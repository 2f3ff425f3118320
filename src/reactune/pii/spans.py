"""Personal data is replaced by typed placeholders such as `<EMAIL_1>`, and can be filled in again.

A detector returns the spans of personal data in texts.
"""

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from reactune.config.sections import KINDS
from reactune.records import folded_text

Detector = Callable[[Sequence[str]], list[list["Span"]]]

PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]*)_(\d+)>")
BROKEN_PLACEHOLDER = re.compile(rf"<(?:{'|'.join(KINDS)})(?:_\d*)?>?", re.I)
MODEL_KINDS = {"PERSON", "ADDRESS", "PLACE", "ORGANIZATION", "TITLE", "GROUP"}
JOINED_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
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
    """A text, and a label that helps detectors: `city: ` before `Berlin`."""

    label: str
    value: str = field(repr=False)


def labelled(name: str, value: str) -> Text:
    """The value of a named field, whether its words are joined by `_` or by capitals."""
    words = JOINED_WORDS.sub(" ", name.replace("_", " "))
    return Text(f"{words.lower() if words != name else words}: ", value)


def without_label(spans: Iterable[Span], label: str) -> list[Span]:
    """Spans in label and text, as places in the text."""
    shift = len(label)
    return [
        Span(max(span.start - shift, 0), span.end - shift, span.kind, span.score)
        for span in spans
        if span.end > shift
    ]


def without_overlaps(text: str, spans: Iterable[Span]) -> list[Span]:
    """The spans in the order of the text; where two overlap, the first in the list is kept whole.

    The rest of the other is kept if it has a letter or a digit.
    """
    kept: list[Span] = []
    for span in spans:
        pieces = [span]
        for other in kept:
            pieces = [rest for piece in pieces for rest in _outside(piece, other)]
        kept += [trimmed for piece in pieces if (trimmed := _trim(text, piece)) is not None]
    return sorted(kept, key=lambda span: span.start)


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
        found = detect([row.labels[index] + row.texts[index] for row, index in todo])
        spans: dict[int, dict[int, list[Span]]] = {}
        for (row, index), here in zip(todo, found, strict=True):
            spans.setdefault(id(row), {})[index] = without_label(here, row.labels[index])
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
        self.labels = [text.label for text in row]
        self.texts = [text.value for text in row]
        self._placeholders = placeholders
        self._placeholder_of = {folded_text(value): name for name, value in placeholders.items()}
        present = (match.group() for text in self.texts for match in PLACEHOLDER.finditer(text))
        self._taken = {*present, *placeholders}

    def replace(self, spans: Mapping[int, list[Span]], people: Mapping[str, str]) -> list[int]:
        """Replace these spans, and every known person; the indices of the texts that changed."""
        known = self._known(people)
        changed = []
        for index, text in enumerate(self.texts):
            named = known.finditer(text) if known else ()
            here = spans.get(index, [])
            # A name within an e-mail address or URL belongs to that.
            found = [
                *(span for span in here if span.kind not in MODEL_KINDS),
                *(Span(*match.span(), "PERSON", 1.0) for match in named),
                *(span for span in here if span.kind in MODEL_KINDS),
            ]
            if found:
                self.texts[index] = self._replace_spans(text, found, people)
            if self.texts[index] != text:
                changed.append(index)
        return changed

    def _known(self, people: Mapping[str, str]) -> re.Pattern[str] | None:
        """A pattern of the known people that the texts may still name, if there are any."""
        all_texts = "\n".join(self.texts)
        small = all_texts.casefold()
        return _name_pattern(
            [name for folded, name in people.items() if folded.split()[0] in small],
            [name for name in _people_in(self._placeholders) if name in all_texts],
        )

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
            number = next(
                n for n in range(1, len(self._taken) + 2) if f"<{kind}_{n}>" not in self._taken
            )
            self._placeholder_of[key] = f"<{kind}_{number}>"
            self._taken.add(self._placeholder_of[key])
            self._placeholders[self._placeholder_of[key]] = value
        return self._placeholder_of[key]


def _outside(span: Span, other: Span) -> list[Span]:
    """The parts of the span outside of the other."""
    if span.end <= other.start or other.end <= span.start:
        return [span]
    left = Span(span.start, other.start, span.kind, span.score)
    right = Span(other.end, span.end, span.kind, span.score)
    return [piece for piece in (left, right) if piece.start < piece.end]


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


def _name_pattern(given: Iterable[str], found: Iterable[str]) -> re.Pattern[str] | None:
    """Any of the names as whole words, the longest first; found names only in the same case.

    A model may have taken `Will` for a name: that must not replace every `will`.
    """
    names = {name: rf"(?i:{re.escape(name)})" for name in given}
    names |= {name: re.escape(name) for name in found if name not in names}
    if not names:
        return None
    either = "|".join(names[name] for name in sorted(names, key=lambda n: (-len(n), n)))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)")
