"""The parts of a context: made plain, scrubbed, shortened and written out, one line a key.

Pure functions; which parts are allowed, and how long they may be together, is `prompt.py`'s.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Tokenizer

from reactune.errors import DataError
from reactune.privacy import scrub

Scalar = str | int | float | bool
Part = Scalar | Sequence[str] | Mapping[str, Scalar]
CleanPart = Scalar | list[str] | dict[str, Scalar]

MAX_ITEMS = 50


def clean_part(part: Part, *, key: str, tokenizer: Tokenizer, max_chars: int) -> CleanPart:
    """The part with plain one-line texts: nothing in it can forge a line or a special token.

    Raises:
        DataError: the value is of a type that has no place in a context.
    """

    def text(value: str) -> str:
        return clean_text(value, tokenizer=tokenizer, max_chars=max_chars)

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


def clean_text(text: str, *, tokenizer: Tokenizer, max_chars: int) -> str:
    """One line of printable text in NFC, without the texts of special tokens, not much longer."""
    if len(text) > max_chars:
        # The last word may be half an address, which no detector would know.
        text = text[:max_chars].rpartition(" ")[0]
    printable = "".join(
        " " if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn") else char
        for char in unicodedata.normalize("NFC", text)
    )
    return break_special_tokens(" ".join(printable.split()), tokenizer=tokenizer)


def break_special_tokens(text: str, *, tokenizer: Tokenizer) -> str:
    """The text with a space inside whatever the tokenizer would take for a special token."""
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.special and token.content in text:
            text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
    return text


def scrub_part(part: CleanPart, *, placeholders: dict[str, str], names: Iterable[str]) -> CleanPart:
    """The part with personal data replaced by placeholders, see `privacy.scrub`."""

    def hide(value: Scalar) -> Scalar:
        if not isinstance(value, str):
            return value
        return scrub(value, placeholders=placeholders, names=names)

    if isinstance(part, list):
        return [str(hide(item)) for item in part]
    if isinstance(part, dict):
        return {str(hide(name)): hide(value) for name, value in part.items()}
    return hide(part)


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
