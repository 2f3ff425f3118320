"""Any engine that Ibis supports, as one table under our column names, read in bounded batches.

`[source] where` can be one condition on one row, and nothing else.
"""

import glob
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reactune.config.sections import SourceConfig, absolute
from reactune.config.settings import absolute_sqlite_url, sqlite_file
from reactune.data.columns import CONSENT, match_columns
from reactune.errors import ConfigError, DataError
from reactune.records import REACTION_WORDS
from reactune.runs.remote import remote_errors

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis import BaseBackend
    from ibis.expr.types import Table, Value
    from sqlglot.expressions import Column, Condition

HOW = "write what follows WHERE, such as app = 'coach' AND language IN ('en', 'de')"
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
    "cut": "boolean",
    "shown_at": "timestamp('UTC')",
    "reacted_at": "timestamp('UTC')",
    "created_at": "timestamp('UTC')",
}
OPTIONAL = ("training_allowed", "cut", "shown_at", "reacted_at")
READ_MEMORY = "512MB"  # of a file's blocks; DuckDB would keep as many as fit 80 % of the machine
TRUTH = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}
RAW_ID = "user_id"  # in `[source] columns`: a column of ids that are still to be hashed


@dataclass(frozen=True)
class Scores:
    """The table under our column names, and the rows of it that `[source] where` leaves."""

    table: "Table"
    chosen: "Table"
    states_consent: bool = True
    """Whether the source has a column `training_allowed`."""


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
            # Whatever the server's country, days are those of UTC, written as in ISO 8601.
            cursor.execute("SET LOCAL timezone TO 'UTC'")
            cursor.execute("SET LOCAL datestyle TO 'ISO'")
        return connection


@dataclass(frozen=True)
class OpenScores:
    """The same where the engine is connected, and what answers questions about it."""

    scores: Scores
    answers: Answers


@contextmanager
def open_scores(source: SourceConfig, *, store_url: str, folder: Path) -> Iterator[OpenScores]:
    """The table of `[source]`, or of the store, under our column names; closed at the end.

    Relative paths of SQLite, DuckDB and Parquet URLs start from `folder`.

    Raises:
        DataError: the engine is away or goes away, or lacks the table or a column.
        ConfigError: the URL names no engine that is installed, `[source] columns` a column that is
            not ours, or `where` is not one condition.
    """
    from ibis.common.exceptions import IbisError, TableNotFound

    url = source.url or store_url
    try:
        with _worded(source.table, url):
            backend, table = _open(url, source.table, folder)
    except ImportError as error:
        raise _not_installed(url, error) from error
    except (IbisError, TableNotFound, *remote_errors()) as error:
        raise _unreadable(source.table, url, error) from error
    try:
        with _worded(source.table, url):  # it may be lost while it is read
            scores = scores_of(table, source, written_in=backend.name, compiled_to=backend.name)
            with closing(Answers(backend)) as answers:
                yield OpenScores(scores, answers)
    finally:
        backend.disconnect()


def scores_of(table: "Table", source: SourceConfig, *, written_in: str, compiled_to: str) -> Scores:
    """The table of an engine under our column names.

    `[source] where` is written in one dialect of SQL, and compiled to one.

    Raises:
        ConfigError: `[source] columns` names a column that is not ours, or `where` is not one
            condition.
        DataError: the table lacks a column.
    """

    def under_our_names(there: "Table") -> "Table":
        ours = map_columns(there, source.columns)
        # Our own table holds no other words for reactions.
        return ours.mutate(reaction=_reaction_of(ours.reaction)) if source.url else ours

    mapped = under_our_names(table)
    states_consent = CONSENT in _matched(table, source.columns)
    if not source.where:
        return Scores(mapped, mapped, states_consent)
    kept = rows_that_meet(table, source.where, written_in=written_in, compiled_to=compiled_to)
    return Scores(mapped, under_our_names(kept), states_consent)


def map_columns(table: "Table", columns: Mapping[str, str]) -> "Table":
    """The table under our column names; `columns` maps ours to those of the table.

    A table without `training_allowed`, `cut` or `shown_at` counts as allowed, whole and shown, one
    without `reacted_at` as reacted to at once. `user_key` holds raw ids if `columns` names
    `user_id`. Names that differ in case and separators only are ours.

    Raises:
        ConfigError: `columns` names a column that is not ours, or is not there.
        DataError: the table lacks a column, or has one whose name is nearly ours.
    """
    import ibis

    unknown = sorted(columns.keys() - COLUMNS.keys() - {RAW_ID})
    if unknown:
        raise ConfigError(
            f"source.columns names {', '.join(unknown)}; our columns are {', '.join(COLUMNS)}, "
            f"and {RAW_ID} for ids that are still to be hashed"
        )
    theirs, matched = names_there(columns), _matched(table, columns)
    lacking = [theirs[ours] for ours in COLUMNS if ours not in matched and ours not in OPTIONAL]
    if lacking:
        raise DataError(
            f"the table has no column {', '.join(lacking)}; it has "
            f"{', '.join(table.columns)}; map ours to them in [source] columns"
        )
    mapped = {ours: table[there] for ours, there in matched.items()}
    if not mapped["dwell_ms"].type().is_numeric():
        raise DataError(
            f"column {matched['dwell_ms']} is of type {mapped['dwell_ms'].type()}, and dwell_ms "
            "are numbers of milliseconds; name a view in [source] table that casts it"
        )
    typed = {"tip_id", "context_json", "training_allowed", "cut"}
    if RAW_ID in columns:
        mapped["user_key"] = _raw_id(mapped["user_key"])
    else:
        typed.add("user_key")
    for ours in mapped.keys() & typed:
        kind = mapped[ours].type()
        if COLUMNS[ours] == "boolean" and kind.is_string():
            mapped[ours] = _truth_of(mapped[ours])
            continue
        # A cast of a column that is NOT NULL or has a length would be none but for its name.
        is_right = kind.is_boolean() if COLUMNS[ours] == "boolean" else kind.is_string()
        mapped[ours] = mapped[ours] if is_right else mapped[ours].cast(COLUMNS[ours])
    mapped.setdefault("training_allowed", ibis.literal(value=True))
    mapped.setdefault("cut", ibis.literal(value=False))
    mapped.setdefault("shown_at", mapped["created_at"])
    mapped.setdefault("reacted_at", mapped["created_at"])
    if all(ours in table.columns and mapped[ours].equals(table[ours]) for ours in mapped):
        # A projection that changes nothing would make SQLite copy the table.
        return table
    return table.select(**mapped)


def _matched(table: "Table", columns: Mapping[str, str]) -> dict[str, str]:
    """Our column names and those of the table, for columns that it has."""
    given = {ours: there for ours, there in names_there(columns).items() if ours != there}
    return match_columns(COLUMNS, table.columns, given, setting="[source] columns")


def _reaction_of(column: "Value") -> "Value":
    """Reactions as apps write them (`Done`, ` dismissed`) by our names, others as they are."""
    # To Ibis an enum of PostgreSQL is a string, so a cast would be left out; joined, it is one.
    text = (column.cast("string") + "").strip().lower()
    words = [(word, ours) for word, ours in REACTION_WORDS.items() if word != ours]
    return text.cases(*words, else_=text)


def _truth_of(column: "Value") -> "Value":
    """What a text says: engines cast texts that they do not know to false, or not at all."""
    import ibis

    text = column.strip().lower()
    return ibis.cases(
        (text.isin([text for text, truth in TRUTH.items() if truth]), True),
        (text.isin([text for text, truth in TRUTH.items() if not truth]), False),
        else_=ibis.null("boolean"),
    )


def _raw_id(column: "Value") -> "Value":
    """A column of raw ids whose values `canonical_id` can read by their type.

    Raises:
        DataError: its type has no id in it.
    """
    kind = column.type()
    if kind.is_boolean() or kind.is_nested() or kind.is_temporal():
        raise DataError(
            f"column {column.get_name()} is of type {kind}, in which there are no user ids; name "
            f"another one {RAW_ID} in [source] columns"
        )
    as_it_is = kind.is_string() or kind.is_floating() or kind.is_decimal() or kind.is_binary()
    return column if as_it_is else column.cast("string")


def unbound_scores(source: SourceConfig, *, written_in: str, compiled_to: str) -> Scores:
    """As `scores_of`, of a table that is not opened: it is taken to have the columns it needs."""
    import ibis

    theirs = {there: COLUMNS[ours] for ours, there in names_there(source.columns).items()}
    *schema, name = source.table.split(".")
    place = dict(zip(("database", "catalog"), reversed(schema), strict=False))
    table = ibis.table(theirs, name=name, **place)
    return scores_of(table, source, written_in=written_in, compiled_to=compiled_to)


def names_there(columns: Mapping[str, str]) -> dict[str, str]:
    """Our column name = the name it has there, for every column."""
    theirs = {ours: columns.get(ours, ours) for ours in COLUMNS}
    if RAW_ID in columns:
        theirs["user_key"] = columns[RAW_ID]
    return theirs


def dialect_of(url: str) -> str:
    """The SQL that the engine of a URL speaks, by Ibis's name of it; DuckDB reads Parquet."""
    scheme = _scheme(url)
    if scheme == "postgresql":
        return "postgres"
    return scheme if scheme in backends() else "duckdb"


def backends() -> frozenset[str]:
    """Ibis's names of the engines that it can speak to, installed or not."""
    from importlib.metadata import entry_points

    return frozenset(entry_points(group="ibis.backends").names)


def condition(where: str, *, dialect: Any, columns: Collection[str] = ()) -> "Condition":
    """The condition, parsed in a dialect of sqlglot; its names must be among `columns`.

    Raises:
        ConfigError: it is not one condition on one row, or names a column that is not there.
    """
    import sqlglot
    from sqlglot import expressions as sql
    from sqlglot.errors import SqlglotError

    try:
        parsed = sqlglot.parse_one(where, read=dialect, into=sql.Condition)
    except SqlglotError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise _refused(where, f"is not one condition ({reason})") from error
    if parsed.find(sql.Query):
        raise _refused(where, "asks another table; make a view of it, and name that as the table")
    if parsed.find(sql.AggFunc, sql.Window):
        raise _refused(where, "needs more than one row")
    named = list(parsed.find_all(sql.Column))
    if not named:
        raise _refused(where, "names no column")
    known = {column.casefold() for column in columns}
    unknown = sorted({each.sql() for each in named if known.isdisjoint(_names(each))})
    if known and unknown:
        raise _refused(where, f"names {', '.join(unknown)}, but there are {', '.join(columns)}")
    return parsed


def rows_that_meet(table: "Table", where: str, *, written_in: str, compiled_to: str) -> "Table":
    """The rows of a table of a database that meet a condition.

    The condition is written in one dialect of Ibis, and compiled to one: that of the database.

    Raises:
        ConfigError: see `condition`.
    """
    from ibis.expr.operations import DatabaseTable, SQLStringView
    from sqlglot import expressions as sql

    there = table.op()
    known = table.columns if isinstance(there, DatabaseTable) else ()
    parsed = condition(where, dialect=_language(written_in), columns=known)
    place = sql.table_(
        there.name, db=there.namespace.database, catalog=there.namespace.catalog, quoted=True
    )
    query = sql.select("*").from_(place).where(parsed).sql(dialect=_language(compiled_to))
    return SQLStringView(parent=there, query=query, schema=table.schema()).to_expr()


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
        # Some have a zone, or a form of ISO 8601 that only Python reads.
        texts = times.to_pylist()
        return pa.array([None if text is None else _moment(text) for text in texts], utc)


def _language(dialect: str) -> Any:
    """Sqlglot's name of an Ibis dialect."""
    from ibis.backends.sql import compilers

    return getattr(compilers, dialect).compiler.dialect


def _names(column: "Column") -> set[str]:
    """What a column may be called: `context.app` may be a column of a table, or a field of one."""
    return {part.name.casefold() for part in column.parts}


def _refused(where: str, reason: str) -> ConfigError:
    return ConfigError(f"source.where = {where!r} {reason}; {HOW}")


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
        while rows := cursor.fetchmany(batch_rows):
            columns = zip(schema.items(), zip(*rows, strict=True), strict=True)
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
        case dt.Floating() if all(v is None or isinstance(v, int | float) for v in values):
            return pa.array(values, pa.float64())
        case dt.Binary() if all(v is None or isinstance(v, bytes) for v in values):
            return pa.array(values, pa.binary())
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.array([None if v is None else str(v) for v in values], pa.string())


def _open(url: str, name: str, folder: Path) -> "tuple[BaseBackend, Table]":
    """Connect for reading; a database file that is not there is not made."""
    import ibis

    scheme, rest = _scheme(url), url.partition("://")[2]
    if scheme == "duckdb":
        file = absolute(rest, folder)
        backend = ibis.duckdb.connect(_existing(file), read_only=True, memory_limit=READ_MEMORY)
    elif scheme == "sqlite":
        database = sqlite_file(absolute_sqlite_url(url, folder)) or Path(rest)
        backend = ibis.sqlite.connect(_existing(database))
    elif scheme in {*backends(), "postgresql"}:
        # SQLAlchemy names the driver in the scheme, `postgresql+psycopg`; Ibis has one for each.
        try:
            backend = ibis.connect(f"{scheme}://{rest}")
        except ValueError as error:
            raise ConfigError(
                f"{url}: {error}; correct it in [source] url, or in [store] url"
            ) from error
    else:
        return _open_parquet(url, name, folder)
    *schema, table = name.split(".")
    with ExitStack() as failed:
        failed.callback(backend.disconnect)
        opened = backend.table(table, database=tuple(schema) or None)
        failed.pop_all()
    return backend, opened


def _open_parquet(url: str, name: str, folder: Path) -> "tuple[BaseBackend, Table]":
    """A file or a folder of Parquet files, here or where fsspec reaches, read by DuckDB."""
    import ibis

    backend = ibis.duckdb.connect(memory_limit=READ_MEMORY)
    if _scheme(url) == "parquet":
        pattern = _local_pattern(url.partition("://")[2], folder)
    else:
        files, place = _remote(url)
        backend.register_filesystem(files)
        is_folder = files.isdir(place)
        place = files.unstrip_protocol(place)
        pattern = f"{glob.escape(place.rstrip('/'))}/**/*.parquet" if is_folder else place
    quoted = pattern.replace("'", "''")
    # Ibis's own `read_parquet` would fetch an extension of DuckDB's from the internet first.
    backend.raw_sql(
        f"CREATE TEMP VIEW \"{name}\" AS FROM read_parquet('{quoted}', union_by_name = true)"
    )
    return backend, backend.table(name)


def _local_pattern(name: str, folder: Path) -> str:
    """The pattern of the files; what is there under this name, brackets and all, is no pattern."""
    path = absolute(name, folder)
    if path.exists():
        there = glob.escape(str(path))
        return f"{there}/**/*.parquet" if path.is_dir() else there
    return str(absolute(name, Path(glob.escape(str(folder.absolute())))))


def _remote(url: str) -> tuple[Any, str]:
    try:
        import fsspec

        files, place = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"source.url = {url}: {error}; it may start with parquet://, with a "
            "protocol of fsspec (s3:// needs `pip install 'reactune[s3]'`), or with the name of an "
            f"Ibis back-end: {', '.join(sorted(backends()))}"
        ) from error
    return files, place


def _scheme(url: str) -> str:
    return url.partition(":")[0].partition("+")[0]


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; `reactune init` makes the store")
    return file


@contextmanager
def _worded(table: str, url: str) -> Iterator[None]:
    """What a driver raises in the block as our error; all else as it is."""
    try:
        yield
    except Exception as error:
        if not _is_of_a_driver(error):
            raise
        raise _unreadable(table, url, error) from error


def _is_of_a_driver(error: Exception) -> bool:
    """Whether a database's driver raised it, of whatever engine: PEP 249 names their classes."""
    return _is_called(error, "DatabaseError", "InterfaceError")


def _is_called(error: Exception, *names: str) -> bool:
    return any(each.__name__ in names for each in type(error).__mro__)


def _not_installed(url: str, error: ImportError) -> ConfigError:
    scheme = _scheme(url)
    return ConfigError(
        f"{url} needs {error.name or 'what Ibis needs for it'}, which is not installed; run "
        f"`pip install 'ibis-framework[{scheme}]'`, or name another in [source] url"
    )


def _unreadable(table: str, url: str, error: Exception) -> DataError:
    return DataError(
        f"cannot read table {table} of {url}: {_reason(error)}; "
        "see to it, or to [source] and [store] in the settings, and repeat"
    )


def _reason(error: Exception) -> str:
    """The first line of a driver's message, unless it may quote a value of a user."""
    if _is_called(error, "DataError"):
        return f"{type(error).__name__}: a value is not of the type that its column must have"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
