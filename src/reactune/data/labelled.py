"""Labelled rows as files between two stages: safe ones and a list of those that were refused.

The same rows give the same bytes, in whatever order they come; memory stays within bounds.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from reactune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

PREFIX = ".work-"
MAX_THREADS = 4  # each sorts with memory of its own
Batches = Iterable["pa.RecordBatch"]
LABELLED = "labelled.parquet"
REFUSED = "refused.parquet"
GROUP_ROWS = 20_000
# Of rows with one tip_id it must not matter which came first. The rest follows from these.
ORDER = "tip_id, created_at, label, reacted_at, user_key, kind, dwell_ms, tip, context_json"


@dataclass(frozen=True)
class Kept:
    """Judged batches: safe rows, refused ones with the reason, and how many lost something."""

    safe: Batches
    refused: Batches
    rows: int
    reasons: Counter[str]
    withheld: int
    dropped: int


@dataclass(frozen=True)
class ArrowFile:
    """Batches in a file, which can be read repeatedly."""

    file: Path

    def __iter__(self) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        with pa.OSFile(str(self.file)) as source, pa.ipc.open_stream(source) as reader:
            yield from reader


@contextmanager
def workspace(folder: Path, *, memory_gb: float) -> "Iterator[tuple[DuckDBPyConnection, Path]]":
    """An empty database, and a folder beside it; what is over `memory_gb` is on disk.

    Both are removed at the end. What a killed process left is removed first, so one process at a
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


def clean_schema() -> "pa.Schema":
    """The columns of a safe row."""
    import pyarrow as pa

    texts = (
        "tip_id", "user_key", "kind", "context_json", "instruction", "input", "prompt", "tip",
        "source", "reaction",
    )  # fmt: skip
    utc = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("dwell_ms", pa.int64()),
            ("created_at", utc),
            ("reacted_at", utc),
            ("label", pa.bool_()),
        ]
    )


def refused_schema() -> "pa.Schema":
    """A refused row: its user, so that it can be erased, and the reason."""
    import pyarrow as pa

    utc = pa.timestamp("us", tz="UTC")
    texts = [pa.field(name, pa.string()) for name in ("tip_id", "user_key", "reason")]
    return pa.schema([*texts, pa.field("created_at", utc)])


def judged_schema() -> "pa.Schema":
    """A safe row, or one with the `reason` why it is refused: then only `refused_schema` is set."""
    import pyarrow as pa

    lost = [pa.field(name, pa.bool_()) for name in ("withheld", "dropped")]
    return pa.schema([*clean_schema(), pa.field("reason", pa.string()), *lost])


def in_memory(batches: Batches) -> Kept:
    """Keep judged batches as tuples."""
    tally = _Tally()
    pairs = list(_sorted_out(batches, tally))
    safe, refused = ([pair[side] for pair in pairs] for side in (0, 1))
    return tally.kept(tuple(safe), tuple(refused))


def on_disk(folder: Path) -> Callable[[Batches], Kept]:
    """Keep judged batches in files of a folder, which the caller removes."""
    numbers = count()

    def keep(batches: Batches) -> Kept:
        import pyarrow as pa

        number = next(numbers)
        files = [folder / f"{name}-{number}.arrow" for name in ("safe", "refused")]
        tally = _Tally()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with (
            pa.ipc.new_stream(str(files[0]), clean_schema(), options=options) as safe,
            pa.ipc.new_stream(str(files[1]), refused_schema(), options=options) as refused,
        ):
            for one, other in _sorted_out(batches, tally):
                safe.write_batch(one)
                refused.write_batch(other)
        return tally.kept(*map(ArrowFile, files))

    return keep


def write_batches(batches: Batches, file: Path, *, memory_gb: float = 1.0) -> None:
    """Write safe rows as Parquet, sorted by tip_id: the same rows give the same bytes."""
    with workspace(file.parent, memory_gb=memory_gb) as (connection, _):
        write_sorted(connection, batches, file)


def write_sorted(connection: "DuckDBPyConnection", batches: Batches, file: Path) -> None:
    """As `write_batches`, in a workspace that is open."""
    import pyarrow as pa

    incoming = pa.RecordBatchReader.from_batches(clean_schema(), iter(batches))
    connection.register("incoming", incoming)
    _write_query(connection, f"FROM incoming ORDER BY {ORDER}", clean_schema(), file)
    connection.unregister("incoming")


def write_refused(connection: "DuckDBPyConnection", lists: tuple[Batches, ...], file: Path) -> None:
    """Write which rows were refused and why, as Parquet, in a workspace that is open."""
    import pyarrow as pa

    incoming = pa.RecordBatchReader.from_batches(refused_schema(), chain.from_iterable(lists))
    connection.register("incoming", incoming)
    list_refused(connection, "FROM incoming", file)
    connection.unregister("incoming")


def list_refused(connection: "DuckDBPyConnection", query: str, file: Path) -> None:
    """Write the rows of a query, which has the columns of `refused_schema`."""
    names = ", ".join(refused_schema().names)
    chosen = f"SELECT {names} FROM ({query}) ORDER BY ALL"
    _write_query(connection, chosen, refused_schema(), file)


def write_groups(batches: Batches, schema: "pa.Schema", file: Path) -> None:
    """Write batches as Parquet in their order: the same rows give the same bytes."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in in_groups(batches, GROUP_ROWS):
            writer.write_table(group.cast(schema))


def read_batches(file: Path, *, batch_rows: int = 10_000) -> "Iterator[pa.RecordBatch]":
    """The rows that `write_batches` wrote."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        yield from parquet.iter_batches(batch_size=batch_rows)


def in_groups(batches: "Iterable[pa.RecordBatch]", rows: int) -> "Iterator[pa.Table]":
    """The same rows in tables of `rows` rows each, but for the last, whatever their batches."""
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
    only: tuple[Any, ...] = row
    return only


def quoted(file: Path) -> str:
    """The path of a file as SQL names it."""
    return "'" + str(file).replace("'", "''") + "'"


@dataclass
class _Tally:
    """What is counted while batches pass."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    withheld: int = 0
    dropped: int = 0

    def kept(self, safe: Batches, refused: Batches) -> Kept:
        """With the rows that were counted."""
        return Kept(safe, refused, self.rows, self.reasons, self.withheld, self.dropped)


def _sorted_out(
    batches: Batches, tally: _Tally
) -> "Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]":
    import pyarrow.compute as pc

    for batch in batches:
        is_safe = pc.is_null(batch.column("reason"))
        refused = batch.filter(pc.invert(is_safe)).select(refused_schema().names)
        tally.rows += batch.num_rows
        tally.reasons.update(refused.column("reason").to_pylist())
        tally.withheld += pc.sum(batch.column("withheld")).as_py() or 0
        tally.dropped += pc.sum(batch.column("dropped")).as_py() or 0
        yield batch.filter(is_safe).select(clean_schema().names), refused


def _write_query(
    connection: "DuckDBPyConnection", query: str, schema: "pa.Schema", file: Path
) -> None:
    ordered = connection.sql(query).to_arrow_reader(GROUP_ROWS)
    write_groups(ordered, schema, file)
