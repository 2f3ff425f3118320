"""Labelled rows as a file between two stages, with a list of those that were refused.

What is in them is `deidentify.py`'s.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.data.judged import Batches, clean_schema, refused_schema
from reactune.data.workspace import in_groups, workspace

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

LABELLED = "labelled.parquet"
REFUSED = "refused.parquet"
GROUP_ROWS = 20_000
# Of rows with one tip_id it must not matter which came first. The rest follows from these.
ORDER = "tip_id, created_at, label, reacted_at, user_key, kind, dwell_ms, tip, context_json"


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


def read_batches(file: Path, *, batch_rows: int = 10_000) -> "Iterator[pa.RecordBatch]":
    """The rows that `write_batches` wrote."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        yield from parquet.iter_batches(batch_size=batch_rows)


def _write_query(
    connection: "DuckDBPyConnection", query: str, schema: "pa.Schema", file: Path
) -> None:
    ordered = connection.sql(query).to_arrow_reader(GROUP_ROWS)
    write_groups(ordered, schema, file)


def write_groups(batches: Batches, schema: "pa.Schema", file: Path) -> None:
    """Write batches as Parquet in their order: the same rows give the same bytes."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in in_groups(batches, GROUP_ROWS):
            writer.write_table(group.cast(schema))
