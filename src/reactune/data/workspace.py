"""A database of DuckDB's own for one stage: what sorts and groups more rows than memory holds.

It lies in a folder of the stage and is gone at the end; what is asked of it is others' business.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from reactune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

PREFIX = ".work-"
MAX_THREADS = 4  # each sorts with memory of its own


@contextmanager
def workspace(folder: Path, *, memory_gb: float) -> "Iterator[tuple[DuckDBPyConnection, Path]]":
    """An empty database, and the folder it lies in: on disk what is over `memory_gb`.

    Both are gone at the end. What a killed process left is removed first, so one process at a
    time may work in `folder`.

    Raises:
        DataError: memory or disk do not suffice.
    """
    import duckdb

    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(left)
    place = Path(mkdtemp(prefix=PREFIX, dir=folder))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_gb}GB",
        "temp_directory": str(place / "spilled"),
        "threads": min(MAX_THREADS, os.cpu_count() or 1),
    }
    try:
        # In memory, so that no statement waits for a disk; what does not fit is spilled.
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
            yield connection, place
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise DataError(
            f"sorting and grouping in {folder} failed: {str(error).splitlines()[0]}; free disk, or "
            "raise data.memory_gb"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def in_groups(batches: "Iterable[pa.RecordBatch]", rows: int) -> "Iterator[pa.Table]":
    """The same rows in tables of `rows` rows each, but for the last, however they come."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows).combine_chunks()
            held = table.slice(rows).to_batches()
            count -= rows
    if count:
        yield pa.Table.from_batches(held).combine_chunks()


def one_row(connection: "DuckDBPyConnection", query: str, *values: object) -> tuple[Any, ...]:
    """The only row of a result. Fetched whole: an open result keeps others from running."""
    (row,) = connection.execute(query, list(values)).fetchall()
    found: tuple[Any, ...] = row
    return found


def quoted(file: Path) -> str:
    """The path of a file as SQL names it."""
    return "'" + str(file).replace("'", "''") + "'"
