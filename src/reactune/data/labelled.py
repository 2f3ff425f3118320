"""Labelled rows as a file between two stages; what is in them is `deidentify.py`'s."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.data.deidentify import clean_schema

if TYPE_CHECKING:
    import pyarrow as pa


def write_batches(batches: Iterable["pa.RecordBatch"], file: Path) -> None:
    """Write safe rows as Parquet, sorted by tip_id: the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_batches(batches, schema=clean_schema())
    order = [("tip_id", "ascending"), ("created_at", "ascending"), ("label", "ascending")]
    pq.write_table(table.sort_by(order).combine_chunks(), file, compression="zstd")


def read_batches(file: Path, *, batch_rows: int = 10_000) -> Iterator["pa.RecordBatch"]:
    """The rows that `write_batches` wrote."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        yield from parquet.iter_batches(batch_size=batch_rows)
