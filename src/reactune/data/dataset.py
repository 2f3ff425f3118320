"""Safe labelled rows -> a dataset on disk, or the reason to wait.

The rules are `rules.py`'s, the files `exports.py`'s, the card `card.py`'s; where rows come from
and what is trained on them is not known here.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config import DataConfig, DatasetConfig
from reactune.data.card import write_card
from reactune.data.exports import EXAMPLES, count_pairs, fingerprint, write_jsonl, write_parquet
from reactune.data.judged import Batches
from reactune.data.labelled import REFUSED, list_refused
from reactune.data.parts import require_no_leaks
from reactune.data.rules import Progress, choose, count_examples, load, split
from reactune.data.summary import (
    DatasetResult,
    Labels,
    count_dwell,
    count_kinds,
    count_labels,
    count_new,
    count_parts,
    count_users,
    reason_to_wait,
    weights_of,
)
from reactune.data.workspace import workspace
from reactune.records import Counts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_GB = DataConfig().memory_gb
REFUSALS = "SELECT labelled.*, reason FROM refused JOIN labelled ON labelled.rowid = row"


def build(
    batches: Batches,
    settings: DatasetConfig,
    *,
    folder: Path,
    previous: Path | None = None,
    steps: Mapping[str, Counts] | None = None,
    memory_gb: float = MEMORY_GB,
    progress: Progress = lambda step, left: None,
) -> DatasetResult:
    """Choose examples from batches of `deidentify.clean`, split them and write them into `folder`.

    `previous` is the file of examples of the dataset trained last; None before the first training.
    `steps` are the counts of earlier steps by name, for the card. A dataset that waits writes
    nothing but its card and the list of what was refused. Fingerprint and bytes depend on the
    rows and the settings only. What is over `memory_gb` of rows lies on disk meanwhile.

    Raises:
        DataError: something stands in two parts that must not; memory or disk do not suffice.
    """
    with workspace(folder, memory_gb=memory_gb) as (connection, place):
        counts = Counts(load(connection, batches, settings), 0)
        progress("labelled", counts.came_in)
        before, dwell = count_labels(connection), count_dwell(connection)
        removed = choose(connection, settings, folder=place, progress=progress)
        after = count_labels(connection)
        removed |= split(connection, settings)
        counts = Counts(counts.came_in, count_examples(connection), removed)
        progress("split", counts.went_out)
        file = place / EXAMPLES
        write_parquet(connection, file)
        result = _result(connection, file, settings, counts, (before, after), previous)
        written = [] if result.waiting else _write(connection, file, folder)
        list_refused(connection, REFUSALS, folder / REFUSED)
    shown = {**(steps or {}), "rules of the dataset": counts}
    written += [REFUSED, *write_card(result, dwell, settings, steps=shown, folder=folder)]
    progress("written", counts.went_out)
    return replace(result, files=tuple(written))


def _result(
    connection: "DuckDBPyConnection",
    file: Path,
    settings: DatasetConfig,
    counts: Counts,
    labels: tuple[Labels, Labels],
    previous: Path | None,
) -> DatasetResult:
    before, after = labels
    parts, new = count_parts(connection), count_new(connection, file, previous)
    return DatasetResult(
        counts=counts,
        before=before,
        after=after,
        parts=parts,
        kinds=count_kinds(connection),
        users=count_users(connection),
        pairs=count_pairs(connection, file),
        weights=weights_of(parts["train"]),
        leaks=require_no_leaks(connection, file, settings),
        new=new,
        fingerprint=fingerprint(file, settings),
        waiting=reason_to_wait(after, parts, settings, new=new, is_first=previous is None),
    )


def _write(connection: "DuckDBPyConnection", file: Path, folder: Path) -> list[str]:
    file.replace(folder / EXAMPLES)
    return [EXAMPLES, *write_jsonl(connection, folder)]
