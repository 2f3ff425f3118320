"""`tip_scores` -> one label per tip: one Ibis expression that runs where the data lives.

Only labelled rows and counts leave the database; opening it is `engines.py`'s, and what becomes
of the rows is `deidentify.py`'s.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

from reactune.config import LabelConfig, SourceConfig
from reactune.data.engines import COLUMNS, RAW_ID, in_utc, map_columns, names_there, rows, stream
from reactune.errors import PrivacyError
from reactune.privacy import Key, user_key
from reactune.records import Counts

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.expr.types import BooleanValue, Table

LABELLED = (
    "tip_id",
    "user_key",
    "kind",
    "context_json",
    "tip_content",
    "source",
    "reaction",
    "dwell_ms",
    "created_at",
    "label",
)
HASHED = re.compile("[0-9a-f]{64}")
Admits = Callable[[Sequence[str | None], Sequence[datetime | None]], list[bool]]
"""Of ids as the source has them, with the times of their rows: which may be learned from."""


@dataclass(frozen=True)
class DayCount:
    """Labels of the tips that were made on one UTC day."""

    day: date
    positives: int
    negatives: int


def label(table: "Table", labels: LabelConfig) -> "Table":
    """The rows that are evidence, with `label`: true for a positive, false for a negative.

    Left out are other sources, rows with `training_allowed` false, every row of a user whose
    newest row says so, tips that were never shown (silent shadow answers), and reactions that
    are neither a positive nor a negative.
    """
    kept = table.filter(list(_rules(table, labels).values()))
    return kept.mutate(label=_is_positive(kept, labels))


def read_scores(
    table: "Table",
    labels: LabelConfig,
    *,
    source: SourceConfig,
    key: Key,
    admits: Admits | None = None,
    batch_rows: int = 10_000,
) -> Iterator["pa.RecordBatch"]:
    """The labelled rows as Arrow batches of `LABELLED`, `created_at` in UTC, in no set order.

    Ids that `[source] columns` names `user_id` are hashed before a batch is handed out. Rows
    that `admits` turns down are left out.

    Raises:
        PrivacyError: a foreign table's `user_key` is no keyed hash.
        DataError: a `created_at` is no point in time.
    """
    import pyarrow as pa

    chosen = label(table, labels).select(LABELLED)
    for batch in stream(chosen, batch_rows=batch_rows):
        columns = {name: batch.column(name) for name in LABELLED}
        ids = batch.column("user_key").to_pylist()
        columns["user_key"] = pa.array(_user_keys(ids, source=source, key=key), pa.string())
        columns["created_at"] = in_utc(columns["created_at"])
        rows = pa.RecordBatch.from_pydict(columns)
        if admits is not None:
            rows = rows.filter(pa.array(admits(ids, columns["created_at"].to_pylist()), pa.bool_()))
        yield rows


def label_counts(table: "Table", labels: LabelConfig) -> Counts:
    """How many rows `label` keeps, and how many it leaves out for which first reason."""
    rules = _rules(table, labels)
    left = {"rows": table.count()}
    kept = None
    for number, rule in enumerate(rules.values()):
        kept = rule if kept is None else kept & rule
        left[f"after_{number}"] = table.count(where=kept)
    (result,) = rows(table.aggregate(**left))
    counts = [int(str(result[name])) for name in left]
    lost = (before - after for before, after in pairwise(counts))
    return Counts(counts[0], counts[-1], dict(zip(rules, lost, strict=True)))


def label_sql(source: SourceConfig, labels: LabelConfig, *, dialect: str) -> str:
    """The query that `read_scores` runs, in the SQL of `sqlite`, `postgres`, `duckdb`, ..."""
    import ibis

    theirs = {there: COLUMNS[ours] for ours, there in names_there(source.columns).items()}
    table = map_columns(ibis.table(theirs, name=source.table), source.columns)
    return str(ibis.to_sql(label(table, labels).select(LABELLED), dialect=dialect))


def daily_counts(table: "Table", labels: LabelConfig) -> list[DayCount]:
    """Positives and negatives by the UTC day on which the tip was made; empty days are absent."""
    labelled = label(table, labels)
    created = labelled.created_at
    moment = created if created.type().is_timestamp() else created.cast("timestamp")
    dated = labelled.mutate(day=moment.date().cast("string"))
    days = dated.group_by("day").aggregate(positives=dated.label.sum(), tips=dated.count())
    return [
        DayCount(
            day=date.fromisoformat(str(row["day"])),
            positives=int(str(row["positives"])),
            negatives=int(str(row["tips"])) - int(str(row["positives"])),
        )
        for row in rows(days.order_by("day"))
    ]


def forecast(
    days: Sequence[DayCount],
    *,
    have: tuple[int, int],
    need: tuple[int, int],
    today: date,
    window_days: int = 14,
    kept: float = 1.0,
) -> date | None:
    """The day on which both counts are reached at the recent rate; None if they never are.

    `have` and `need` are (positives, negatives). The rate is the mean over the last `window_days`
    days, or over the days since the first label if these are fewer; `kept` is the share of labels
    that duplicates and caps leave.
    """
    missing = [max(0, needed - had) for had, needed in zip(have, need, strict=True)]
    if not any(missing):
        return today
    past = [count for count in days if count.day <= today]
    recent = [count for count in past if count.day > today - timedelta(days=window_days)]
    if not recent:
        return None
    seen_days = min(window_days, (today - min(count.day for count in past)).days + 1)
    came = (sum(count.positives for count in recent), sum(count.negatives for count in recent))
    waits = [0]
    for gap, total in zip(missing, came, strict=True):
        if gap and not total * kept:
            return None
        if gap:
            waits.append(ceil(gap * seen_days / (total * kept)))
    return today + timedelta(days=max(waits))


def _is_positive(table: "Table", labels: LabelConfig) -> "BooleanValue":
    low, high = labels.positive_dwell_ms
    return (table.reaction == "done") & table.dwell_ms.between(low, high)


def _rules(table: "Table", labels: LabelConfig) -> dict[str, "BooleanValue"]:
    """What a row must be to count, by the reason for which it is left out if it is not."""
    quick = (table.dwell_ms >= 0) & (table.dwell_ms < labels.negative_dwell_below_ms)
    is_negative = (table.reaction == "dismiss") & quick
    # Looked at are only users who refused once: few, so the rest costs no sorting.
    refusing = table.filter(~table.training_allowed).user_key
    theirs = table.filter(table.user_key.isin(refusing))
    said = theirs.group_by("user_key").aggregate(
        newest=theirs.created_at.max(),
        newest_refusal=theirs.created_at.max(where=~theirs.training_allowed),
    )
    # NOT IN a list that holds NULL is never true.
    opted_out = said.filter(said.newest_refusal >= said.newest, said.user_key.notnull()).user_key
    return {
        "from another source": table.source == labels.source,
        "opted out": table.training_allowed & table.user_key.notin(opted_out),
        "never shown": table.shown_at.notnull(),
        "no evidence": _is_positive(table, labels) | is_negative,
    }


def _user_keys(values: Sequence[str | None], *, source: SourceConfig, key: Key) -> list[str | None]:
    if RAW_ID in source.columns:
        return [value and user_key(key, value) for value in values]
    if source.url and not all(value is None or HASHED.fullmatch(value) for value in values):
        raise PrivacyError(
            f"user_key of {source.table} holds ids that are no keyed hashes; name that column "
            f"{RAW_ID} in [source] columns, and it is hashed on the way in"
        )
    return list(values)
