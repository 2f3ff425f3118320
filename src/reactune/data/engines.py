"""Any engine Ibis speaks to, as one table under our column names, and its results as Arrow.

What is asked of the table is `scores.py`'s.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config import SourceConfig, absolute_sqlite_url
from reactune.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis import BaseBackend
    from ibis.expr.types import Table

# What labels are made from: our column name and its type. OPTIONAL ones may be absent elsewhere.
COLUMNS: Mapping[str, str] = {
    "tip_id": "string",
    "user_key": "string",
    "kind": "string",
    "source": "string",
    "context_json": "string",
    "tip_content": "string",
    "reaction": "string",
    "dwell_ms": "int64",
    "training_allowed": "boolean",
    "shown_at": "timestamp('UTC')",
    "created_at": "timestamp('UTC')",
}
OPTIONAL = ("training_allowed", "shown_at")
RAW_ID = "user_id"  # in `[source] columns`: a column of ids that are still to be hashed


@contextmanager
def open_scores(source: SourceConfig, *, store_url: str, folder: Path) -> "Iterator[Table]":
    """The table of `[source]`, or of the store, under our column names; closed at the end.

    Relative paths of SQLite, DuckDB and Parquet URLs start from `folder`.

    Raises:
        DataError: the engine is away or goes away, or lacks the table or a column.
        ConfigError: `[source] columns` names a column that is not ours.
    """
    from ibis.common.exceptions import IbisError

    url = source.url or store_url
    try:
        backend, table = _open(url, source.table, folder)
    except (IbisError, OSError, *_driver_errors()) as error:
        raise _unreadable(source.table, url, error) from error
    try:
        yield map_columns(table, source.columns)
    except _driver_errors() as error:
        # Lost while it was read.
        raise _unreadable(source.table, url, error) from error
    finally:
        backend.disconnect()


def map_columns(table: "Table", columns: Mapping[str, str]) -> "Table":
    """The table under our column names; `columns` says what ours are called there.

    A table without `training_allowed` or `shown_at` counts as allowed and shown. Raw ids stand in
    `user_key` if `columns` names `user_id`.

    Raises:
        ConfigError: `columns` names a column that is not ours.
        DataError: the table lacks a column.
    """
    import ibis

    unknown = sorted(columns.keys() - COLUMNS.keys() - {RAW_ID})
    if unknown:
        raise ConfigError(
            f"source.columns names {', '.join(unknown)}; our columns are {', '.join(COLUMNS)}, "
            f"and {RAW_ID} for ids that are still to be hashed"
        )
    theirs = names_there(columns)
    absent = [ours for ours, there in theirs.items() if there not in table.columns]
    lacking = [theirs[ours] for ours in absent if ours not in OPTIONAL or ours in columns]
    if lacking:
        raise DataError(
            f"table {table.get_name()} has no column {', '.join(lacking)}; it has "
            f"{', '.join(table.columns)}; say in [source] columns what ours are called there"
        )
    mapped = {ours: table[there] for ours, there in theirs.items() if ours not in absent}
    for ours in mapped.keys() & {"tip_id", "user_key", "context_json", "training_allowed"}:
        mapped[ours] = mapped[ours].cast(COLUMNS[ours])
    mapped.setdefault("training_allowed", ibis.literal(value=True))
    mapped.setdefault("shown_at", mapped["created_at"])
    if all(ours in table.columns and mapped[ours].equals(table[ours]) for ours in mapped):
        # A projection that changes nothing would make SQLite copy the table.
        return table
    return table.select(**mapped)


def names_there(columns: Mapping[str, str]) -> dict[str, str]:
    """Our column name = the name it has there, for every column."""
    theirs = {ours: columns.get(ours, ours) for ours in COLUMNS}
    if RAW_ID in columns:
        theirs["user_key"] = columns[RAW_ID]
    return theirs


def stream(expression: "Table", *, batch_rows: int) -> "Iterator[pa.RecordBatch]":
    """The result in batches of at most `batch_rows`; SQLite's times come as their text."""
    import ibis

    backend = ibis.get_backend(expression)
    sql = backend.compile(expression)
    match backend.name:
        case "sqlite":
            # Ibis reads the whole answer into pandas first; the cursor need not.
            yield from _sqlite_batches(backend.raw_sql(sql), expression.schema(), batch_rows)
        case "duckdb":
            # Ibis 12 asks DuckDB 2 for batches by a name that is gone.
            yield from backend.con.sql(sql).to_arrow_reader(batch_rows)
        case _:
            yield from expression.to_pyarrow_batches(chunk_size=batch_rows)


def rows(expression: "Table") -> list[dict[str, object]]:
    """A small result, whole."""
    return [row for batch in stream(expression, batch_rows=10_000) for row in batch.to_pylist()]


def in_utc(times: "pa.Array") -> "pa.Array":
    """Times as microseconds in UTC; those without a zone, and texts without one, are in UTC.

    Raises:
        DataError: a text is no ISO 8601 time.
    """
    import pyarrow as pa

    utc = pa.timestamp("us", tz="UTC")
    if not pa.types.is_string(times.type) and not pa.types.is_large_string(times.type):
        return times.cast(utc, safe=False)
    return pa.array([None if text is None else _moment(text) for text in times.to_pylist()], utc)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError("a created_at is no ISO 8601 time; store them in UTC") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _sqlite_batches(
    cursor: sqlite3.Cursor, schema: Mapping[str, object], batch_rows: int
) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    with closing(cursor):
        while found := cursor.fetchmany(batch_rows):
            columns = zip(schema.items(), zip(*found, strict=True), strict=True)
            arrays = {name: _sqlite_array(values, kind) for (name, kind), values in columns}
            yield pa.RecordBatch.from_pydict(arrays)


def _sqlite_array(values: tuple[object, ...], kind: object) -> "pa.Array":
    import ibis.expr.datatypes as dt
    import pyarrow as pa

    match kind:
        case dt.Boolean():
            return pa.array([None if v is None else bool(v) for v in values], pa.bool_())
        case dt.Integer():
            return pa.array(values, pa.int64())
        case _:
            return pa.array([None if v is None else str(v) for v in values], pa.string())


def _open(url: str, table: str, folder: Path) -> "tuple[BaseBackend, Table]":
    """Connect for reading; a database file that is not there is not made."""
    import ibis

    scheme, _, rest = url.partition("://")
    if scheme == "parquet":
        backend = ibis.duckdb.connect()
        return backend, backend.read_parquet(str(folder / rest), table_name=table)
    if scheme == "duckdb":
        backend = ibis.duckdb.connect(_existing(folder / rest), read_only=True)
    elif scheme.startswith("sqlite"):
        absolute = absolute_sqlite_url(f"sqlite://{rest}", folder)
        backend = ibis.sqlite.connect(_existing(Path(absolute.removeprefix("sqlite:///"))))
    else:
        # SQLAlchemy names the driver in the scheme, `postgresql+psycopg`; Ibis has one for each.
        backend = ibis.connect(f"{scheme.partition('+')[0]}://{rest}")
    return backend, backend.table(table)


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; `reactune init` makes the store")
    return file


def _driver_errors() -> tuple[type[Exception], ...]:
    """What the drivers of the engines we install raise; other engines' errors travel on."""
    import duckdb
    import psycopg

    return (sqlite3.Error, duckdb.Error, psycopg.Error)


def _unreadable(table: str, url: str, error: Exception) -> DataError:
    return DataError(
        f"cannot read table {table} of {_without_password(url)}: {_reason(error)}; "
        "see to it, or to [source] and [store] in the settings, and repeat"
    )


def _reason(error: Exception) -> str:
    """The first line of what a driver says, unless it quotes a value: that may be anybody's."""
    import duckdb
    import psycopg

    if isinstance(error, psycopg.DataError | duckdb.DataError):
        return f"{type(error).__name__}: a value is not of the type that its column must have"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_password(url: str) -> str:
    return re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:***@", url)
