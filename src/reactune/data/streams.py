"""Results of a query as Arrow batches, by the shortest way that each engine has.

What is asked is others' business.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from reactune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis import BaseBackend
    from ibis.expr.types import Table


class Answers:
    """What one engine answers to queries; SQLite and PostgreSQL answer all as of one moment."""

    def __init__(self, backend: "BaseBackend") -> None:
        self._backend = backend
        self._opened = ExitStack()
        if backend.name == "sqlite":
            backend.raw_sql("BEGIN")

    def batches(self, expression: "Table", *, batch_rows: int) -> "Iterator[pa.RecordBatch]":
        """The result in batches of at most `batch_rows`; SQLite's times come as their text.

        No engine's result is ever held whole.
        """
        sql = self._backend.compile(expression)
        match self._backend.name:
            case "sqlite":
                # Ibis reads the whole answer into pandas first; the cursor need not.
                yield from _sqlite_batches(
                    self._backend.raw_sql(sql), expression.schema(), batch_rows
                )
            case "duckdb":
                # Ibis 12 asks DuckDB 2 for batches by a name that is gone.
                yield from self._backend.con.sql(sql).to_arrow_reader(batch_rows)
            case "postgres":
                # Ibis makes each batch of Python tuples; COPY takes a third of the time.
                with self._copying.cursor() as cursor:
                    cursor.execute(sql)
                    for batch in cursor.fetch_record_batch():
                        for start in range(0, batch.num_rows, batch_rows):
                            yield batch.slice(start, batch_rows)
            case _:
                yield from expression.to_pyarrow_batches(chunk_size=batch_rows)

    def rows(self, expression: "Table") -> list[dict[str, object]]:
        """A small result, whole."""
        batches = self.batches(expression, batch_rows=10_000)
        return [row for batch in batches for row in batch.to_pylist()]

    def close(self) -> None:
        """Let go of what was opened here."""
        self._opened.close()

    @cached_property
    def _copying(self) -> Any:
        """A connection that copies out; to open one takes longer than to count a table's rows."""
        from adbc_driver_postgresql import dbapi
        from psycopg.conninfo import make_conninfo

        asked = self._backend.con.info
        place = make_conninfo(asked.dsn, password=asked.password or None)
        connection = self._opened.enter_context(dbapi.connect(place))
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return connection


def in_utc(times: "pa.Array") -> "pa.Array":
    """Times as microseconds in UTC; those without a zone, and texts without one, are in UTC.

    Raises:
        DataError: a text is no ISO 8601 time.
    """
    import pyarrow as pa

    utc = pa.timestamp("us", tz="UTC")
    if not pa.types.is_string(times.type) and not pa.types.is_large_string(times.type):
        return times.cast(utc, safe=False)
    try:
        return times.cast(pa.timestamp("us")).cast(utc)
    except pa.ArrowInvalid:
        # Some say their zone, or are in a form of ISO 8601 that only Python reads.
        texts = times.to_pylist()
        return pa.array([None if text is None else _moment(text) for text in texts], utc)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError("a time is no ISO 8601 time; store times in UTC") from error
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


def _sqlite_array(values: tuple[Any, ...], kind: object) -> "pa.Array":
    """The values as Arrow; SQLite does not see to it that they are of their column's type."""
    import ibis.expr.datatypes as dt
    import pyarrow as pa

    match kind:
        case dt.Boolean():
            return pa.array([None if v is None else bool(v) for v in values], pa.bool_())
        case dt.Integer():
            return pa.array(values, pa.int64())
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
