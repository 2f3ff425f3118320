"""Labelled rows, on their way from the source into a run: made safe by many, kept on disk, sorted.

What makes a row safe is `deidentify.py`'s, who does the work `workers.py`'s.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reactune.config import DataConfig, PrivacyConfig
from reactune.data.deidentify import clean
from reactune.data.judged import Batches, on_disk
from reactune.data.labelled import LABELLED, REFUSED, write_refused, write_sorted
from reactune.data.rarity import common_values_in
from reactune.data.workers import each_batch
from reactune.data.workspace import workspace
from reactune.prompt import Chat
from reactune.records import Counts

FILES = (LABELLED, REFUSED)


@dataclass(frozen=True)
class Extracted:
    """What became of the rows that came in, and how many lost a rare value or a context key."""

    counts: Counts
    withheld: int
    dropped: int


def extract(
    batches: Batches,
    *,
    chat: Chat,
    privacy: PrivacyConfig,
    settings: DataConfig,
    folder: Path,
    progress: Callable[[int], None] = lambda rows: None,
) -> Extracted:
    """Write the safe rows of `scores.read_scores` and the list of refused ones into `folder`.

    The files are the same whoever does the work, and in whatever order rows come. In memory are
    some batches of each worker; rows that are safe but for rare values lie in `folder` meanwhile.

    Raises:
        DataError: a worker died, or memory or disk do not suffice.
    """
    with workspace(folder, memory_gb=settings.memory_gb) as (connection, place):
        cleaned = clean(
            batches,
            chat=chat,
            privacy=privacy,
            each=each_batch(settings),
            keep=on_disk(place),
            common_of=partial(common_values_in, connection),
            progress=progress,
        )
        write_sorted(connection, cleaned.batches, folder / LABELLED)
        write_refused(connection, cleaned.refused, folder / REFUSED)
    return Extracted(cleaned.counts, cleaned.withheld, cleaned.dropped)
