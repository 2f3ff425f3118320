"""What a dataset holds and why it waits, in numbers: a value for manifest, card and terminal.

Counting is SQL over the `examples` of `rules.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reactune.config import DatasetConfig
from reactune.data.parts import PARTS, Part
from reactune.data.workspace import one_row, quoted
from reactune.records import Counts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LABELS = "count(*) FILTER (label) AS positives, count(*) FILTER (NOT label) AS negatives"
DWELL_BINS = 40
DWELL_SECONDS = (0.1, 300.0)  # the first and the last edge of the bins; what is beyond is in them


@dataclass(frozen=True)
class Labels:
    """Positives and negatives."""

    positives: int
    negatives: int


@dataclass(frozen=True)
class DatasetResult:
    """What a dataset holds, what it was made from, and why it waits, if it does."""

    counts: Counts
    before: Labels
    """Labels that came in."""
    after: Labels
    """Labels that the rules leave; the thresholds are about these."""
    parts: Mapping[Part, Labels]
    """Labels of each part, without texts that stand in an earlier part."""
    kinds: Mapping[str, Labels]
    """Labels of each kind, over all parts."""
    users: Mapping[Part, int]
    """Users of each part."""
    pairs: Mapping[Part, int]
    """DPO pairs of each part."""
    weights: Mapping[str, float]
    """What a positive and a negative of train weigh, so that both labels weigh the same in sum."""
    leaks: Mapping[str, int]
    """What stands in more than one part; where it must not, there is no dataset."""
    new: int
    """Examples that the last trained dataset did not hold."""
    fingerprint: str
    """SHA-256 of all examples and the settings of the dataset."""
    waiting: str | None
    """What is missing, such as `waiting: 312 of 500 positives`; None: go on and train."""
    files: tuple[str, ...] = ()
    """What was written, relative to the folder."""


def count_labels(connection: "DuckDBPyConnection") -> Labels:
    """The labels of all examples."""
    return _labels(connection, "'all'").get("all", Labels(0, 0))


def count_parts(connection: "DuckDBPyConnection") -> dict[Part, Labels]:
    """The labels of each part."""
    found = _labels(connection, "part")
    return {part: found.get(part, Labels(0, 0)) for part in PARTS}


def count_kinds(connection: "DuckDBPyConnection") -> dict[str, Labels]:
    """The labels of each kind."""
    return _labels(connection, "kind")


def count_users(connection: "DuckDBPyConnection") -> dict[Part, int]:
    """The users of each part."""
    query = "SELECT part, count(DISTINCT person) FROM examples GROUP BY part"
    found = dict(connection.execute(query).fetchall())
    return {part: found.get(part, 0) for part in PARTS}


def count_new(connection: "DuckDBPyConnection", file: Path, previous: Path | None) -> int:
    """How many examples of a file are not in an earlier one."""
    known = f"ANTI JOIN {quoted(previous)} USING (tip_id)" if previous else ""
    (number,) = one_row(connection, f"SELECT count(*) FROM {quoted(file)} {known}")
    return int(number)


def count_dwell(connection: "DuckDBPyConnection") -> dict[str, tuple[list[int], list[int]]]:
    """Positives and negatives of each kind by dwell time, in bins of equal ratio."""
    first, last = DWELL_SECONDS
    bins: dict[str, tuple[list[int], list[int]]] = {}
    rows = connection.execute(f"""
        SELECT kind, label, count(*), greatest(0, least({DWELL_BINS - 1}, floor({DWELL_BINS}
            * ln(greatest(dwell_ms, 1) / {first * 1000}) / ln({last / first}))))::INTEGER AS bin
        FROM examples GROUP BY kind, label, bin ORDER BY ALL""").fetchall()
    for kind, label, number, place in rows:
        liked, disliked = bins.setdefault(kind, ([0] * DWELL_BINS, [0] * DWELL_BINS))
        (liked if label else disliked)[place] = number
    return bins


def weights_of(labels: Labels) -> dict[str, float]:
    """By what the examples of one label are weighted so that both labels weigh the same in sum.

    The rarer label gets the weight, the other 1 (KTO, arXiv:2402.01306, equation 8); a trainer
    does the same to the rows it takes.
    """
    liked, disliked = max(labels.positives, 1), max(labels.negatives, 1)
    return {"positive": max(1.0, disliked / liked), "negative": max(1.0, liked / disliked)}


def _labels(connection: "DuckDBPyConnection", by: str) -> dict[str, Labels]:
    rows = connection.execute(
        f"SELECT {by} AS one, {LABELS} FROM examples GROUP BY one ORDER BY one"
    )
    return {name: Labels(*counts) for name, *counts in rows.fetchall()}


def reason_to_wait(
    after: Labels,
    parts: Mapping[Part, Labels],
    settings: DatasetConfig,
    *,
    new: int,
    is_first: bool,
) -> str | None:
    """What a training has to wait for, or None.

    Every run needs `min_positives` and `min_negatives`, and both labels in every part; a later
    run also needs `min_new` examples that the last trained dataset did not hold.
    """
    short = []
    if after.positives < settings.min_positives:
        short.append(f"{after.positives:,} of {settings.min_positives:,} positives")
    if after.negatives < settings.min_negatives:
        short.append(f"{after.negatives:,} of {settings.min_negatives:,} negatives")
    if not is_first and new < settings.min_new:
        short.append(f"{new:,} of {settings.min_new:,} new examples")
    if not short:
        empty = [part for part in PARTS if not (parts[part].positives and parts[part].negatives)]
        short = [f"both labels in {part}, which takes more users" for part in empty]
    return f"waiting: {', '.join(short)}" if short else None
