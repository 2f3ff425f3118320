"""Texts of any JSONL, CSV or Parquet file, read in chunks and written back changed.

Everything else in the file stays as it is. What is done to the texts is `deidentify_file.py`'s.
"""

import codecs
import csv
import gzip
import json
import math
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from reactune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from reactune.pii.spans import Text, labelled

if TYPE_CHECKING:
    import pyarrow as pa


PARQUET_ROWS = 1_000
SURROGATE = re.compile("[\ud800-\udfff]")
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}(\.0+)?")
ENDINGS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".parquet": "parquet",
}
TRUTH = {"true": True, "1": True, "false": False, "0": False}


class Refused(DataError):
    """A row that is left out; the message is the reason and never holds what the row says."""


@dataclass(frozen=True)
class Line:
    """One row by our column names, or the reason why it cannot be read.

    `number` counts a file's lines from 1 (of Parquet: its rows); `position` is how many bytes of
    the file were read by then.
    """

    number: int
    position: int
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    refusal: str = ""


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
    _reader_of(path)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the name") from error


def read(path: Path, names: Mapping[str, str], *, max_line_bytes: int) -> Iterator[Line]:
    """Every row of the file but blank lines; `names` maps our column names to the file's.

    Raises:
        DataError: the file is not what its name says, or is broken off in the middle.
    """
    return _reader_of(path)(path, names, max_line_bytes)


def parse_json(text: str) -> Any:
    """The value of one JSON text, finite numbers only.

    Raises:
        Refused: it is no JSON, holds NaN or an infinity, or is nested beyond reading.
    """
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise Refused("not valid JSON") from error


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


def _reader_of(path: Path) -> Callable[[Path, Mapping[str, str], int], Iterator[Line]]:
    return READERS[ENDINGS[ending_of(path)]]


def _read_jsonl(path: Path, names: Mapping[str, str], max_bytes: int) -> Iterator[Line]:
    for raw in _lines(path, max_bytes):
        if raw.text.isspace():
            continue
        try:
            found = _json_object(raw)
        except Refused as refusal:
            yield Line(raw.number, raw.position, refusal=str(refusal))
        else:
            values = {ours: found[theirs] for ours, theirs in names.items() if theirs in found}
            yield Line(raw.number, raw.position, values)


def _json_object(raw: _Raw) -> dict[str, Any]:
    if raw.is_cut:
        raise Refused("oversized line")
    if b"\0" in raw.text:
        raise Refused("NUL byte")
    try:
        text = raw.text.decode()
    except UnicodeDecodeError as error:
        raise Refused("invalid UTF-8") from error
    found = parse_json(text)
    if not isinstance(found, dict):
        raise Refused("not a JSON object")
    return found


def _read_csv(path: Path, names: Mapping[str, str], max_bytes: int) -> Iterator[Line]:
    header: list[str] | None = None
    for raw, cells, flaw in _csv_records(_lines(path, max_bytes), max_bytes):
        if header is None:
            if flaw:
                raise DataError(f"{path}: line {raw.number} is no CSV header: {flaw}")
            header = [cell.strip() for cell in cells]
            continue
        flaw = flaw or _flaw_of(cells, width=len(header))
        if flaw:
            yield Line(raw.number, raw.position, refusal=flaw)
            continue
        found = dict(zip(header, cells, strict=True))
        values = {o: _typed(o, found[t]) for o, t in names.items() if t in found}
        yield Line(raw.number, raw.position, values)


def _csv_records(lines: Iterator[_Raw], max_bytes: int) -> Iterator[tuple[_Raw, list[str], str]]:
    """Each record: the line it starts on, its cells, or else what is wrong with it.

    A quote that is never closed costs its own line only: reading goes on at the next one.
    """
    # Its default of 128 KiB would break texts that the settings allow; `csv` has only a global.
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
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
            cells = next(csv.reader(feed(held), strict=True), None)
        except csv.Error:
            again.extendleft(reversed(held[1:]))
            yield held[0], [], "oversized line" if held[0].is_cut else "not valid CSV"
            continue
        if cells is None:
            return
        if any(raw.is_cut for raw in held):
            yield held[0], [], "oversized line"
        elif not held[0].text.isspace():
            yield held[0], cells, ""


def _flaw_of(cells: list[str], *, width: int) -> str:
    if any(SURROGATE.search(cell) for cell in cells):
        return "invalid UTF-8"
    return "" if len(cells) == width else "wrong number of columns"


def _typed(name: str, cell: str) -> Any:
    """What the text of a CSV cell stands for; what it cannot stand for is refused later."""
    if not cell:
        return None
    if name == "dwell_ms" and WHOLE_NUMBER.fullmatch(cell):
        return int(cell.partition(".")[0])
    if name == "training_allowed":
        return TRUTH.get(cell.lower(), cell)
    return cell


def _read_parquet(path: Path, names: Mapping[str, str], _max_bytes: int) -> Iterator[Line]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow; run `pip install 'reactune[train]'`"
        ) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [each for each in names.values() if each in file.schema_arrow.names]
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for values, flaw in _parquet_rows(batch, names):
                    number += 1
                    yield Line(number, int(number * bytes_per_row), values, flaw)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: broken Parquet after row {number}; write it again") from error


def _parquet_rows(
    batch: "pa.RecordBatch", names: Mapping[str, str]
) -> Iterator[tuple[dict[str, Any], str]]:
    there = set(batch.schema.names)
    columns = {o: _in_microseconds(batch.column(t)) for o, t in names.items() if t in there}
    for index in range(batch.num_rows):
        try:
            yield {name: column[index].as_py() for name, column in columns.items()}, ""
        except UnicodeDecodeError:
            yield {}, "invalid UTF-8"
        except (ValueError, OverflowError):
            yield {}, "unreadable value"


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
                    text = text.removeprefix(codecs.BOM_UTF8)
                yield _Raw(number, file.tell(), text, is_cut)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken after line {number}: {error}; make it again") from error


def _unpacked(file: BinaryIO, path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if path.name.lower().endswith(".gz") else file


def _refuse_constant(_name: str) -> NoReturn:
    raise Refused("non-finite number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Refused("non-finite number")
    return number


DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
READERS = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}


CHUNK_ROWS = 2_000
MAX_DEPTH = 20

Values = dict[str, Any]  # column = what it holds in one row


@dataclass(frozen=True)
class Chunk:
    """Some rows: the columns that hold texts, and all of it in the file's own form.

    `first` is the number of the first row, from 1; `position` the bytes of the file read by then;
    `unreadable` how many lines before the end of the chunk are no rows.
    """

    first: int
    position: int
    values: Sequence[Values] = field(repr=False)
    whole: Any = field(repr=False)
    unreadable: int = 0


Write = Callable[[Any, Sequence[Values]], None]


def read_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    """The rows of the file; `columns` names those with texts, none: all that hold any.

    Raises:
        DataError: the file cannot be read, or lacks a column that was named.
    """
    try:
        yield from _form_of(path).read(path, tuple(columns))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}; make it again") from error


@contextmanager
def writing(path: Path, like: Path) -> Iterator[Write]:
    """Write rows of `like` in the same form; the file is there, whole, when all went well.

    Raises:
        DataError: the names say different kinds of files, or the file cannot be written.
    """
    form = _form_of(like)
    if ending_of(path) != ending_of(like):
        raise DataError(f"{path}: must be of the same kind as {like}; give it the same ending")
    partial = path.with_name(f".{path.name}.partial{''.join(path.suffixes)}")
    try:
        with form.write(partial, like) as write:
            yield write
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; check the name") from error
    finally:
        partial.unlink(missing_ok=True)


def texts_in(name: str, value: object, depth: int = 0) -> Iterator[Text]:
    """Every text in what a column holds, at any depth, in an order that `with_texts` follows."""
    if isinstance(value, str):
        inner = _json_in(value)
        if inner is None:
            yield labelled(name, value)
        else:
            yield from texts_in(name, inner, depth + 1)
    elif isinstance(value, list | dict) and depth < MAX_DEPTH:
        for key, part in value.items() if isinstance(value, dict) else ((name, p) for p in value):
            yield from texts_in(key, part, depth + 1)


def with_texts(value: Any, texts: Iterator[str], depth: int = 0) -> Any:
    """The value with these texts in place of its own."""
    if isinstance(value, str):
        inner = _json_in(value)
        if inner is None:
            return next(texts)
        return json.dumps(with_texts(inner, texts, depth + 1), ensure_ascii=False)
    if depth >= MAX_DEPTH:
        return value
    if isinstance(value, dict):
        return {key: with_texts(part, texts, depth + 1) for key, part in value.items()}
    if isinstance(value, list):
        return [with_texts(part, texts, depth + 1) for part in value]
    return value


def _json_in(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that the text is JSON of, so that it is JSON afterwards, too."""
    if text[:1] not in ("{", "[") or text[-1:] not in ("}", "]"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list | dict) else None


@dataclass(frozen=True)
class _Form:
    read: Callable[[Path, tuple[str, ...]], Iterator[Chunk]]
    write: Callable[[Path, Path], Any]


def _form_of(path: Path) -> _Form:
    return FORMS[ENDINGS[ending_of(path)]]


def _open(path: Path, mode: str, **options: Any) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return cast(TextIO, gzip.open(path, f"{mode}t", encoding="utf-8", **options))
    return cast(TextIO, path.open(f"{mode}t", encoding="utf-8", **options))


def _jsonl_chunks(path: Path, columns: tuple[str, ...]) -> Iterator[Chunk]:
    rows: list[Values] = []
    number = unreadable = position = 0
    with _open(path, "r", errors="strict") as lines:
        for line in lines:
            position += len(line)
            row = _object(line)
            if row is None:
                unreadable += bool(line.strip())
                continue
            rows.append(row)
            if len(rows) == CHUNK_ROWS:
                yield _dict_chunk(path, number + 1, rows, columns, position, unreadable)
                number, rows, unreadable, position = number + len(rows), [], 0, 0
    if rows or unreadable:
        yield _dict_chunk(path, number + 1, rows, columns, position, unreadable)


def _object(line: str) -> Values | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _dict_chunk(
    path: Path, first: int, rows: list[Values], columns: tuple[str, ...], position: int, bad: int
) -> Chunk:
    absent = [name for name in columns if rows and all(name not in row for row in rows)]
    if absent and first == 1:
        raise DataError(f"{path}: no row has a column {absent[0]!r}; it has {', '.join(rows[0])}")
    values = [
        {name: value for name, value in row.items() if not columns or name in columns}
        for row in rows
    ]
    return Chunk(first, position, values, rows, bad)


@contextmanager
def _write_jsonl(path: Path, _like: Path) -> Iterator[Write]:
    with _open(path, "w") as file:

        def write(rows: Sequence[Values], values: Sequence[Values]) -> None:
            for row, changed in zip(rows, values, strict=True):
                file.write(f"{json.dumps({**row, **changed}, ensure_ascii=False)}\n")

        yield write


def _csv_chunks(path: Path, columns: tuple[str, ...]) -> Iterator[Chunk]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 24))
    with _open(path, "r", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        rows: list[Values] = []
        number = 0
        for row in reader:
            rows.append(row)
            if len(rows) == CHUNK_ROWS:
                yield _dict_chunk(path, number + 1, rows, columns, _size(rows), 0)
                number, rows = number + len(rows), []
        if rows:
            yield _dict_chunk(path, number + 1, rows, columns, _size(rows), 0)


def _size(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(str(value)) + 1 for row in rows for value in row.values())


@contextmanager
def _write_csv(path: Path, like: Path) -> Iterator[Write]:
    with _open(like, "r", newline="") as lines:
        header = next(csv.reader(lines), [])
    with _open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore")
        writer.writeheader()

        def write(rows: Sequence[Values], values: Sequence[Values]) -> None:
            writer.writerows({**row, **new} for row, new in zip(rows, values, strict=True))

        yield write


def _parquet_chunks(path: Path, columns: tuple[str, ...]) -> Iterator[Chunk]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            absent = [name for name in columns if name not in schema.names]
            if absent:
                raise DataError(
                    f"{path}: no column {absent[0]!r}; it has {', '.join(schema.names)}"
                )
            texts = [
                f.name for f in schema if (f.name in columns or not columns) and _has_text(f.type)
            ]
            bytes_per_row = path.stat().st_size / max(file.metadata.num_rows, 1)
            first = 1
            for batch in file.iter_batches(batch_size=CHUNK_ROWS):
                values = batch.select(texts).to_pylist()
                yield Chunk(first, int(batch.num_rows * bytes_per_row), values, batch)
                first += batch.num_rows
    except pa.ArrowException as error:
        raise DataError(f"{path}: broken Parquet: {error}; write it again") from error


def _has_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    return any(_has_text(kind.field(index).type) for index in range(kind.num_fields))


def _schema_of(path: Path) -> "pa.Schema":
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_schema(path)
    except pa.ArrowException as error:
        raise DataError(f"{path}: broken Parquet: {error}; write it again") from error


@contextmanager
def _write_parquet(path: Path, like: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema_of(like)
    with parquet.ParquetWriter(path, schema) as writer:

        def write(batch: "pa.RecordBatch", values: Sequence[Values]) -> None:
            for name in values[0] if values else ():
                index = schema.get_field_index(name)
                column = pa.array([row[name] for row in values], schema.field(index).type)
                batch = batch.set_column(index, schema.field(index), column)
            writer.write_batch(batch)

        yield write


FORMS = {
    "jsonl": _Form(_jsonl_chunks, _write_jsonl),
    "csv": _Form(_csv_chunks, _write_csv),
    "parquet": _Form(_parquet_chunks, _write_parquet),
}
