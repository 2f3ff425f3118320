"""Any JSONL, CSV or Parquet file with placeholders in place of personal data in its texts.

Columns without texts, and all types and metadata of Parquet, stay as they are.
"""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from reactune.config.sections import PrivacyConfig
from reactune.data.readers import (
    NOT_AN_OBJECT,
    NOT_JSON,
    NUL_BYTE,
    csv_header,
    csv_separator,
    ending_of,
    kind_of,
    parquet_batches,
    parquet_schema,
    read_rows,
)
from reactune.errors import DataError
from reactune.pii.detectors import cached, is_foreign_row, open_detector
from reactune.pii.spans import PLACEHOLDER, Text, labelled, scrub_rows, without_label
from reactune.records import replacing

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD = 3  # chunks per process that are read before their turn to be written
CHUNK_ROWS = 2_000
MAX_DEPTH = 20
NO_ROW = (NOT_JSON, NOT_AN_OBJECT, NUL_BYTE)  # lines that are counted; others refuse the file

Values = dict[str, Any]  # column = what it holds in one row
Write = Callable[[Any, Sequence[Values]], None]


@dataclass(frozen=True)
class Chunk:
    """Some rows: the columns that hold texts, and all of it in the file's own form.

    `first` is the number of the first row, from 1; `size` the bytes of the file that were read for
    it; `unreadable` how many lines before the end of the chunk are no rows.
    """

    first: int
    size: int
    values: Sequence[Values] = field(repr=False)
    whole: Any = field(repr=False)
    unreadable: int = 0


@dataclass(frozen=True)
class FoundSpan:
    """Personal data in one text of a file; `text` is the number of the text in its column."""

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

    values: Sequence[Values] = field(repr=False)
    spans: Sequence[FoundSpan] = field(repr=False)
    replaced: Counter[str]
    foreign: frozenset[int]


@dataclass
class Summary:
    """Rows in and out, and how many placeholders of each kind were written."""

    came_in: int = 0
    went_out: int = 0
    unreadable: int = 0
    foreign: int = 0
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
        DataError: a file cannot be read or written, or lacks a column.
        PrivacyError: a model that finds names is missing.
    """
    open_detector(privacy)  # a missing model is reported before anything is read
    summary = Summary()
    with ExitStack() as stack:
        write = stack.enter_context(writing(out, path)) if out else None
        chunks = read_chunks(path, columns)
        for chunk, done in _scrub_all(chunks, privacy, workers):
            kept = range(len(done.values))
            if not keep_foreign:
                kept = [at for at in kept if at not in done.foreign]  # type: ignore[assignment]
            if write:
                write(_rows(chunk.whole, kept), [done.values[at] for at in kept])
            for span in done.spans:
                on_span(span)
            _add(summary, chunk, done, len(kept))
            progress(chunk.size)
    return summary


def scrub_chunk(chunk_values: Sequence[Values], first: int, privacy: PrivacyConfig) -> Scrubbed:
    """The rows with placeholders, and where personal data stood in them; a pure function."""
    detect = cached(open_detector(privacy), 1 << 20)
    texts = [[list(texts_in(*column)) for column in row.items()] for row in chunk_values]
    rows = [[text for column in row for text in column] for row in texts]
    found = iter(detect([text.label + text.value for row in rows for text in row]))
    languages = tuple(privacy.models)
    scrubbed = scrub_rows(rows, [{} for _ in rows], detect=detect)
    values = []
    for row, new in zip(chunk_values, scrubbed, strict=True):
        rest = iter(new)
        values.append({name: with_texts(value, rest) for name, value in row.items()})
    spans = [
        FoundSpan(
            first + at, name, number, s.kind, s.start, s.end, s.score, text.value[s.start : s.end]
        )
        for at, (row, columns) in enumerate(zip(chunk_values, texts, strict=True))
        for name, column in zip(row, columns, strict=True)
        for number, text in enumerate(column)
        for s in without_label(next(found), text.label)
    ]
    foreign = frozenset(
        at
        for at, (row, new) in enumerate(zip(rows, scrubbed, strict=True))
        if languages
        and is_foreign_row(
            "\n".join(text.value for text in row), "\n".join(new), languages=languages
        )
    )
    replaced = _kinds(scrubbed) - _kinds((text.value for text in row) for row in rows)
    return Scrubbed(values, spans, replaced, foreign)


def read_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    """The rows of the file; `columns` names those with texts, none: all that hold any.

    Raises:
        DataError: the file or a row of it cannot be read, or it lacks a column that was named.
    """
    if kind_of(path) == "parquet":
        return _parquet_chunks(path, columns)
    return _row_chunks(path, columns)


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
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list | dict) else None


def _row_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    rows: list[Values] = []
    first, position, unreadable, end = 1, 0, 0, 0
    for line in read_rows(path, decoder=json.JSONDecoder()):
        end = line.position
        if line.refusal in NO_ROW:
            unreadable += 1
            continue
        if line.refusal:
            raise DataError(
                f"{path}, line {line.number}: cannot be read: {line.refusal}; correct the line"
            )
        rows.append(dict(line.values))
        if len(rows) == CHUNK_ROWS:
            yield _row_chunk(path, first, end - position, rows, columns, unreadable)
            first, position, unreadable, rows = first + len(rows), end, 0, []
    if rows or unreadable:
        yield _row_chunk(path, first, end - position, rows, columns, unreadable)


def _row_chunk(
    path: Path, first: int, size: int, rows: list[Values], columns: Sequence[str], unreadable: int
) -> Chunk:
    absent = [name for name in columns if rows and all(name not in row for row in rows)]
    if absent and first == 1:
        raise DataError(f"{path}: no row has a column {absent[0]!r}; it has {', '.join(rows[0])}")
    values = [
        {name: value for name, value in row.items() if not columns or name in columns}
        for row in rows
    ]
    return Chunk(first, size, values, rows, unreadable)


def _parquet_chunks(path: Path, columns: Sequence[str]) -> Iterator[Chunk]:
    schema = parquet_schema(path)
    absent = [name for name in columns if name not in schema.names]
    if absent:
        raise DataError(f"{path}: no column {absent[0]!r}; it has {', '.join(schema.names)}")
    texts = [f.name for f in schema if (f.name in columns or not columns) and _has_text(f.type)]
    position = 0
    for batch in parquet_batches(path, batch_rows=CHUNK_ROWS):
        values = batch.rows.select(texts).to_pylist()
        yield Chunk(batch.first, batch.position - position, values, batch.rows)
        position = batch.position


def _has_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return True
    return any(_has_text(kind.field(index).type) for index in range(kind.num_fields))


@contextmanager
def _write_jsonl(path: Path, _like: Path) -> Iterator[Write]:
    with _create(path) as file:

        def write(rows: Sequence[Values], values: Sequence[Values]) -> None:
            for row, changed in zip(rows, values, strict=True):
                file.write(f"{json.dumps({**row, **changed}, ensure_ascii=False)}\n")

        yield write


@contextmanager
def _write_csv(path: Path, like: Path) -> Iterator[Write]:
    with _create(path, newline="") as file:
        writer = csv.DictWriter(file, csv_header(like), delimiter=csv_separator(like))
        writer.writeheader()

        def write(rows: Sequence[Values], values: Sequence[Values]) -> None:
            writer.writerows({**row, **new} for row, new in zip(rows, values, strict=True))

        yield write


@contextmanager
def _write_parquet(path: Path, like: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    schema = parquet_schema(like)
    with parquet.ParquetWriter(path, schema) as writer:

        def write(batch: "pa.RecordBatch", values: Sequence[Values]) -> None:
            for name in values[0] if values else ():
                index = schema.get_field_index(name)
                column = pa.array([row[name] for row in values], schema.field(index).type)
                batch = batch.set_column(index, schema.field(index), column)
            writer.write_batch(batch)

        yield write


WRITERS = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}


def _create(path: Path, newline: str | None = None) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return cast(TextIO, gzip.open(path, "wt", encoding="utf-8", newline=newline))
    return path.open("w", encoding="utf-8", newline=newline)


def _kinds(rows: Iterable[Iterable[str]]) -> Counter[str]:
    """How many placeholders of each kind the rows hold."""
    return Counter(match[1] for row in rows for text in row for match in PLACEHOLDER.finditer(text))


def _scrub_all(
    chunks: Iterator[Chunk], privacy: PrivacyConfig, workers: int
) -> Iterator[tuple[Chunk, Scrubbed]]:
    """Every chunk with what became of it, in order; several processes at once if asked for."""
    if workers == 1:
        for chunk in chunks:
            yield chunk, scrub_chunk(chunk.values, chunk.first, privacy)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting: list[tuple[Chunk, Future[Scrubbed]]] = []
        while True:
            for chunk in islice(chunks, workers * AHEAD - len(waiting)):
                job = pool.submit(scrub_chunk, chunk.values, chunk.first, privacy)
                waiting.append((chunk, job))
            if not waiting:
                return
            chunk, job = waiting.pop(0)
            yield chunk, job.result()


def _rows(whole: object, kept: Sequence[int]) -> object:
    """These rows of a list of rows, or of a record batch."""
    if isinstance(whole, list):
        return [whole[at] for at in kept]
    return whole.take(list(kept))  # type: ignore[attr-defined]


def _add(summary: Summary, chunk: Chunk, done: Scrubbed, kept: int) -> None:
    summary.came_in += len(done.values) + chunk.unreadable
    summary.went_out += kept
    summary.unreadable += chunk.unreadable
    summary.foreign += len(done.foreign)
    summary.replaced += done.replaced
