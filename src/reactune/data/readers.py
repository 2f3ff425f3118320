"""Rows of JSONL, CSV and Parquet files in their order, one parser a format.

What is wrong with one row costs that row alone, and is reported without quoting it; what is wrong
with the file is a `DataError` that names it.
"""

import codecs
import csv
import gzip
import json
import math
import re
import stat
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from reactune.errors import DataError
from reactune.records import NOT_UTF8, folded_text, wide_encoding

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".json": "jsonl",  # as BigQuery and mongoexport name it
    ".json.gz": "jsonl",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".parquet": "parquet",
}
MAX_LINE_BYTES = 16 * 2**20
PARQUET_ROWS = 1_000
ROWS_LOOKED_AT = 100  # of JSONL, which has no header
COLUMNS_LISTED = 20
SURROGATE = re.compile("[\ud800-\udfff]")
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}(\.0+)?")
NUMBER = re.compile(r"-?[0-9]{1,19}(\.[0-9]+)?")
TRUTH = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}
BOOLEANS = ("training_allowed", "cut")
SEPARATORS = (",", ";", "\t", "|")
SEP_LINE = re.compile(rb"\"?sep=([,;\t|])\"?\s*", re.IGNORECASE)  # Excel's, before the header
ONE_LIST = re.compile(rb"\[\s*\{")
QUOTED = re.compile(rb'"[^"]*"')
# Where a line ended for Mac OS 9, once quoted cells are left out.
CR_ALONE = {"csv": re.compile(rb"\r(?=[^\r\n])"), "jsonl": re.compile(rb"\}\r\{")}
NULLS = ("", r"\N")  # PostgreSQL's COPY writes \N
# What pandas, R, MySQL, Snowflake, DBeaver, sqlplus and JavaScript write for one, in small letters.
NULL_WORDS = frozenset(
    ("null", "none", "nan", "nat", "na", "n/a", "#n/a", "<na>", "[null]", "(null)", r"\n",
     "undefined")
)  # fmt: skip
# MongoDB's Extended JSON: the one key of an object that stands for a value.
EXTENDED = ("$oid", "$date", "$uuid", "$numberInt", "$numberLong", "$numberDouble")
TIME_FORM = "such as 2026-03-04T10:00:00Z"
# A zone by name: BigQuery's " UTC"; a space before an offset; Java's "[UTC]" or Go's " UTC" after
# one.
ZONE_NAME = re.compile(r"\s*(?:UTC|GMT|Z)$", re.IGNORECASE)
NAME_AFTER_OFFSET = re.compile(r"(?<=[+-]\d{4}) [A-Z]{2,5}$")
SPACED_OFFSET = re.compile(r"\s+(?=[+-]\d\d(?::?\d\d)?$)")
ZONE_ID = re.compile(r"\[[\w/+-]+\]$")
# A browser's toUTCString() and toString().
UTC_STRING = re.compile(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
TO_STRING = re.compile(
    r"[A-Z][a-z]{2} ([A-Z][a-z]{2} \d\d \d{4} \d\d:\d\d:\d\d GMT[+-]\d{4})( \(.*\))?"
)
# Seconds, milli-, micro- and nanoseconds since 1970, where they can be nothing else: September 2001
# to 2100.
SECONDS = range(10**9, 4_102_444_800)
UNITS = (1, 10**3, 10**6, 10**9)
NOT_JSON, NOT_AN_OBJECT, NUL_BYTE = "not valid JSON", "not a JSON object", "NUL byte"
OVERSIZED = "oversized line"
HALF_A_CHARACTER = "lone surrogate"
# What a file that is no text begins with.
SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"(\xb5/\xfd": "Zstandard",
    b"\xfd7zXZ\0": "xz",
    b"BZh91AY&SY": "bzip2",
    b"PAR1\x15": "Parquet",
    b"ARROW1\0": "Arrow",
    b"Obj\x01": "Avro",
    b"SQLite format 3\0": "a SQLite database",
}


class Refused(DataError):
    """A row that is left out; the message is the reason and never quotes the row."""


@dataclass(frozen=True)
class Line:
    """One row by column name, or the reason why it cannot be read.

    `number` counts a file's lines from 1 (of Parquet: its rows); `position` is how many bytes of
    the file were read by then.
    """

    number: int
    position: int
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    refusal: str = ""


@dataclass(frozen=True)
class Record:
    """One record of a JSONL or CSV file as it stands there; of CSV the header is the first one.

    `source` is its text with the line break, `cells` are those of CSV; `number` and `position` are
    as in `Line`.
    """

    number: int
    position: int
    source: str = field(default="", repr=False)
    cells: tuple[str, ...] = field(default=(), repr=False)
    refusal: str = ""


@dataclass(frozen=True)
class ParquetBatch:
    """Some rows of a Parquet file: the number of the first, from 1, and the bytes read by then."""

    first: int
    position: int
    rows: "pa.RecordBatch" = field(repr=False)


@dataclass(frozen=True)
class _Raw:
    number: int
    position: int
    text: bytes
    is_cut: bool


def check_readable(path: Path) -> None:
    """Refuse what is no readable file of a known kind, before anything is read.

    Raises:
        DataError: naming the file.
    """
    try:
        mode = path.stat().st_mode
        # Its other end may never be opened again, and opening would wait for it.
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise DataError(
                f"{path}: is a pipe or a device, and a file is read more than once; write its "
                "content to a file first, or give it on standard input, which is -"
            )
        kind_of(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the name") from error


def ending_of(path: Path) -> str:
    """The ending of the file's name, one of `ENDINGS`, which says what kind of file it is.

    Raises:
        DataError: it has none of them.
    """
    name = path.name.lower()
    for ending in ENDINGS:
        if name.endswith(ending):
            return ending
    raise DataError(f"{path}: unknown kind of file; the name must end in {', '.join(ENDINGS)}")


def ending_of_content(head: bytes) -> str:
    """The ending, one of `ENDINGS`, of a file that begins like this: JSONL's of an empty one.

    Text that begins with neither a brace nor a bracket is CSV.
    """
    if head.startswith(b"PAR1"):
        return ".parquet"
    if head.startswith(b"\x1f\x8b"):
        try:
            unpacked = zlib.decompressobj(wbits=31).decompress(head)
        except zlib.error:
            unpacked = b""
        return f"{ending_of_content(unpacked)}.gz"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return ".jsonl" if not text or text[:1] in b"{[" else ".csv"


def kind_of(path: Path) -> str:
    """What the ending of the name says that a file is: `jsonl`, `csv` or `parquet`.

    Raises:
        DataError: the name has no known ending.
    """
    return ENDINGS[ending_of(path)]


def read(
    path: Path, names: Mapping[str, str], *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Line]:
    """Every row of the file but blank lines; `names` maps our column names to the file's.

    Cells of CSV get the type of our column; an empty one is None.

    Raises:
        DataError: the file is not what its name says, or is broken off in the middle.
    """
    kind = kind_of(path)
    if kind == "parquet":
        yield from _parquet_lines(path, names)
        return
    typed = _typed if kind == "csv" else _as_it_is
    for row in read_rows(path, max_line_bytes=max_line_bytes):
        there = row.values
        values = {ours: typed(ours, there[name]) for ours, name in names.items() if name in there}
        yield Line(row.number, row.position, values, row.refusal)


def read_rows(
    path: Path,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    decoder: json.JSONDecoder | None = None,
) -> Iterator[Line]:
    """Every row of a JSONL or CSV file but blank lines, with all columns that it has, as they are.

    Raises:
        DataError: the file is not what its name says, or is broken off in the middle.
    """
    if kind_of(path) == "csv":
        return _csv_rows(path, max_line_bytes)
    return _json_rows(path, max_line_bytes, decoder)


def read_whole(path: Path) -> Iterator[Line]:
    """Every row of a file of any kind, with all columns that it has.

    Raises:
        DataError: the file is not what its name says, or is broken off in the middle.
    """
    if kind_of(path) == "parquet":
        return read(path, {name: name for name in parquet_schema(path).names})
    return read_rows(path)


def read_records(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Record]:
    """Every record of a JSONL or CSV file but blank lines, as it stands there.

    JSON may hold what `read_rows` refuses: NaN, infinities, an object with one key twice.

    Raises:
        DataError: the file is not what its name says, or is broken off in the middle.
    """
    if kind_of(path) == "csv":
        return _csv_sources(path, max_line_bytes)
    return _json_sources(path, max_line_bytes)


def csv_header(path: Path) -> list[str]:
    """The names of the columns of a CSV file; none of an empty one.

    Raises:
        DataError: the first line is no header, it names two columns alike, or the file is broken.
    """
    for raws, cells, flaw in _csv_records(path, MAX_LINE_BYTES):
        return _header(path, raws[0], cells, flaw)
    return []


def csv_separator(path: Path) -> str:
    """What separates the cells of a CSV file: what a first line `sep=;` says, or of comma,
    semicolon, tab and bar the most frequent one in its first line, outside quotes; a comma where
    there is none.

    Raises:
        DataError: the file is broken.
    """
    first = next(_lines(path, MAX_LINE_BYTES), None)
    if first and (said := SEP_LINE.fullmatch(first.text)):
        return said[1].decode()
    header = QUOTED.sub(b"", first.text) if first else b""
    return max(SEPARATORS, key=lambda each: header.count(each.encode()))


def parquet_batches(
    path: Path, *, columns: Collection[str] | None = None, batch_rows: int = PARQUET_ROWS
) -> Iterator[ParquetBatch]:
    """The rows of a Parquet file in batches, with those of the columns that it has, or with all.

    Raises:
        DataError: the file is no Parquet, or broken; pyarrow is not installed.
    """
    pyarrow, parquet = _parquet(path)
    first, mend = 1, "write it again"
    try:
        with parquet.ParquetFile(path) as file:
            read = [each for each in file.schema_arrow if columns is None or each.name in columns]
            wanted = None if columns is None else [each.name for each in read]
            for each in read:
                if "fixed_size_list" in str(each.type):  # pyarrow reads none with nulls
                    mend = f"store column {each.name!r}, lists of fixed size with nulls, as a list"
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=batch_rows, columns=wanted):
                end = first + batch.num_rows
                yield ParquetBatch(first, int((end - 1) * bytes_per_row), batch)
                first = end
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: broken Parquet after row {first - 1}; {mend}") from error


def parquet_schema(path: Path) -> "pa.Schema":
    """The columns of a Parquet file.

    Raises:
        DataError: the file is no Parquet, or broken; pyarrow is not installed.
    """
    pyarrow, parquet = _parquet(path)
    try:
        return parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: broken Parquet: {error}; write it again") from error


def plain_text(value: Any) -> str:
    """A value as text: `1` for 1.0, `true` for a boolean, nothing for null and NaN.

    Without white space around it.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value).strip()


def meaning_of(value: Any) -> str:
    """What values of one meaning have in common: `Done` and ` done`, `1` and 1.0, `t` and true.

    Case and white space make no difference; nothing for null and NaN.
    """
    text = folded_text(plain_text(value))
    if WHOLE_NUMBER.fullmatch(text):
        return str(int(text.partition(".")[0]))
    return {"t": "true", "f": "false"}.get(text, text)


def is_absent(value: Any) -> bool:
    """Whether a field says nothing: null, NaN, or text without a character that shows."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def is_null(value: Any) -> bool:
    """As `is_absent`, or a tool's word for null: of a number, a time or a name out of a list.

    Of other texts the word may be meant.
    """
    return is_absent(value) or (isinstance(value, str) and value.strip().casefold() in NULL_WORDS)


def truth_of(value: Any) -> bool | None:
    """A boolean, or how files write one (`true`, `t`, `yes`, `1`, 1.0); None for anything else."""
    return TRUTH.get(meaning_of(value))


def time_of(name: str, value: Any) -> datetime:
    """A time as tools write it, in UTC; `TIME_FORM` shows the form that all can write.

    ISO 8601 with a zone; BigQuery's ` UTC`; Java's `[Europe/Paris]` or Go's ` UTC` after an offset;
    a browser's `toString()` and `toUTCString()`; seconds, milli-, micro- or nanoseconds since 1970,
    as a number or its text, from September 2001 on.

    Raises:
        Refused: it is none, has no zone, or lies outside the calendar; `name` is its column.
    """
    text = plain_text(value)
    if not isinstance(value, bool) and NUMBER.fullmatch(text):
        seconds = float(text)
        for unit in UNITS:
            if int(seconds / unit) in SECONDS:
                return datetime.fromtimestamp(seconds / unit, UTC)
    try:
        time = value if isinstance(value, datetime) else _parsed(text)
    except ValueError as error:
        raise Refused(f"unparsable {name}; write a time {TIME_FORM}") from error
    if time.utcoffset() is None:
        raise Refused(f"naive {name}; write a time with its zone, {TIME_FORM}")
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise Refused(f"out-of-range {name}") from error


def _parsed(text: str) -> datetime:
    if UTC_STRING.fullmatch(text):
        return parsedate_to_datetime(text)
    if said := TO_STRING.fullmatch(text):
        return datetime.strptime(said[1], "%b %d %Y %H:%M:%S GMT%z")
    return datetime.fromisoformat(_iso(text))


def _iso(text: str) -> str:
    """ISO 8601 of the other spellings of a zone."""
    bare = ZONE_ID.sub("", NAME_AFTER_OFFSET.sub("", text))
    if bare != text and not re.search(r"(Z|[+-]\d\d(:?\d\d)?)$", bare):
        return text
    return SPACED_OFFSET.sub("", ZONE_NAME.sub("Z", bare))


def check_columns(path: Path, wanted: Collection[str], *, advice: str) -> None:
    """Refuse a file that has none of the wanted columns: in its header, or its first rows of JSONL.

    Raises:
        DataError: naming the columns that it has; or the file is not what its name says.
    """
    if kind_of(path) == "jsonl":
        there = {name for row in islice(read_rows(path), ROWS_LOOKED_AT) for name in row.values}
    else:
        there = columns_of(path, wanted)
    if there and there.isdisjoint(wanted):
        names = ", ".join(sorted(there)[:COLUMNS_LISTED])
        more = f" and {len(there) - COLUMNS_LISTED:,} more" if len(there) > COLUMNS_LISTED else ""
        raise DataError(f"{path}: no column of {', '.join(wanted)}; it has {names}{more}; {advice}")


def columns_of(path: Path, wanted: Collection[str]) -> set[str]:
    """The columns of a file; of JSONL the keys of its first rows, until all that are wanted came.

    Raises:
        DataError: the file is not what its name says, or is broken.
    """
    match kind_of(path):
        case "parquet":
            return set(parquet_schema(path).names)
        case "csv":
            return set(csv_header(path))
    there: set[str] = set()
    for row in read_rows(path):
        there.update(row.values)
        if there.issuperset(wanted):
            break
    return there


def parse_json(text: str, decoder: json.JSONDecoder | None = None) -> Any:
    """The value of one JSON text; unless another decoder is given, finite numbers only.

    Raises:
        Refused: it is no JSON, holds NaN or an infinity, or is nested beyond reading.
    """
    try:
        return (decoder or FINITE).decode(text)
    except (ValueError, RecursionError) as error:
        raise Refused(NOT_JSON) from error


def _json_rows(path: Path, max_bytes: int, decoder: json.JSONDecoder | None) -> Iterator[Line]:
    for raw in _json_lines(path, max_bytes):
        try:
            yield Line(raw.number, raw.position, _json_object(raw, decoder))
        except Refused as refusal:
            yield Line(raw.number, raw.position, refusal=str(refusal))


def _json_lines(path: Path, max_bytes: int) -> Iterator[_Raw]:
    """Lines that are not blank, of a file that has an object a line."""
    lines = (raw for raw in _lines(path, max_bytes) if not raw.text.isspace())
    beginning = list(islice(lines, 2))
    texts = [raw.text.strip() for raw in beginning]
    if ONE_LIST.match(b"".join(texts)):
        advice = "write one object a line, as `jq -c '.[]'` does"
        raise DataError(f"{path}: is one JSON list; {advice}")
    if texts[:1] == [b"{"] and texts[-1].startswith(b'"'):
        advice = "write each on a line of its own, as `jq -c .` does"
        raise DataError(f"{path}: its JSON objects take several lines; {advice}")
    yield from chain(beginning, lines)


def _json_object(raw: _Raw, decoder: json.JSONDecoder | None) -> dict[str, Any]:
    if raw.is_cut:
        raise Refused(OVERSIZED)
    if b"\0" in raw.text:
        raise Refused(NUL_BYTE)
    try:
        text = raw.text.decode()
    except UnicodeDecodeError as error:
        raise Refused(NOT_UTF8) from error
    value = parse_json(text, decoder)
    if not isinstance(value, dict):
        raise Refused(NOT_AN_OBJECT)
    return value


def _json_sources(path: Path, max_bytes: int) -> Iterator[Record]:
    for raw in _json_lines(path, max_bytes):
        try:
            _json_object(raw, ANY_NUMBER)
            yield Record(raw.number, raw.position, raw.text.decode())
        except Refused as refusal:
            yield Record(raw.number, raw.position, refusal=str(refusal))


def _csv_sources(path: Path, max_bytes: int) -> Iterator[Record]:
    width = 0
    for raws, cells, flaw in _csv_records(path, max_bytes):
        width = width or len(cells)
        flaw = flaw or _flaw_of(cells, width=width)
        source = "" if flaw else b"".join(raw.text for raw in raws).decode()
        yield Record(raws[0].number, raws[-1].position, source, tuple(cells), flaw)


def _csv_rows(path: Path, max_bytes: int) -> Iterator[Line]:
    header: list[str] | None = None
    for raws, cells, flaw in _csv_records(path, max_bytes):
        if header is None:
            header = _header(path, raws[0], cells, flaw)
            continue
        flaw = flaw or _flaw_of(cells, width=len(header))
        if _is_again(header, cells):
            flaw = "the header again"
        values = {} if flaw else dict(zip(header, cells, strict=True))
        yield Line(raws[0].number, raws[0].position, values, flaw)


def _header(path: Path, raw: _Raw, cells: list[str], flaw: str) -> list[str]:
    if flaw:
        raise DataError(f"{path}: line {raw.number} is no CSV header: {flaw}; write one")
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), "")
    if twice:
        raise DataError(f"{path}: two columns are called {twice!r}; rename one of them")
    return names


def _csv_records(path: Path, max_bytes: int) -> Iterator[tuple[list[_Raw], list[str], str]]:
    """Each record: its lines, its cells, or else what is wrong with it.

    A quote that is never closed costs its own line only: reading goes on at the next one.
    """
    # Its default of 128 KiB would break texts that the settings allow; `csv` has only a global.
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    lines, separator = _lines(path, max_bytes), csv_separator(path)
    again: deque[_Raw] = deque()

    def feed(held: list[_Raw]) -> Iterator[str]:
        size = 0
        while size <= max_bytes and (raw := again.popleft() if again else next(lines, None)):
            held.append(raw)
            size += len(raw.text)
            yield raw.text.decode("utf-8", "surrogateescape")

    while True:
        held: list[_Raw] = []
        try:
            cells = next(csv.reader(feed(held), delimiter=separator, strict=True), None)
        except csv.Error:
            again.extendleft(reversed(held[1:]))
            yield held[:1], [], OVERSIZED if held[0].is_cut else "not valid CSV"
            continue
        if cells is None:
            return
        if any(raw.is_cut for raw in held):
            yield held, [], OVERSIZED
        elif not held[0].text.isspace() and not _is_sep_line(held[0]):
            yield held, cells, ""


def _is_sep_line(raw: _Raw) -> bool:
    return raw.number == 1 and SEP_LINE.fullmatch(raw.text) is not None


def _flaw_of(cells: list[str], *, width: int) -> str:
    if any(SURROGATE.search(cell) for cell in cells):
        return NOT_UTF8
    return "" if len(cells) == width else "wrong number of columns"


def _is_again(header: list[str], cells: list[str]) -> bool:
    """Whether a row is the header of another file that was put after the first."""
    is_like_it = len(header) > 1 and cells[:1] and cells[0].strip() == header[0]
    return bool(is_like_it) and [cell.strip() for cell in cells] == header


def _as_it_is(_name: str, value: Any) -> Any:
    """The value, or the one that an object of MongoDB's Extended JSON stands for."""
    while isinstance(value, dict) and len(value) == 1 and (name := next(iter(value))) in EXTENDED:
        value = value[name]
    return value


def _typed(name: str, cell: str) -> Any:
    """The value of a CSV cell; a text that is none stays as it is, and is refused later."""
    if cell in NULLS:
        return None
    if name == "dwell_ms" and WHOLE_NUMBER.fullmatch(cell):
        return int(cell.partition(".")[0])
    if name in BOOLEANS:
        truth = truth_of(cell)
        return cell if truth is None else truth
    return cell


def _parquet(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; run `pip install 'reactune[train]'`"
        ) from error
    return pyarrow, parquet


def _parquet_lines(path: Path, names: Mapping[str, str]) -> Iterator[Line]:
    for batch in parquet_batches(path, columns=names.values()):
        there = set(batch.rows.schema.names)
        columns = {
            ours: _in_microseconds(batch.rows.column(name))
            for ours, name in names.items()
            if name in there
        }
        for index in range(batch.rows.num_rows):
            values, flaw = _parquet_values(columns, index)
            yield Line(batch.first + index, batch.position, values, flaw)


def _parquet_values(columns: Mapping[str, "pa.Array"], index: int) -> tuple[dict[str, Any], str]:
    try:
        cells = {name: column[index] for name, column in columns.items()}
        return {
            name: _decoded(name, cell.as_py(maps_as_pydicts="strict"))
            for name, cell in cells.items()
        }, ""
    except UnicodeDecodeError:
        return {}, NOT_UTF8
    except (ValueError, OverflowError, KeyError):
        return {}, "unreadable value"


def _decoded(name: str, value: Any) -> Any:
    """Texts that the file's writer marked as bytes only are UTF-8; an id may be a UUID's bytes."""
    return value.decode() if isinstance(value, bytes) and name != "user_id" else value


def _in_microseconds(column: "pa.Array") -> "pa.Array":
    """Python's times know no nanoseconds."""
    import pyarrow

    if not pyarrow.types.is_timestamp(column.type):
        return column
    return column.cast(pyarrow.timestamp("us", tz=column.type.tz), safe=False)


def _lines(path: Path, max_bytes: int) -> Iterator[_Raw]:
    """Lines of a file, gzipped or not; of one longer than `max_bytes` only the beginning."""
    number = 0
    try:
        with path.open("rb") as file, _unpacked(file, path) as lines:
            while text := lines.readline(max_bytes + 1):
                number += 1
                end = text
                while end and not end.endswith(b"\n"):
                    end = lines.readline(max_bytes)
                is_cut = len(text) > max_bytes and not text.endswith(b"\n")
                if number == 1:
                    _check_text(path, text)
                    if encoding := wide_encoding(text):
                        raise DataError(f"{path}: is {encoding}, not UTF-8; save it as UTF-8")
                    if CR_ALONE[kind_of(path)].search(QUOTED.sub(b"", text)):
                        raise DataError(
                            f"{path}: its lines end in CR alone, as on an old Mac; save it with "
                            "LF or CRLF"
                        )
                # Where files were put one after the other, each began with one.
                yield _Raw(number, file.tell(), text.removeprefix(codecs.BOM_UTF8), is_cut)
    except (OSError, EOFError, zlib.error) as error:
        if number == 0 and isinstance(error, gzip.BadGzipFile):
            raise DataError(f"{path}: is not gzip, as its name says; rename it") from error
        raise DataError(f"{path}: broken after line {number}: {error}; make it again") from error


def _check_text(path: Path, beginning: bytes) -> None:
    for signature, name in SIGNATURES.items():
        if beginning.startswith(signature):
            advice = "export it as text"
            if name == "gzip":
                is_twice = path.name.lower().endswith(".gz")
                advice = "unpack it once" if is_twice else f"call it {path.name}.gz"
            raise DataError(f"{path}: is {name}, and no text as its name says; {advice}")


def _unpacked(file: BinaryIO, path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if path.name.lower().endswith(".gz") else file


def _refuse_constant(_name: str) -> NoReturn:
    raise Refused("non-finite number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Refused("non-finite number")
    return number


FINITE = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
ANY_NUMBER = json.JSONDecoder()
