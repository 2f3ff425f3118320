"""The operational database, SQLite or PostgreSQL: opened, migrated, locked, read and written.

A transaction is whole or was not made, a lost database is one error (`AwayError`), and texts of
users stay out of error messages. `compact` removes what was deleted from the files.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from reactune.errors import AwayError, DataError
from reactune.store.schema import SCHEMA, SCHEMA_TABLE, metadata

BUSY_MS = 30_000
# For libpq: a server that stopped answering is noticed in a minute, not in two hours.
PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
AS_UTF8 = {"client_encoding": "utf8"}  # of a database without an encoding the driver gives bytes
DRIVERS = {
    "sqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
# Advisory locks: numbers that other users of the same PostgreSQL database are unlikely to take.
MIGRATION_LOCK, ROLLOUT_LOCK, PEOPLE_LOCK = 7_236_812_001, 7_236_812_002, 7_236_812_003
INGEST_LOCK = 7_236_812_004
_LOCK = sa.select(sa.func.pg_advisory_xact_lock(sa.bindparam("number", type_=sa.BigInteger)))
_SHARE_LOCK = sa.select(
    sa.func.pg_advisory_xact_lock_shared(sa.bindparam("number", type_=sa.BigInteger))
)


def create_store(url: str) -> sa.Engine:
    """Open the database, making what is missing: the SQLite file, the tables, newer columns.

    Raises:
        DataError: the server is away, its driver missing, or the database made by a newer reactune.
    """
    engine = _connect(_location(url))
    with _closed_on_error(engine):
        migrate(engine)
    return engine


def open_store(url: str) -> sa.Engine:
    """Open a database that `create_store` made; use `writing(engine)` for whatever writes.

    Raises:
        DataError: the server is away, its driver missing, or the tables are not of this version.
    """
    location = _location(url)
    if not is_there(url):
        raise DataError(f"{location.database}: no such database; run `reactune init`")
    engine = _connect(location)
    with _closed_on_error(engine):
        with reading(engine) as connection:
            schema = _schema_of(connection)
        if schema != SCHEMA:
            raise DataError(_mismatch(engine, schema))
    return engine


@contextmanager
def opened_store(url: str) -> Iterator[sa.Engine]:
    """`open_store`, closed at the end.

    Raises:
        DataError: as `open_store`.
    """
    engine = open_store(url)
    try:
        yield engine
    finally:
        engine.dispose()


def is_there(url: str) -> bool:
    """Whether the SQLite file exists; of a server, only that the URL names one.

    Raises:
        DataError: the URL names no database of a known kind.
    """
    location = _location(url)
    file = location.database if location.drivername == "sqlite" else None
    return not file or file == ":memory:" or Path(file).exists()


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to this version; safe to repeat, and by two processes at once.

    Raises:
        DataError: the database was made by a newer reactune, or holds foreign tables of our names.
    """
    with writing(engine) as connection:
        lock(connection, MIGRATION_LOCK)
        schema = _schema_of(connection)
        if schema is not None and schema > SCHEMA:
            raise DataError(_mismatch(engine, schema))
        if schema == SCHEMA:
            return
        _check_encoding(connection)
        try:
            _upgrade(connection)
        except sa.exc.DBAPIError as error:
            raise DataError(
                f"{_shown(engine)}: cannot make the tables: {_first_line(error)}; "
                "name an empty database in [store] url"
            ) from error


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that reads.

    Raises:
        AwayError: the database went away.
    """
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.OperationalError as error:
        raise AwayError(
            f"{_shown(engine)}: the database does not answer any more: {_first_line(error)}; "
            "check that it runs, and repeat"
        ) from error


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that writes: all of it or nothing.

    On SQLite the write lock is taken at the start, so that what was read before the first write
    is still true when it is written.

    Raises:
        AwayError: the database went away, is full or stays locked; nothing was written.
    """
    try:
        with engine.connect().execution_options(writing=True) as connection, connection.begin():
            yield connection
    except sa.exc.OperationalError as error:
        raise AwayError(
            f"{_shown(engine)}: the last change was not written: {_first_line(error)}; "
            "check that the database runs and has room, and repeat"
        ) from error


def lock(connection: sa.Connection, number: int) -> None:
    """Exclude others until the transaction ends; on SQLite `writing` has done so already."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"number": number})


def share_lock(connection: sa.Connection, number: int) -> None:
    """As `lock`, but excludes only holders of `lock`, not each other."""
    if connection.dialect.name == "postgresql":
        connection.execute(_SHARE_LOCK, {"number": number})


def insert_new(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert the rows; those that exist stay as they are."""
    if rows:
        insert = _insert(connection, table).on_conflict_do_nothing()
        connection.execute(insert, [dict(row) for row in rows])


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    only_if: Callable[[Any], sa.ColumnElement[bool]] | None = None,
) -> None:
    """Insert the rows; of one whose primary key exists, the columns that the rows name change.

    `only_if` is a condition on the row that exists, made from the columns of the new one. Of two
    rows with one key the later wins.

    Raises:
        DataError: the rows name different columns, or a time has no offset.
    """
    if not rows:
        return
    names = rows[0].keys()
    if any(row.keys() != names for row in rows):
        raise DataError(f"upsert of {table.name}: rows name different columns; group them first")
    insert, key = _insert(connection, table), [column.name for column in table.primary_key]
    statement = insert.on_conflict_do_update(
        index_elements=key,
        set_={name: insert.excluded[name] for name in names if name not in key},
        where=only_if(insert.excluded) if only_if else None,
    )
    connection.execute(statement, [dict(row) for row in rows])


def compact(engine: sa.Engine) -> None:
    """Remove what was deleted from the database's files, while others use it.

    SQLite: meanwhile the file needs its size again on disk and writers wait; afterwards the WAL is
    empty. PostgreSQL: VACUUM makes deleted rows unreadable to SQL and frees their space;
    bytes may stay in a page until its space is used again, and in the server's WAL.

    Raises:
        DataError: others write or read without a pause, or the disk is full.
    """
    connection = engine.raw_connection()
    try:
        if engine.dialect.name == "postgresql":
            _vacuum_postgres(connection)
        else:
            _rewrite_sqlite(connection)
    finally:
        connection.invalidate()


def _location(url: str) -> sa.URL:
    try:
        location = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise DataError(
            "[store] url is not a database URL; write it as sqlite:///reactune.db "
            "or postgresql://user:password@host/database"
        ) from error
    if location.drivername not in DRIVERS:
        raise DataError(
            f"[store] url names {location.drivername}; the store is SQLite (sqlite:///FILE) "
            "or PostgreSQL (postgresql://HOST/DATABASE)"
        )
    return location.set(drivername=DRIVERS[location.drivername])


def _connect(location: sa.URL) -> sa.Engine:
    is_sqlite = location.drivername == "sqlite"
    if not is_sqlite:
        location = location.update_query_dict({**PATIENCE, **AS_UTF8, **location.query})
    try:
        # Parameters are texts of users: they stay out of error messages and logs.
        engine = sa.create_engine(location, hide_parameters=True, pool_pre_ping=not is_sqlite)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error.name} is not installed; run `pip install 'reactune[postgres]'`"
        ) from error
    if is_sqlite:
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        sa.event.listen(engine, "connect", _prepare_postgres)
    try:
        with engine.connect() as connection:
            connection.execute(sa.select(1))
    except sa.exc.DBAPIError as error:
        raise DataError(
            f"{_shown(engine)}: cannot open the database: {_first_line(error)}; "
            "check [store] url and that the server runs"
        ) from error
    return engine


def _prepare_postgres(connection: Any, _record: Any) -> None:
    # A server may word times as its country does, which the driver cannot read, and count days
    # from its own midnight.
    try:
        connection.autocommit = True
        connection.execute("SET datestyle TO 'ISO'; SET timezone TO 'UTC'")
        connection.autocommit = False
    except Exception:
        connection.close()  # the pool does not know it yet
        raise


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Python's own transaction handling would begin late and never lock: _begin_sqlite does it.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")
    # What is deleted is overwritten, in pages that stay in use and in those that become free.
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA foreign_keys = ON")


def _switch_to_wal(connection: Any) -> None:
    # The first switch of a new file does not wait for others that switch it too: we have to.
    give_up_at = time.monotonic() + BUSY_MS / 1_000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _closed_on_error(engine: sa.Engine) -> Iterator[None]:
    try:
        yield
    except DataError:
        engine.dispose()
        raise


def _insert(connection: sa.Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    is_postgres = connection.dialect.name == "postgresql"
    return postgresql.insert(table) if is_postgres else sqlite.insert(table)


def _schema_of(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(SCHEMA_TABLE):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {SCHEMA_TABLE}")).scalar()


def _mismatch(engine: sa.Engine, schema: str | None) -> str:
    if schema is None:
        return f"{_shown(engine)}: the database has no tables yet; run `reactune init`"
    versions = f"tables of version {schema}, this reactune knows {SCHEMA}"
    if schema < SCHEMA:
        return f"{_shown(engine)}: {versions}; run `reactune init` to bring them up to date"
    return f"{_shown(engine)}: {versions}; a newer reactune made them, install that one"


def _check_encoding(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise DataError(
                f"{_shown(connection.engine)}: the database is encoded in {encoding}, which cannot "
                "hold every text; make one with CREATE DATABASE ... ENCODING 'UTF8'"
            )


def _upgrade(connection: sa.Connection) -> None:
    """Do the migrations that are missing, in the transaction that the caller opened and locked."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    migrations = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    context = MigrationContext.configure(connection, opts={"version_table": SCHEMA_TABLE})
    missing = migrations.iterate_revisions(SCHEMA, context.get_current_revision() or "base")
    with Operations.context(context):
        for revision in reversed(list(missing)):
            revision.module.upgrade()
    context.stamp(migrations, SCHEMA)


def _vacuum_postgres(connection: sa.PoolProxiedConnection) -> None:
    connection.rollback()
    connection.driver_connection.autocommit = True  # type: ignore[union-attr]
    with closing(connection.cursor()) as cursor:
        cursor.execute(f"VACUUM {', '.join(metadata.tables)}")


def _rewrite_sqlite(connection: sa.PoolProxiedConnection) -> None:
    with closing(connection.cursor()) as cursor:
        try:
            cursor.execute("VACUUM")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (is_busy, *_) = cursor.fetchall()[0]
        except sqlite3.OperationalError as error:
            raise DataError(f"the database cannot be compacted: {error}; repeat") from error
    if is_busy:
        raise DataError("the database is read without a pause, so its WAL stays; repeat")


def _shown(engine: sa.Engine) -> str:
    return engine.url.set(query={}).render_as_string(hide_password=True)


def _first_line(error: sa.exc.DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]
