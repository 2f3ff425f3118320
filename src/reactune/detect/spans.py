"""Where personal data stands in a text, and what kind it is: the one form all detectors share.

Pure functions; finding is left to the detectors, replacing to `placeholders.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

Detector = Callable[[Sequence[str]], list[list["Span"]]]

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
    """A text, and what it says about itself: `city: ` helps to tell what `Berlin` is."""

    label: str
    value: str = field(repr=False)


def labelled(name: str, value: str) -> Text:
    """The value of a named field."""
    return Text(f"{name.replace('_', ' ')}: ", value)


def without_label(spans: Iterable[Span], label: str) -> list[Span]:
    """Spans that were found in label and text, as places in the text."""
    shift = len(label)
    return [
        Span(max(span.start - shift, 0), span.end - shift, span.kind, span.score)
        for span in spans
        if span.end > shift
    ]


def without_overlaps(text: str, spans: Iterable[Span]) -> list[Span]:
    """The spans in the order of the text; where two overlap, the one that came first is whole.

    What is left of the other stays if there is a letter or a digit in it.
    """
    kept: list[Span] = []
    for span in spans:
        pieces = [span]
        for other in kept:
            pieces = [rest for piece in pieces for rest in _outside(piece, other)]
        kept += [trimmed for piece in pieces if (trimmed := _trim(text, piece)) is not None]
    return sorted(kept, key=lambda span: span.start)


def _outside(span: Span, other: Span) -> list[Span]:
    """What of the span does not lie in the other."""
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
