"""What was deleted leaves the database's files, as far as the database lets us.

What is deleted, and when this is called, is left to others.
"""

import sqlite3
from contextlib import closing

import sqlalchemy as sa

from reactune.errors import DataError
from reactune.schema import metadata


def compact(engine: sa.Engine) -> None:
    """Write the database's file anew without what was deleted; others may go on using it.

    SQLite: for that time the file needs its size again on disk, writers wait, and afterwards the
    WAL is empty. PostgreSQL: VACUUM makes deleted rows unreadable to SQL and their room free;
    bytes may stand in a page until its room is used again, and in the server's WAL.

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
            raise DataError(f"the database cannot be written anew: {error}; repeat") from error
    if is_busy:
        raise DataError("the database is read without a pause, so its WAL stays; repeat")
