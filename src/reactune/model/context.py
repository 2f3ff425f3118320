"""The parts of a context: cleaned, scrubbed, shortened and written out, one line a key."""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from reactune.errors import DataError
from reactune.pii.patterns import labelled
from reactune.pii.spans import Detector, Text, scrub_rows
from reactune.records import canonical_json

Scalar = str | int | float | bool
Part = Scalar | Sequence[str] | Mapping[str, Scalar]
CleanPart = Scalar | list[str] | dict[str, Scalar]

CONTEXT_VERSION = 1  # of the logged context: raise it when rendering changes
MAX_ITEMS = 50
LONG_NUMBER = 100_000_000  # nine digits: what may be a telephone number, a card, an account


@dataclass(frozen=True)
class LoggedContext:
    """The context in a row of a tip, parsed once; equal texts are equal contexts.

    `is_assembled` is false where another app logged it in a form of its own.
    """

    text: str = field(repr=False)
    parts: Mapping[str, Any] = field(compare=False, repr=False)
    is_assembled: bool = field(compare=False)


def parse_context(context_json: str | None) -> LoggedContext:
    """The context that a row holds: what `context_to_log` wrote, or any JSON object.

    Raises:
        DataError: the text is no JSON object, or of a version that this release does not know.
    """
    try:
        value = json.loads(context_json or "")
    except (ValueError, RecursionError) as error:
        raise DataError("context_json is not JSON; log a JSON object") from error
    if not isinstance(value, dict):
        raise DataError(f"context_json is a JSON {type(value).__name__}; log a JSON object")
    if value.keys() != {"v", "context"}:
        return LoggedContext(context_json or "", value, is_assembled=False)
    if value["v"] != CONTEXT_VERSION:
        raise DataError(
            f"context_json has version {value['v']!r}, this release reads {CONTEXT_VERSION}; "
            "install the release that logged it"
        )
    if not isinstance(value["context"], dict):
        raise DataError("the logged context is no JSON object; log what `assemble` returned")
    return LoggedContext(context_json or "", value["context"], is_assembled=True)


def context_to_log(parts: Mapping[str, CleanPart]) -> str:
    """What is logged of an assembled context; `parse_context` reads it."""
    return canonical_json({"v": CONTEXT_VERSION, "context": parts})


def clean_part(part: Part, *, key: str, marks: Sequence[str], max_chars: int) -> CleanPart:
    """The part with plain one-line texts: nothing in it can forge a line or one of the `marks`.

    Raises:
        DataError: the value is of a type that has no place in a context.
    """

    def text(value: str) -> str:
        return clean_text(value, marks=marks, max_chars=max_chars)

    if isinstance(part, str):
        return text(part)
    if isinstance(part, bool | int | float) and is_scalar(part):
        return part
    if isinstance(part, Mapping) and all(is_scalar(value) for value in part.values()):
        entries = list(part.items())[:MAX_ITEMS]
        return {
            text(name): text(value) if isinstance(value, str) else value for name, value in entries
        }
    if isinstance(part, Sequence) and all(isinstance(item, str) for item in part):
        items = (text(item) for item in part[:MAX_ITEMS])
        return [item for item in items if item]
    raise DataError(
        f"context key {key!r} holds {type(part).__name__}; a context holds texts, finite numbers, "
        "booleans, lists of texts and flat objects of these"
    )


def is_scalar(value: object) -> bool:
    """Whether the value is a text, a boolean or a finite number."""
    return isinstance(value, str | bool | int) or (
        isinstance(value, float) and math.isfinite(value)
    )


def clean_text(text: str, *, marks: Sequence[str], max_chars: int) -> str:
    """One line of printable text in NFC, without the texts of special tokens, not much longer."""
    if len(text) > max_chars:
        # The last word may be half an address, which no detector would recognise.
        text = text[:max_chars].rpartition(" ")[0]
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            " " if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") else char
            for char in unicodedata.normalize("NFC", text)
        )
    return break_special_tokens(" ".join(text.split()), marks)


def break_special_tokens(text: str, marks: Iterable[str]) -> str:
    """The text with a space inside whatever the tokenizer would take for one of the marks."""
    for mark in marks:
        if mark in text:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def scrub_parts(
    parts: Mapping[str, CleanPart],
    *,
    placeholders: dict[str, str],
    names: Iterable[str] = (),
    detect: Detector,
) -> dict[str, CleanPart]:
    """The parts with personal data replaced by placeholders, see `spans.scrub_rows`.

    A whole number as long as a telephone number is searched like a text.
    """
    texts = [text for key, part in parts.items() for text in texts_of(key, part)]
    (scrubbed,) = scrub_rows([texts], [placeholders], names=names, detect=detect)
    rest = iter(scrubbed)
    return {key: _with_texts(part, rest) for key, part in parts.items()}


def entry_names(parts: Mapping[str, CleanPart]) -> list[list[str]]:
    """The names of the entries of every object."""
    return [list(part) for part in parts.values() if isinstance(part, dict)]


def texts_of(key: str, part: CleanPart) -> Iterator[Text]:
    """Every text in the part as detectors see it, in an order that `_with_texts` follows."""
    if isinstance(part, list):
        yield from (Text("", item) for item in part)
    elif isinstance(part, dict):
        for name, value in part.items():
            yield Text("", name)
            yield from texts_of(name, value)
    elif isinstance(part, str) or _is_long(part):
        yield labelled(key, str(part))


def _with_texts(part: CleanPart, texts: Iterator[str]) -> CleanPart:
    if isinstance(part, list):
        return [next(texts) for _ in part]
    if isinstance(part, dict):
        return {next(texts): _scalar_with_text(value, texts) for value in part.values()}
    return _scalar_with_text(part, texts)


def _scalar_with_text(value: Scalar, texts: Iterator[str]) -> Scalar:
    if isinstance(value, str):
        return next(texts)
    if not _is_long(value):
        return value
    text = next(texts)
    return value if text == str(value) else text


def _is_long(value: Scalar) -> bool:
    return type(value) is int and abs(value) >= LONG_NUMBER


def shorten(part: CleanPart, over: int, *, tokenizer: Tokenizer) -> CleanPart | None:
    """The part with its last item, or its last `over` tokens, gone; None when nothing is left."""
    if isinstance(part, dict):
        return dict(sorted(part.items())[:-1]) or None
    if isinstance(part, list):
        if len(part) > 1:
            return part[:-1]
        text = shorten(part[0], over, tokenizer=tokenizer)
        return [text] if isinstance(text, str) else None
    if not isinstance(part, str):
        return None
    kept = tokenizer.encode(part, add_special_tokens=False).ids[: -max(over, 1)]
    text = tokenizer.decode(kept, skip_special_tokens=False).rstrip("\ufffd ")
    text = re.sub(r"<[A-Z_]*\d*$", "", text).rstrip()
    return text if text and len(text) < len(part) else None


def line(key: str, part: CleanPart) -> str:
    """The part as the model reads it: `Open tasks: call the bank; water the plants`."""
    label = key.replace("_", " ").capitalize()
    if isinstance(part, list):
        return f"{label}: {'; '.join(part)}"
    if isinstance(part, dict):
        entries = (f"{name} {_word(value)}" for name, value in sorted(part.items()))
        return f"{label}: {', '.join(entries)}"
    return f"{label}: {_word(part)}"


def _word(value: Scalar) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
