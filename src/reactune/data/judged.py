"""Rows with what became of them, safe or refused: kept in memory, or on disk where they are many.

Who refuses a row, and why, is `deidentify.py`'s.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

Batches = Iterable["pa.RecordBatch"]


@dataclass(frozen=True)
class Kept:
    """What judged batches hold: safe rows, the others with the reason, and how many lost what."""

    safe: Batches
    refused: Batches
    rows: int
    reasons: Counter[str]
    withheld: int
    dropped: int


@dataclass(frozen=True)
class ArrowFile:
    """Batches in a file, to be read as often as one likes."""

    file: Path

    def __iter__(self) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        with pa.OSFile(str(self.file)) as source, pa.ipc.open_stream(source) as reader:
            yield from reader


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


def judged_schema() -> "pa.Schema":
    """A safe row, or one with the `reason` why not: of that only `refused_schema` is known."""
    import pyarrow as pa

    lost = [pa.field(name, pa.bool_()) for name in ("withheld", "dropped")]
    return pa.schema([*clean_schema(), pa.field("reason", pa.string()), *lost])


def refused_schema() -> "pa.Schema":
    """A row that was refused: whose it is, so that it can be forgotten, and why."""
    import pyarrow as pa

    utc = pa.timestamp("us", tz="UTC")
    texts = [pa.field(name, pa.string()) for name in ("tip_id", "user_key", "reason")]
    return pa.schema([*texts, pa.field("created_at", utc)])


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
