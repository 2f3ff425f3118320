"""Typed placeholders such as `<EMAIL_1>` in place of personal data, and back again.

Where personal data stands is a detector's to say.
"""

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence

from reactune.detect.spans import Detector, Span, Text, without_label, without_overlaps
from reactune.sections import KINDS

PLACEHOLDER = re.compile(r"<([A-Z][A-Z_]*)_(\d+)>")
BROKEN_PLACEHOLDER = re.compile(rf"<(?:{'|'.join(KINDS)})(?:_\d*)?>?", re.I)
MODEL_KINDS = {"PERSON", "ADDRESS", "PLACE", "ORGANIZATION", "TITLE", "GROUP"}
MIN_NAME = 3  # letters of a name that is looked for wherever else it may stand


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

    A text comes as it is or after a label that says what it is, as in `Text("city: ", "Berlin")`.
    Scrubbing what comes out once more changes nothing. `placeholders` maps placeholder to value,
    a map a row; it is read, so that one value keeps one placeholder within the row, and added to.
    Placeholders that stand in the texts already are kept, and their numbers are not given again.
    `names` are people the app knows of; they, and people found in one text, are looked for in
    all texts of the row.
    """
    people = {_folded(name): name.strip() for name in names if name.strip()}
    work = [_Row(row, of) for row, of in zip(rows, placeholders, strict=True)]
    todo = [(row, index) for row in work for index in range(len(row.texts))]
    while todo:
        found = detect([row.labels[index] + row.texts[index] for row, index in todo])
        spans: dict[int, dict[int, list[Span]]] = {}
        for (row, index), here in zip(todo, found, strict=True):
            behind = without_label(here, row.labels[index])
            spans.setdefault(id(row), {})[index] = behind
        todo = [
            (row, index)
            for row in work
            if id(row) in spans
            for index in row.replace(spans[id(row)], people)
        ]
    return [row.texts for row in work]


def refill(text: str, placeholders: Mapping[str, str]) -> str | None:
    """The text with every placeholder filled in again, or None if one cannot be."""
    if any(match.group() not in placeholders for match in PLACEHOLDER.finditer(text)):
        return None
    filled = PLACEHOLDER.sub(lambda match: placeholders[match.group()], text)
    return None if BROKEN_PLACEHOLDER.search(PLACEHOLDER.sub("", text)) else filled


class _Row:
    """Texts that share placeholders, while they are scrubbed."""

    def __init__(self, row: Sequence[Text], placeholders: MutableMapping[str, str]) -> None:
        self.labels = [text.label for text in row]
        self.texts = [text.value for text in row]
        self._placeholders = placeholders
        self._given = {_folded(value): name for name, value in placeholders.items()}
        standing = (match.group() for text in self.texts for match in PLACEHOLDER.finditer(text))
        self._taken = {*standing, *placeholders}

    def replace(self, spans: Mapping[int, list[Span]], people: Mapping[str, str]) -> list[int]:
        """Hide what was found, and every known person; the texts that changed are returned."""
        known = self._known(people)
        changed = []
        for index, text in enumerate(self.texts):
            named = known.finditer(text) if known else ()
            here = spans.get(index, [])
            # A name within an address of mail or web is part of that.
            found = [
                *(span for span in here if span.kind not in MODEL_KINDS),
                *(Span(*match.span(), "PERSON", 1.0) for match in named),
                *(span for span in here if span.kind in MODEL_KINDS),
            ]
            if found:
                self.texts[index] = self._hide(text, found, people)
            if self.texts[index] != text:
                changed.append(index)
        return changed

    def _known(self, people: Mapping[str, str]) -> re.Pattern[str] | None:
        """What finds the people that are known and that a text might still name."""
        all_texts = "\n".join(self.texts)
        small = all_texts.casefold()
        return _name_pattern(
            [name for folded, name in people.items() if folded.split()[0] in small],
            [name for name in _people_in(self._placeholders) if name in all_texts],
        )

    def _hide(self, text: str, found: Iterable[Span], people: Mapping[str, str]) -> str:
        standing = [Span(*match.span(), "", 1.0) for match in PLACEHOLDER.finditer(text)]
        parts, end = [], 0
        for span in without_overlaps(text, [*standing, *found]):
            if span.kind:
                value = text[span.start : span.end]
                value = people.get(_folded(value), value)
                parts += [text[end : span.start], self._placeholder(span.kind, value)]
                end = span.end
        return "".join([*parts, text[end:]])

    def _placeholder(self, kind: str, value: str) -> str:
        key = _folded(value)
        if key not in self._given:
            number = next(
                n for n in range(1, len(self._taken) + 2) if f"<{kind}_{n}>" not in self._taken
            )
            self._given[key] = f"<{kind}_{number}>"
            self._taken.add(self._given[key])
            self._placeholders[self._given[key]] = value
        return self._given[key]


def _people_in(placeholders: Mapping[str, str]) -> list[str]:
    return [
        value
        for placeholder, value in placeholders.items()
        if placeholder.startswith("<PERSON_") and len(value) >= MIN_NAME and value != value.lower()
    ]


def _name_pattern(given: Iterable[str], found: Iterable[str]) -> re.Pattern[str] | None:
    """Any of the names as words of their own, the longest first; those found as they stood.

    A model may have taken `Will` for a name: that must not hide every `will`.
    """
    names = {name: rf"(?i:{re.escape(name)})" for name in given}
    names |= {name: re.escape(name) for name in found if name not in names}
    if not names:
        return None
    either = "|".join(names[name] for name in sorted(names, key=lambda n: (-len(n), n)))
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)")


def _folded(value: str) -> str:
    return " ".join(value.casefold().split())
