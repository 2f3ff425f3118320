"""Every text in a row of a file, wherever it stands, and the row with other texts in its place.

A row is the source of a JSON object, or pairs of column and value. Looked at are texts, JSON inside
them, bytes that are text, keys, and numbers whose name says that they are somebody's. What is not
replaced stays byte for byte.
"""

import json
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from reactune.data.readers import SURROGATE
from reactune.errors import DataError
from reactune.pii.patterns import labelled, names_a_number, names_a_phone
from reactune.pii.spans import Text

Role = Literal["value", "key", "number"]
Row = str | tuple[tuple[str, Any], ...]

TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]|[^\s"{}\[\],:]+', re.S)
# Keys that programs write: of names, only people are replaced whom the row names elsewhere.
IDENTIFIER = re.compile(r"(?!.*\d{5})[a-z_][A-Za-z0-9_]*")
NO_COLUMN = ""
SURE, NEVER = 0.9, 2.0  # scores from which on a name in a key counts: `Unit Price` is none


class UnholdableError(DataError):
    """Personal data in a value whose type holds no placeholder; the message names the type only."""


@dataclass(frozen=True)
class Piece:
    """A text somewhere in a row, in which personal data may stand, and the column it belongs to.

    `is_name` is true for the name of the column itself.
    """

    column: str
    text: Text
    role: Role
    is_name: bool = False


@dataclass(frozen=True)
class _Token:
    """A text, a key or a number in a JSON source; `text` is what it says."""

    start: int
    end: int
    column: str
    name: str
    text: str = field(repr=False)
    role: Role
    is_name: bool


def pieces_of(row: Row, columns: Collection[str] = ()) -> Iterator[Piece]:
    """Everything in the row that is looked at, in an order that `row_with` follows.

    `columns` are those to look in; none: all, and the names of the columns of a JSON object.

    Raises:
        UnholdableError: bytes that are no text.
    """
    if isinstance(row, str):
        for token in _tokens(row, columns):
            yield from _pieces_of_token(token)
        return
    for name, value in row:
        if not columns or name in columns:
            with _named(name):
                yield from _pieces_in(name, name, value)


def row_with(row: Row, texts: Iterator[str], columns: Collection[str] = ()) -> Row:
    """The row with these texts in place of those of `pieces_of`.

    Raises:
        UnholdableError: a number, date or bytes of fixed size would have to hold a placeholder.
    """
    if isinstance(row, str):
        return _json_with(row, _tokens(row, columns), texts)
    cells = []
    for name, value in row:
        with _named(name):
            is_looked_at = not columns or name in columns
            cells.append((name, _with(name, value, texts) if is_looked_at else value))
    return tuple(cells)


def key_text(key: str) -> Text:
    """A key as detectors see it; one that is a word as programs write them holds no name."""
    return Text("", key, least=NEVER if IDENTIFIER.fullmatch(key) else SURE)


def json_text(value: Any) -> str:
    """JSON of the value in UTF-8; half characters, which UTF-8 cannot hold, are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


@contextmanager
def _named(column: str) -> Iterator[None]:
    try:
        yield
    except UnholdableError as error:
        raise UnholdableError(f"column {column!r} holds {error}") from error


def _tokens(source: str, columns: Collection[str], name: str = "") -> Iterator[_Token]:
    """The keys, texts and numbers of valid JSON, each under the name of the key before it.

    `name` is the one under which the JSON itself stands.
    """
    held: list[tuple[bool, str]] = []  # whether it is an object, and the name it stands under
    column, is_key = NO_COLUMN, False
    for match in TOKEN.finditer(source):
        token = match[0]
        if token in "{[":
            held.append((token == "{", name))
            is_key = token == "{"
        elif token in "}]":
            _, name = held.pop()
            is_key = False
        elif token == ",":
            is_key, name = held[-1]
        elif token == ":":
            is_key = False
        else:
            role = _role_of(token, is_key=is_key)
            text = _said_by(token)
            is_name = is_key and len(held) == 1
            if is_key:
                name, column = _name_within(held[-1][1], text), text if is_name else column
            if role and not (columns and (is_name or column not in columns)):
                yield _Token(*match.span(), column, name, text, role, is_name)


def _said_by(token: str) -> str:
    if token[0] != '"':
        return token
    return str(json.loads(token)) if "\\" in token else token[1:-1]


def _role_of(token: str, *, is_key: bool) -> Role | None:
    if token[0] == '"':
        return "key" if is_key else "value"
    return "number" if token[0] in "-0123456789" else None


def _pieces_of_token(token: _Token) -> Iterator[Piece]:
    match token.role:
        case "key":
            yield from _pieces_of_key(token.column, token.text, is_name=token.is_name)
        case "number":
            yield from _pieces_of_number(token.column, token.name, json.loads(token.text))
        case "value":
            yield from _pieces_of_text(token.column, token.name, token.text)


def _pieces_of_text(column: str, name: str, text: str) -> Iterator[Piece]:
    if not _is_json(text):
        yield Piece(column, labelled(name, text), "value")
        return
    for token in _tokens(text, (), name):
        for piece in _pieces_of_token(token):
            yield Piece(column, piece.text, piece.role)


def _pieces_of_number(column: str, name: str, value: object) -> Iterator[Piece]:
    text = _number_as_text(value)
    if text and names_a_number(labelled(name, "").label):
        yield Piece(column, labelled(name, text), "number")


def _pieces_in(column: str, name: str, value: object) -> Iterator[Piece]:
    match value:
        case str():
            yield from _pieces_of_text(column, name, value)
        case bytes():
            yield from _pieces_of_text(column, name, _text_in_bytes(value))
        case dict():
            for key, part in value.items():
                yield from _pieces_in(column, _name_within(name, key), part)
        case list():
            for part in value:
                yield from _pieces_in(column, name, part)
        case (key, part):
            yield from _pieces_of_map_key(column, name, key)
            yield from _pieces_in(column, _name_within(name, key), part)
        case _:
            yield from _pieces_of_number(column, name, value)


def _pieces_of_key(column: str, key: str, *, is_name: bool = False) -> Iterator[Piece]:
    texts = [p.text for p in _pieces_of_text(column, "", key)] if _is_json(key) else [key_text(key)]
    for text in texts:
        yield Piece(column, text, "key", is_name)


def _pieces_of_map_key(column: str, name: str, key: object) -> Iterator[Piece]:
    if isinstance(key, str):
        yield from _pieces_of_key(column, key)
    else:
        yield from _pieces_in(column, name, key)


def _with(name: str, value: Any, texts: Iterator[str]) -> Any:
    match value:
        case str():
            return _text_with(name, value, texts)
        case bytes():
            return _bytes_with(name, value, texts)
        case dict():
            return {k: _with(_name_within(name, k), part, texts) for k, part in value.items()}
        case list():
            return [_with(name, part, texts) for part in value]
        case (key, part):
            new_key = _with("" if isinstance(key, str) else name, key, texts)
            return new_key, _with(_name_within(name, key), part, texts)
        case _:
            if list(_pieces_of_number(NO_COLUMN, name, value)):
                _check_same(_number_as_text(value), next(texts), type(value).__name__)
            return value


def _text_with(name: str, text: str, texts: Iterator[str]) -> str:
    if not _is_json(text):
        return next(texts)
    return _json_with(text, _tokens(text, (), name), texts)


def _bytes_with(name: str, value: bytes, texts: Iterator[str]) -> bytes:
    return _text_with(name, _text_in_bytes(value), texts).encode()


def _json_with(source: str, tokens: Iterator[_Token], texts: Iterator[str]) -> str:
    parts, end = [], 0
    for token in tokens:
        new = _token_with(token, texts)
        if new != token.text:
            parts += [source[end : token.start], json_text(new)]
            end = token.end
    return "".join([*parts, source[end:]])


def _token_with(token: _Token, texts: Iterator[str]) -> str:
    match token.role:
        case "value":
            return _text_with(token.name, token.text, texts)
        case "number":
            value = json.loads(token.text)
            if not list(_pieces_of_number(NO_COLUMN, token.name, value)):
                return token.text
            new = next(texts)
            return token.text if new == _number_as_text(value) else new
        case "key":
            return _text_with(NO_COLUMN, token.text, texts)


def _name_within(name: str, key: object) -> str:
    """The name of what stands under a key of something that has a name.

    `{"phone": {"home": ...}}` holds a telephone number, `{"note": {"home": ...}}` a home.
    """
    if not isinstance(key, str):
        return name
    return f"{name} {key}" if names_a_phone(labelled(name, "").label) else key


def _is_json(text: str) -> bool:
    """Whether the text is JSON of a list, an object or a text, to be JSON afterwards, too."""
    bare = text.strip()
    if len(bare) < 2 or bare[0] + bare[-1] not in ("{}", "[]", '""'):
        return False
    try:
        return isinstance(json.loads(bare), list | dict | str)
    except (ValueError, RecursionError):
        return False


def _text_in_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UnholdableError("bytes that are no text in UTF-8") from error


def _number_as_text(value: object) -> str:
    """A number as people write it, a day as ISO 8601; nothing for what cannot be somebody's."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, datetime):
        return value.date().isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float | Decimal):
        return str(int(value)) if math.isfinite(value) and value == int(value) else ""
    return str(value) if isinstance(value, int) else ""


def _check_same(old: str, new: str, kind: str) -> None:
    if new != old:
        raise UnholdableError(f"personal data of type {kind}, which can hold no placeholder")
