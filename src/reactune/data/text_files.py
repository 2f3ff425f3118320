"""Texts of any JSONL, CSV or Parquet file, read in chunks and written back changed.

Everything else in the file stays as it is. What is done to the texts is `deidentify_file.py`'s.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from reactune.data.files import ENDINGS, ending_of
from reactune.detect.spans import Text, labelled
from reactune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

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


def _read_jsonl(path: Path, columns: tuple[str, ...]) -> Iterator[Chunk]:
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


def _read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[Chunk]:
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


def _read_parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Chunk]:
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
    "jsonl": _Form(_read_jsonl, _write_jsonl),
    "csv": _Form(_read_csv, _write_csv),
    "parquet": _Form(_read_parquet, _write_parquet),
}
