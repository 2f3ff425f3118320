"""What is to be forgotten leaves the files of one run: labelled rows, dataset, what trainers read.

Which runs there are, their manifests, and what is to go, is left to others.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config import DataConfig
from reactune.data.card import CARD
from reactune.data.exports import EXAMPLES, write_jsonl
from reactune.data.labelled import LABELLED, REFUSED, write_groups
from reactune.data.workspace import workspace
from reactune.errors import DataError
from reactune.records import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

EXTRACTED = (f"extract/{LABELLED}", f"extract/{REFUSED}")
CHOSEN = (f"dataset/{EXAMPLES}", f"dataset/{REFUSED}")
TABLES = (*EXTRACTED, *CHOSEN)
"""Files of a run that say whose each row is; a stage has each row in one of its two."""
SCRATCH = ".erasing"
MEMORY_GB = DataConfig().memory_gb


@dataclass(frozen=True)
class Targets:
    """Rows that are to go, each with the erasure that asked for it."""

    of_user: Mapping[str, str] = field(repr=False)
    """`user_key` = erasure."""
    of_tip: Mapping[str, str] = field(repr=False)
    """`tip_id` = erasure."""
    older_than: datetime | None = None
    of_age: str = ""
    """The erasure that asked for what is older."""

    def erasure_of(self, tip_id: str, user_key: str, created_at: datetime | None) -> str | None:
        """Who asked for this row to go; None: nobody did."""
        is_old = bool(self.older_than and created_at and created_at < self.older_than)
        asked = self.of_user.get(user_key) or self.of_tip.get(tip_id)
        return asked or (self.of_age if is_old else None)


@dataclass(frozen=True)
class Row:
    """A row that is to go, and the file it stands in; of a refused one no texts are known."""

    erasure_id: str
    file: str
    user_key: str
    tip_id: str
    tip: str
    context_json: str
    is_learned: bool
    """A model learned from it, and somebody asked to be forgotten."""


def rows_to_go(run: Path, targets: Targets) -> Iterator[Row]:
    """The rows of a run that are to go, from every file that says whose its rows are.

    Raises:
        DataError: such a file cannot be read.
    """
    for name in TABLES:
        for batch in _batches(run / name):
            chosen = batch.filter(_mask(batch, targets))
            for row in chosen.to_pylist():
                asked = targets.erasure_of(row["tip_id"], row["user_key"], row["created_at"])
                yield Row(
                    erasure_id=asked or "",
                    file=name,
                    user_key=row["user_key"],
                    tip_id=row["tip_id"],
                    tip=row.get("tip", ""),
                    context_json=row.get("context_json", ""),
                    is_learned=row.get("part") == "train" and asked != targets.of_age,
                )


def take_out(run: Path, targets: Targets, *, note: str) -> None:
    """Write the files of a run anew without the rows that are to go; safe to repeat after a kill.

    What the trainer was given goes altogether: it says no more whose its rows are, and is of no
    use after a training. `note` is a line for the dataset's card.

    Raises:
        DataError: a file cannot be read.
    """
    for stage, tables in (("extract", EXTRACTED), ("dataset", CHOSEN)):
        if not (run / stage).is_dir():
            continue
        with _replacing(run / stage) as scratch:
            for name in tables:
                _filter(run / name, targets, out=scratch / Path(name).name)
            if (scratch / EXAMPLES).is_file():
                with workspace(scratch, memory_gb=MEMORY_GB) as (connection, _):
                    write_jsonl(connection, scratch)
    _add_to_card(run / "dataset" / CARD, note)
    drop_training_rows(run)


def drop_training_rows(run: Path) -> None:
    """Remove the folders of trainer processes, with their rows, caches and checkpoints."""
    for folder in sorted((run / "train").glob("*/")):
        if folder.name != "adapter":
            shutil.rmtree(folder)


def _filter(file: Path, targets: Targets, *, out: Path) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not file.is_file():
        return
    with pq.ParquetFile(file) as source:
        schema = source.schema_arrow
    kept = (batch.filter(pc.invert(_mask(batch, targets))) for batch in _batches(file))
    write_groups(kept, schema, out)


def _add_to_card(card: Path, note: str) -> None:
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    if note not in text:
        write_atomically(card, f"{text.rstrip()}\n\n{note}\n")


def _mask(batch: "pa.RecordBatch", targets: Targets) -> "pa.Array":
    """Whether each row is to go."""
    import pyarrow as pa
    import pyarrow.compute as pc

    users = pa.array(list(targets.of_user), pa.string())
    tips = pa.array(list(targets.of_tip), pa.string())
    asked = pc.or_(
        pc.is_in(batch.column("user_key"), value_set=users),
        pc.is_in(batch.column("tip_id"), value_set=tips),
    )
    if targets.older_than is None:
        return asked
    limit = pa.scalar(targets.older_than, pa.timestamp("us", "UTC"))
    return pc.or_(asked, pc.fill_null(pc.less(batch.column("created_at"), limit), fill_value=False))


def _batches(file: Path) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        return
    try:
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} cannot be read, so nothing can be taken out of it: {type(error).__name__}; "
            "put it back as it was or delete its run folder, and repeat"
        ) from error


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder whose files take the place of those of the same name, once all are written."""
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    yield scratch
    for file in sorted(path for path in scratch.rglob("*") if path.is_file()):
        file.replace(folder / file.relative_to(scratch))
    shutil.rmtree(scratch)
