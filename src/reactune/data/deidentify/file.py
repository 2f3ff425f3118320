"""Any JSONL, CSV or Parquet file with placeholders in place of personal data, wherever it stands.

What cannot be looked into is an error that names it. What is not replaced stays byte for byte, and
so do all types and metadata of Parquet.
"""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from reactune.config.sections import PrivacyConfig
from reactune.data.deidentify.values import (
    Piece,
    Row,
    UnholdableError,
    key_text,
    pieces_of,
    row_with,
)
from reactune.data.readers import (
    MAX_LINE_BYTES,
    NOT_AN_OBJECT,
    NOT_JSON,
    NUL_BYTE,
    OVERSIZED,
    Record,
    check_readable,
    csv_separator,
    ending_of,
    kind_of,
    parquet_batches,
    parquet_schema,
    read_records,
)
from reactune.errors import DataError
from reactune.pii.detectors import cached, is_foreign_row, open_detector
from reactune.pii.patterns import labelled, names_a_number
from reactune.pii.spans import PLACEHOLDER, Detector, scrub_rows, spans_in
from reactune.process import worker_pool
from reactune.records import replacing

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD = 3  # chunks per process that are read before their turn to be written
CHUNK_ROWS = 2_000
CHUNK_CHARS = 4_000_000
# Lines that are left out and counted; others refuse the file.
NO_ROW = (NOT_JSON, NOT_AN_OBJECT, NUL_BYTE, OVERSIZED)

OTHER_COLUMNS = "name the columns to look in by --column"

Write = Callable[[Any, Sequence[Row]], None]


@dataclass(frozen=True)
class Chunk:
    """Some rows: what is looked at of each, and all of it in the file's own form.

    `first` is the number of the first row, from 1; `size` the bytes of the file that were read for
    it; `refused` counts lines before the end of the chunk that are no rows, by reason.
    """

    first: int
    size: int
    rows: Sequence[Row] = field(repr=False)
    whole: Any = field(repr=False)
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class FoundSpan:
    """Personal data in one text of a file; `text` is the number of the text in its column.

    The name of the column itself has the number -1.
    """

    row: int
    column: str
    text: int
    kind: str
    start: int
    end: int
    score: float
    value: str = field(repr=False)


@dataclass(frozen=True)
class Scrubbed:
    """What became of one chunk: `foreign` are rows, by position, in no configured language."""

    rows: Sequence[Row] = field(repr=False)
    spans: Sequence[FoundSpan] = field(repr=False)
    replaced: Counter[str]
    foreign: frozenset[int]


@dataclass
class Summary:
    """Rows in and out, lines that are no rows by reason, and placeholders written by kind."""

    came_in: int = 0
    went_out: int = 0
    foreign: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)


def deidentify_file(
    path: Path,
    out: Path | None,
    *,
    privacy: PrivacyConfig,
    columns: Sequence[str] = (),
    keep_foreign: bool = False,
    workers: int = 1,
    on_span: Callable[[FoundSpan], object] = lambda span: None,
    progress: Callable[[int], object] = lambda size: None,
) -> Summary:
    """Write the file with placeholders in place of personal data; without `out` only
    report it.

    Equal values of a row get the same placeholder. Rows in a language that no model is configured
    for are left out unless they are to be kept. `progress` gets bytes read, chunk by chunk.

    Raises:
        DataError: a file cannot be read or written, is both, or lacks a column; something in it
            cannot be looked into, or cannot hold a placeholder.
        PrivacyError: a model that finds names is missing.
    """
    check_readable(path)
    detect = open_detector(privacy)  # a missing model is reported before anything is read
    if out is not None and is_same_file(path, out):
        raise DataError(f"{out}: is the file that is read; choose another name")
    _check_names(path, columns, detect)
    summary = Summary()
    with ExitStack() as stack, _of_file(path):
        write = stack.enter_context(writing(out, path)) if out else None
        chunks = read_chunks(path, columns)
        for chunk, done in _scrub_all(chunks, privacy, columns, workers):
            kept = range(len(done.rows))
            if not keep_foreign:
                kept = [at for at in kept if at not in done.foreign]  # type: ignore[assignment]
            if write:
                write(_rows(chunk.whole, kept), [done.rows[at] for at in kept])
            for span in done.spans:
                on_span(span)
            _add(summary, chunk, done, len(kept))
            progress(chunk.size)
    return summary


def scrub_chunk(
    rows: Sequence[Row], first: int, privacy: PrivacyConfig, columns: Sequence[str] = ()
) -> Scrubbed:
    """The rows with placeholders, and where personal data stood in them; a pure function.

    Raises:
        UnholdableError: a row cannot be looked into, or cannot hold a placeholder.
    """
    detect = cached(open_detector(privacy), 1 << 20)
    pieces = [_pieces(row, first + at, columns) for at, row in enumerate(rows)]
    texts = [[piece.text for piece in row] for row in pieces]
    scrubbed = scrub_rows(texts, [{} for _ in rows], detect=detect)
    changed = [
        _changed(row, new, first + at, columns)
        for at, (row, new) in enumerate(zip(rows, scrubbed, strict=True))
    ]
    languages = tuple(privacy.models)
    foreign = frozenset(
        at
        for at, (row, new) in enumerate(zip(pieces, scrubbed, strict=True))
        if languages and is_foreign_row(*_values(row, new), languages=languages)
    )
    replaced = _kinds(scrubbed) - _kinds((text.value for text in row) for row in texts)
    return Scrubbed(changed, list(_spans(pieces, first, detect)), replaced, foreign)


@contextmanager
def _of_file(path: Path) -> Iterator[None]:
    try:
        yield
    except UnholdableError as error:
        raise DataError(f"{path}: {error}") from error


def is_same_file(one: Path, other: Path) -> bool:
    """Whether both names lead to one file, over links as well."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def read_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    """The rows of the file; `columns` names those to look in, none: all.

    Raises:
        DataError: the file or a row of it cannot be read, or it lacks a column that was named, or
            a column is of a type that cannot be looked into.
    """
    match kind_of(path):
        case "parquet":
            return _parquet_chunks(path, columns)
        case "csv":
            return _csv_chunks(path)
    return _json_chunks(path, columns)


@contextmanager
def writing(path: Path, like: Path) -> Iterator[Write]:
    """Write rows of `like` in the same form; the file is there, whole, when all went well.

    Raises:
        DataError: the names say different kinds of files, or the file cannot be written.
    """
    if ending_of(like) != ending_of(path):
        raise DataError(f"{path}: must be of the same kind as {like}; give it the same ending")
    try:
        with replacing(path) as partial, WRITERS[kind_of(like)](partial, like) as write:
            yield write
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; check the name") from error


def _check_names(path: Path, columns: Sequence[str], detect: Detector) -> None:
    """Refuse a file with personal data in the names of its columns: CSV without a header has it.

    Raises:
        DataError: it has, or lacks a column that was named.
    """
    match kind_of(path):
        case "parquet":
            names = parquet_schema(path).names
            nested = [name for each in parquet_schema(path) for name in _names_within(each.type)]
        case "csv":
            names, nested = [cell.strip() for cell in _csv_header(path).cells], []
        case _:
            return
    absent = [name for name in columns if name not in names]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}; it has {', '.join(names)}")
    looked_at = [] if columns else [*names, *nested]
    for name, found in zip(looked_at, detect(looked_at), strict=True):
        if spans := spans_in(key_text(name), found):
            number = [*names, *nested].index(name) + 1
            raise DataError(
                f"{path}: the name of column {number} looks like {spans[0].kind}: the file may lack"
                " a header with names of columns; write one, or rename the column"
            )
    if kind_of(path) == "parquet" and not columns:
        _check_metadata(path, detect)


def _check_metadata(path: Path, detect: Detector) -> None:
    """Refuse a Parquet file with personal data in what its writer noted of it or of a column.

    Raises:
        DataError: it has, or has bytes there that are no text.
    """
    for name, value in _notes(parquet_schema(path)):
        note = name.decode("utf-8", "replace")
        try:
            pieces = list(pieces_of((("", name), ("", value))))
        except UnholdableError as error:
            raise DataError(
                f"{path}: metadata {note!r} holds bytes that are no text; write the file without it"
            ) from error
        found = detect([piece.text.value for piece in pieces])
        for piece, here in zip(pieces, found, strict=True):
            if spans := spans_in(key_text(piece.text.value), here):
                raise DataError(
                    f"{path}: metadata of the file or a column holds {spans[0].kind}; write the "
                    "file without it, or name the columns to look in by --column"
                )


def _notes(schema: "pa.Schema") -> Iterator[tuple[bytes, bytes]]:
    """Key and value of all metadata of a file and its columns, but for Parquet's own numbers."""
    fields = list(schema)
    held = [schema.metadata]
    while fields:
        each = fields.pop()
        held.append(each.metadata)
        kind = each.type
        fields += [kind.field(number) for number in range(kind.num_fields)]
    for metadata in held:
        yield from (metadata or {}).items()


def _names_within(kind: "pa.DataType") -> Iterator[str]:
    """The names of the fields of all structures in a type."""
    import pyarrow as pa

    for index in range(kind.num_fields):
        if pa.types.is_struct(kind):
            yield kind.field(index).name
        yield from _names_within(kind.field(index).type)


def _pieces(row: Row, number: int, columns: Sequence[str]) -> list[Piece]:
    try:
        return list(pieces_of(row, columns))
    except UnholdableError as error:
        raise UnholdableError(f"row {number}: {error}; {OTHER_COLUMNS}") from error


def _changed(row: Row, texts: Sequence[str], number: int, columns: Sequence[str]) -> Row:
    try:
        return row_with(row, iter(texts), columns)
    except UnholdableError as error:
        raise UnholdableError(f"row {number}: {error}; store it as text") from error


def _values(pieces: Sequence[Piece], texts: Sequence[str]) -> tuple[str, str]:
    """What a person wrote in a row, before and after."""
    both = [(p.text.value, t) for p, t in zip(pieces, texts, strict=True) if p.role == "value"]
    return "\n".join(before for before, _ in both), "\n".join(after for _, after in both)


def _spans(pieces: Sequence[Sequence[Piece]], first: int, detect: Detector) -> Iterator[FoundSpan]:
    texts = [piece.text for row in pieces for piece in row]
    found = iter(detect([text.label + text.value for text in texts]))
    for number, row in enumerate(pieces, start=first):
        counts: Counter[str] = Counter()
        for piece in row:
            at = -1 if piece.is_name else counts[piece.column]
            counts[piece.column] += not piece.is_name
            for span in spans_in(piece.text, next(found)):
                value = piece.text.value[span.start : span.end]
                yield FoundSpan(
                    number, piece.column, at, span.kind, span.start, span.end, span.score, value
                )


def _json_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    rows_seen: set[str] = set()
    for chunk in _chunks(path, read_records(path), lambda record: record.source):
        if columns and not rows_seen:
            rows_seen = {piece.column for row in chunk.rows for piece in pieces_of(row)}
            absent = [name for name in columns if name not in rows_seen] if chunk.rows else []
            if absent:
                has = ", ".join(sorted(rows_seen))
                raise DataError(f"{path}: no row has a column {absent[0]!r}; it has {has}")
        yield chunk


def _csv_chunks(path: Path) -> Iterator[Chunk]:
    names = [cell.strip() for cell in _csv_header(path).cells]

    def row(record: Record) -> Row:
        return tuple(zip(names, record.cells, strict=True))

    return _chunks(path, islice(read_records(path), 1, None), row)


def _csv_header(path: Path) -> Record:
    """The first record, which names the columns.

    Raises:
        DataError: it is no CSV.
    """
    header = next(read_records(path), Record(1, 0))
    if header.refusal:
        raise DataError(
            f"{path}: line {header.number} is no CSV header: {header.refusal}; write one"
        )
    return header


def _chunks(
    path: Path, records: Iterable[Record], row_of: Callable[[Record], Row]
) -> Iterator[Chunk]:
    kept: list[Record] = []
    refused: Counter[str] = Counter()
    first = done = position = chars = 0

    def chunk() -> Chunk:
        rows = [row_of(record) for record in kept]
        return Chunk(first + 1, position - done, rows, list(kept), refused)

    for record in records:
        position = record.position
        if record.refusal in NO_ROW:
            refused[record.refusal] += 1
            continue
        if record.refusal:
            raise DataError(
                f"{path}, line {record.number}: cannot be read: {record.refusal}; correct the line"
            )
        kept.append(record)
        chars += len(record.source)
        if len(kept) == CHUNK_ROWS or chars >= CHUNK_CHARS:
            yield chunk()
            first, done, chars, kept, refused = first + len(kept), position, 0, [], Counter()
    if kept or refused:
        yield chunk()


def _parquet_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    schema = parquet_schema(path)
    looked_at = [
        (number, each.name)
        for number, each in enumerate(schema)
        if (not columns or each.name in columns) and _can_be_looked_into(path, each)
    ]
    first, position = 1, 0
    for batch in parquet_batches(path, batch_rows=CHUNK_ROWS):
        held = [_values_of(path, name, batch.rows.column(number)) for number, name in looked_at]
        names = [name for _, name in looked_at]
        rows = [tuple(zip(names, values, strict=True)) for values in zip(*held, strict=True)]
        rows = rows or [()] * batch.rows.num_rows
        kept = [at for at, row in enumerate(rows) if _size(row) <= MAX_LINE_BYTES]
        size, position = batch.position - position, batch.position
        refused = Counter({OVERSIZED: len(rows) - len(kept)})
        whole = ParquetRows(_taken(batch.rows, kept), tuple(number for number, _ in looked_at))
        yield Chunk(first, size, [rows[at] for at in kept], whole, +refused)
        first += len(kept)


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a Parquet file, and the numbers of the columns that are looked at."""

    batch: "pa.RecordBatch" = field(repr=False)
    columns: tuple[int, ...]


def _taken(batch: "pa.RecordBatch", kept: Sequence[int]) -> "pa.RecordBatch":
    """These rows of the batch, for types as well that pyarrow cannot take by index."""
    import pyarrow as pa

    if len(kept) == batch.num_rows:
        return batch
    return pa.concat_batches([batch.slice(0, 0), *(batch.slice(at, 1) for at in kept)])


def _values_of(path: Path, name: str, column: "pa.Array") -> list[Any]:
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: column {name!r} has a value that cannot be read; correct it, or "
            f"{OTHER_COLUMNS}"
        ) from error


def _size(value: object) -> int:
    """The characters in all texts of a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0


def _can_be_looked_into(path: Path, column: "pa.Field") -> bool:
    """Whether a column can hold personal data; a type that is not known is an error."""
    kind = column.type
    if _is_unknown(kind):
        raise DataError(
            f"{path}: column {column.name!r} has the type {kind}, which is not looked into; store "
            f"it as text, or {OTHER_COLUMNS}"
        )
    return _holds_text(column.name, kind)


def _is_unknown(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return not isinstance(kind, pa.UuidType | pa.JsonType)
    if types.is_dictionary(kind):
        return _is_unknown(kind.value_type)
    if types.is_nested(kind):
        is_known = types.is_struct(kind) or types.is_map(kind) or _is_list(kind)
        return not is_known or any(_is_unknown(each.type) for each in _fields(kind))
    return not (
        _is_text(kind) or types.is_null(kind) or types.is_primitive(kind) or types.is_decimal(kind)
    )


def _holds_text(name: str, kind: "pa.DataType") -> bool:
    """Whether there are texts in the type, or numbers whose name says that they are somebody's."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return isinstance(kind, pa.JsonType)
    if types.is_dictionary(kind):
        return _holds_text(name, kind.value_type)
    if types.is_struct(kind):
        return any(_holds_text(each.name, each.type) for each in _fields(kind))
    if types.is_map(kind):
        return True
    if types.is_nested(kind):
        return _holds_text(name, kind.value_type)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    is_number = is_number or types.is_date(kind) or types.is_timestamp(kind)
    return _is_text(kind) or (is_number and names_a_number(labelled(name, "").label))


def _fields(kind: "pa.DataType") -> "list[pa.Field]":
    return [kind.field(index) for index in range(kind.num_fields)]


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    checks = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{check}")(kind) for check in checks)


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    checks = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view",
              "fixed_size_binary")  # fmt: skip
    return any(getattr(pa.types, f"is_{check}")(kind) for check in checks)


@contextmanager
def _write_jsonl(path: Path, _like: Path) -> Iterator[Write]:
    with _create(path) as file:

        def write(_records: Sequence[Record], rows: Sequence[Row]) -> None:
            for row in rows:
                file.write(cast(str, row))
                file.write("" if cast(str, row).endswith("\n") else "\n")

        yield write


@contextmanager
def _write_csv(path: Path, like: Path) -> Iterator[Write]:
    separator = csv_separator(like)
    with _create(path) as file:
        file.write(_csv_header(like).source)

        def write(records: Sequence[Record], rows: Sequence[Row]) -> None:
            for record, row in zip(records, rows, strict=True):
                cells = tuple(cell for _, cell in cast(tuple[tuple[str, str], ...], row))
                file.write(_csv_line(record, cells, separator))

        yield write


def _csv_line(record: Record, cells: tuple[str, ...], separator: str) -> str:
    """The record with these cells, ended as before."""
    body = record.source.rstrip("\r\n")
    end = record.source[len(body) :] or "\n"
    if cells == record.cells:
        return body + end
    line = io.StringIO()
    csv.writer(line, delimiter=separator, lineterminator=end).writerow(cells)
    return line.getvalue()


@contextmanager
def _write_parquet(path: Path, like: Path) -> Iterator[Write]:
    from pyarrow import parquet

    schema = parquet_schema(like)
    with parquet.ParquetWriter(path, schema) as writer:

        def write(whole: ParquetRows, rows: Sequence[Row]) -> None:
            batch = whole.batch
            for at, number in enumerate(whole.columns):
                values = [cast(tuple[tuple[str, Any], ...], row)[at][1] for row in rows]
                column = _column_with(schema.field(number), batch.column(number), values)
                batch = batch.set_column(number, schema.field(number), column)
            writer.write_batch(batch)

        yield write


def _column_with(field: "pa.Field", old: "pa.Array", values: Sequence[Any]) -> "pa.Array":
    """The column with these values, where they are new; the others stay as they are stored."""
    import pyarrow as pa

    if _has_dictionary(old.type):  # which may hold values that no row has any more
        return pa.array(values, old.type)
    changed = [at for at, (one, new) in enumerate(zip(old.to_pylist(), values, strict=True))
               if one != new]  # fmt: skip
    if not changed:
        return old
    if isinstance(old, pa.ExtensionArray):
        storage = _column_with(field, old.storage, values)
        return pa.ExtensionArray.from_storage(old.type, storage)
    try:
        places = list(range(len(old)))
        for number, at in enumerate(changed):
            places[at] = len(old) + number
        new = pa.array([values[at] for at in changed], old.type)
        return pa.concat_arrays([old, new]).take(pa.array(places))
    except pa.ArrowNotImplementedError:
        return pa.array(values, old.type)
    except pa.ArrowInvalid as error:
        raise UnholdableError(
            f"column {field.name!r} of type {field.type} can hold no placeholder; store it as text"
        ) from error


def _has_dictionary(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    within = (kind.field(number).type for number in range(kind.num_fields))
    return pa.types.is_dictionary(kind) or any(map(_has_dictionary, within))


WRITERS = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}


def _create(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return cast(TextIO, gzip.open(path, "wt", encoding="utf-8", newline=""))
    return path.open("w", encoding="utf-8", newline="")


def _kinds(rows: Iterable[Iterable[str]]) -> Counter[str]:
    """How many placeholders of each kind the rows hold."""
    return Counter(match[1] for row in rows for text in row for match in PLACEHOLDER.finditer(text))


def _scrub_all(
    chunks: Iterator[Chunk], privacy: PrivacyConfig, columns: Sequence[str], workers: int
) -> Iterator[tuple[Chunk, Scrubbed]]:
    """Every chunk with what became of it, in order; several processes at once if asked for."""
    if workers == 1:
        for chunk in chunks:
            yield chunk, scrub_chunk(chunk.rows, chunk.first, privacy, columns)
        return
    with worker_pool(workers) as pool:
        waiting: list[tuple[Chunk, Future[Scrubbed]]] = []
        while True:
            for chunk in islice(chunks, workers * AHEAD - len(waiting)):
                job = pool.submit(scrub_chunk, chunk.rows, chunk.first, privacy, columns)
                waiting.append((chunk, job))
            if not waiting:
                return
            chunk, job = waiting.pop(0)
            yield chunk, job.result()


def _rows(whole: object, kept: Sequence[int]) -> object:
    """These rows of a list of records, or of a batch."""
    if isinstance(whole, ParquetRows):
        return ParquetRows(_taken(whole.batch, kept), whole.columns)
    return [cast(list[Record], whole)[at] for at in kept]


def _add(summary: Summary, chunk: Chunk, done: Scrubbed, kept: int) -> None:
    summary.came_in += len(done.rows) + chunk.refused.total()
    summary.went_out += kept
    summary.refused += chunk.refused
    summary.foreign += len(done.foreign)
    summary.replaced += done.replaced
