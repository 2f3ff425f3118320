"""One person has one id, however it arrives: the rule that every door applies before it hashes.

Text is in NFC, without white space or a byte order mark at its ends, and UUIDs are in lower case.
Numbers are read by their type: the double 7.0 is `7`, the text `7.0` stays. Raw ids are never
stored, so what an earlier version hashed is computed from the id when it comes again.
"""

import math
import re
import unicodedata
from decimal import Decimal
from typing import TypeVar
from urllib.parse import unquote_to_bytes
from uuid import UUID

from reactune.errors import DataError

Id = TypeVar("Id")
MAX_ID_CHARS = 512
BYTE_ORDER_MARK = "\ufeff"
EXACT_BELOW = 2**53  # from here on, two whole numbers may be one double
PADDED_TO = (4, 5, 6, 8, 9, 10, 12, 15, 16, 20, 24, 25, 30, 32, 36, 40, 50, 64, 100, 128, 255)
"""Usual lengths of CHAR columns."""
UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
AT_ENDS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + BYTE_ORDER_MARK
SURROGATE = re.compile("[\ud800-\udfff]")
MISSING = frozenset(
    ("undefined", "null", "NULL", "None", "NaN", "nan", "NaT", "<NA>", "nil", "<nil>", "[null]",
     "(null)", r"\N", "[object Object]", "00000000-0000-0000-0000-000000000000")
)  # fmt: skip
"""What languages and databases write for a value that is missing; in this spelling alone."""
RFC_8187 = re.compile(r"utf-8'[A-Za-z0-9-]*'(.*)", re.IGNORECASE | re.DOTALL)


class IdError(DataError):
    """A value that names no user. `reason` is short; neither it nor the message quotes the id."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


def canonical_id(value: object) -> str:
    """The one spelling of a user's id, which is hashed; the same again for what it returns.

    Takes text, whole and other finite numbers, decimals, UUIDs, and bytes: UTF-8, padded with NUL
    or not, or else the 16 bytes of a UUID.

    Raises:
        IdError: there is no id in it.
    """
    text = _text_of(value).strip(AT_ENDS)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if not text:
        raise IdError("missing field user_id", "give the app's id of the user")
    if len(text) > MAX_ID_CHARS:
        raise IdError("oversized user_id", f"an id has at most {MAX_ID_CHARS} characters")
    if "\0" in text:
        raise IdError("NUL byte", "give an id that is text")
    if SURROGATE.search(text):
        raise IdError("lone surrogate", "give an id that is text in UTF-8")
    return text.lower() if UUID_TEXT.fullmatch(text) else text


def id_of_somebody(value: Id) -> Id:
    """The value as it came, where it may name a person: for what is written from now on.

    Everybody whose id an app did not know would be one person under the text of a missing value.
    Erasures do not ask, so what was written under it earlier can go.

    Raises:
        IdError: there is no id in it, or the text of a missing value.
    """
    if canonical_id(value) in MISSING:
        raise IdError(
            "user_id is the text of a missing value",
            "look where the app reads the id of its user; it was not there",
        )
    return value


def earlier_forms(value: object) -> tuple[str, ...]:
    """What an earlier version may have hashed for this id, without its form of today.

    That is the id as it came, decomposed, as a header was read (UTF-8 taken for Latin-1), a UUID
    in capitals, and a whole number as the text of a double.
    """
    today = canonical_id(value)
    forms = [*_as_it_came(value)]
    if not today.isascii():
        decomposed = unicodedata.normalize("NFD", today)
        forms += [decomposed, *(_read_as_latin_1(each) for each in (today, decomposed))]
    if UUID_TEXT.fullmatch(today):
        forms.append(today.upper())
    if today.isdecimal() and today.isascii():
        forms.append(f"{today}.0")
    return tuple(each for each in dict.fromkeys(forms) if each != today)


def rare_forms(user_id: str) -> tuple[str, ...]:
    """More of what an earlier version may have hashed: ends of lines, padding, binary columns.

    They are too many to try for every row; erasure and consent try them.
    """
    today = canonical_id(user_id)
    forms = [f"{today} ", f" {today}", f"{today}\r", f"{BYTE_ORDER_MARK}{today}"]
    forms += [today.ljust(length) for length in PADDED_TO if length > len(today)]
    forms.append(f"\\x{today.encode().hex()}")
    if today.isdecimal() and today.isascii():
        forms += [f"{today}.{'0' * places}" for places in range(2, 7)]
    known = {today, *earlier_forms(user_id)}
    return tuple(each for each in dict.fromkeys(forms) if each not in known)


def id_in_header(value: str) -> str:
    """The id in an HTTP header: raw UTF-8, or RFC 8187's `UTF-8''zo%C3%AB-7` for ASCII clients.

    `value` is as servers read headers, each byte a character of Latin-1.

    Raises:
        IdError: it is not UTF-8.
    """
    encoded = RFC_8187.fullmatch(value)
    raw = unquote_to_bytes(encoded[1]) if encoded else value.encode("latin-1")
    return _decoded(raw)


def id_in_url(value: str) -> str:
    """The id in a path or a query, which the server has decoded.

    Raises:
        IdError: it was not UTF-8, so that several ids would be read as this one.
    """
    if "\ufffd" in value:
        raise IdError("user_id is not UTF-8", "percent-encode the bytes of its UTF-8")
    return value


def ids_in_lines(raw: bytes) -> list[str]:
    """The ids in a text of one a line; blank lines hold none.

    Raises:
        IdError: it is not UTF-8.
    """
    lines = _decoded(raw).split("\n")
    return [line for line in lines if line.strip(AT_ENDS)]


def _text_of(value: object) -> str:
    match value:
        case str():
            return value
        case bool():
            pass
        case int():
            return str(value)
        case float() if math.isfinite(value) and abs(value) < EXACT_BELOW:
            return str(int(value)) if value.is_integer() else repr(value)
        case Decimal() if value.is_finite():
            text = f"{abs(value) if value == 0 else value:f}"  # -0 is 0, as a double is
            return text.rstrip("0").rstrip(".") if "." in text else text
        case bytes():
            return _text_of_bytes(value)
        case UUID():
            return str(value)
        case None:
            return ""
    raise IdError("user_id is not text", "an id is text, an exact number, a UUID, or bytes of one")


def _text_of_bytes(value: bytes) -> str:
    try:
        text = value.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        text = ""
    # Random bytes of a UUID are practically never printable UTF-8.
    if text and (text.strip(AT_ENDS).isprintable() or len(value) != 16):
        return text
    if len(value) == 16:
        return str(UUID(bytes=value))
    return _decoded(value)


def _as_it_came(value: object) -> list[str]:
    if isinstance(value, bytes):
        quoted = "".join(chr(each) if 32 <= each < 127 else f"\\x{each:02X}" for each in value)
        return [value.decode(errors="replace"), f"\\x{value.hex()}", quoted]
    return [str(value)]


def _read_as_latin_1(text: str) -> str:
    return text.encode().decode("latin-1")


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise IdError("user_id is not UTF-8", "send its text in UTF-8") from error
