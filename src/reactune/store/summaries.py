"""Counts and figures for the pages: of stages and reviews one row each, of tips one a day.

No text of a tip, a context or a user is in them.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import sqlalchemy as sa

from reactune.records import STAGES
from reactune.store.database import reading, upsert, writing
from reactune.store.labels import LabelRule
from reactune.store.schema import reaction_days, stage_summaries, tip_scores

DWELL_EDGES_MS = (
    1_000, 2_000, 3_000, 5_000, 8_000, 10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 90_000,
    120_000, 180_000, 300_000,
)  # fmt: skip
"""Upper edges of the bins of dwell times; one bin more has the longer ones, the last those without
a time."""
UNKNOWN_DWELL = len(DWELL_EDGES_MS) + 1
REACTIONS, COUNT = (
    "reactions",
    "count",
)  # subject and stage of the row that says when it was counted
RECENT = timedelta(days=2)  # within which most reactions to a tip arrive
PER_INSERT = 500
OF_SUMMARY = ("subject", "stage", "outcome", "line", "finished_at", "seconds")
AS_JSON = ("counts", "figures", "lineage")
OF_DAY = ("kind", "source", "version", "tips", "shown", "positives", "negatives")
"""Fields of a record that are columns of the same name; those of `AS_JSON` are JSON."""


@dataclass(frozen=True)
class Summary:
    """What a stage of a run, or a review of a rollout, came to.

    `subject` is the run's or the rollout's id, `line` its one line for the terminal. `figures` are
    what pictures and tables show, `lineage` has digests, settings and versions.
    """

    subject: str
    stage: str
    outcome: str
    line: str
    finished_at: datetime
    counts: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class DayCounts:
    """Tips written on one UTC day, of one kind, source and version (0: none), and what became of
    them.

    `positives` and `negatives` are those that training may read. `dwell` counts the tips with each
    reaction by bins of dwell time.
    """

    day: date
    kind: str
    source: str
    version: int
    tips: int
    shown: int
    positives: int
    negatives: int
    dwell: Mapping[str, tuple[int, ...]]

    def count(self, reaction: str) -> int:
        """Tips with this reaction."""
        return sum(self.dwell.get(reaction, ()))


@dataclass(frozen=True)
class Latest:
    """Days that are counted anew when they are read: from `since` on, or all of them if None."""

    since: date | None
    days: tuple[DayCounts, ...]


def write_summaries(connection: sa.Connection, summaries: Collection[Summary]) -> None:
    """Write these summaries in place of earlier ones of the same subject and stage."""
    rows = [
        {
            **{name: getattr(each, name) for name in OF_SUMMARY},
            **{f"{name}_json": json.dumps(getattr(each, name), default=str) for name in AS_JSON},
        }
        for each in summaries
    ]
    upsert(connection, stage_summaries, rows)


def remove_summaries(connection: sa.Connection, known: Collection[tuple[str, str]]) -> None:
    """Remove the summaries of these subjects and stages."""
    row = stage_summaries.c
    for subject, stage in known:
        named = (row.subject == subject) & (row.stage == stage)
        connection.execute(stage_summaries.delete().where(named))


def summaries_of(connection: sa.Connection, subjects: Collection[str]) -> list[Summary]:
    """The summaries of these runs and rollouts, by subject and the order of their stages."""
    query = sa.select(stage_summaries).where(stage_summaries.c.subject.in_(subjects))
    found = [_summary(row) for row in connection.execute(query).mappings()]
    return sorted(found, key=lambda each: (each.subject, _place(each.stage)))


def run_ids(connection: sa.Connection, *, limit: int) -> list[str]:
    """The runs of which a stage is summarised, the newest first."""
    row = stage_summaries.c
    query = sa.select(row.subject).where(row.stage.in_(STAGES)).distinct()
    return list(connection.execute(query.order_by(row.subject.desc()).limit(limit)).scalars())


def written_at(connection: sa.Connection) -> dict[tuple[str, str], tuple[datetime, Any]]:
    """When each summarised stage was finished, and which erasures changed it since."""
    row = stage_summaries.c
    query = sa.select(row.subject, row.stage, row.finished_at, row.lineage_json)
    return {
        (subject, stage): (finished_at, json.loads(lineage).get("erased"))
        for subject, stage, finished_at, lineage in connection.execute(query)
    }


def recount(
    engine: sa.Engine, rule: LabelRule, *, now: datetime, back: timedelta | None = None
) -> None:
    """Count the tips of each day anew, from `back` before the last count on; of all days if None.

    All of them, where rows of any day may be new or gone: after an ingest or an erasure, before a
    training. Safe to repeat, and by two at once.
    """
    with reading(engine) as connection:
        before = counted_at(connection)
        since = None if before is None or back is None else (before - back).astimezone(UTC).date()
        days = count_days(connection, rule, since=since)
    rows = [_row(each) for each in days]
    counted = Summary(REACTIONS, COUNT, "done", f"{len(days):,} days counted", now)
    with writing(engine) as connection:
        outdated = reaction_days.delete()
        if since is not None:
            outdated = outdated.where(reaction_days.c.day >= since.isoformat())
        connection.execute(outdated)
        for start in range(0, len(rows), PER_INSERT):
            upsert(connection, reaction_days, rows[start : start + PER_INSERT])
        write_summaries(connection, [counted])


def counted_at(connection: sa.Connection) -> datetime | None:
    """When tips were last counted, or None."""
    row = stage_summaries.c
    query = sa.select(row.finished_at).where(row.subject == REACTIONS, row.stage == COUNT)
    return connection.execute(query).scalar()


def latest_days(connection: sa.Connection, rule: LabelRule) -> Latest:
    """The latest days as they are now; all days before the first count."""
    before = counted_at(connection)
    since = None if before is None else (before - RECENT).astimezone(UTC).date()
    return Latest(since, tuple(count_days(connection, rule, since=since)))


def days_since(connection: sa.Connection, since: date, latest: Latest) -> list[DayCounts]:
    """The counts of every day from this one on: as they were last counted, then the latest."""
    row = reaction_days.c
    stored = sa.select(reaction_days).where(row.day >= since.isoformat())
    if latest.since is not None:
        stored = stored.where(row.day < latest.since.isoformat())
    counted = [_counts(each) for each in connection.execute(stored).mappings()]
    return [*counted, *(each for each in latest.days if each.day >= since)]


def label_days(connection: sa.Connection, latest: Latest) -> list[tuple[date, int, int]]:
    """The positives and negatives of every day, oldest first."""
    row = reaction_days.c
    sums = sa.func.sum(row.positives), sa.func.sum(row.negatives)
    stored = sa.select(row.day, *sums).group_by(row.day).order_by(row.day)
    if latest.since is not None:
        stored = stored.where(row.day < latest.since.isoformat())
    found = [(date.fromisoformat(day), *counts) for day, *counts in connection.execute(stored)]
    anew: dict[date, list[int]] = {}
    for each in latest.days:
        counts = anew.setdefault(each.day, [0, 0])
        counts[0] += each.positives
        counts[1] += each.negatives
    return [*found, *((day, *counts) for day, counts in sorted(anew.items()))]


def count_days(
    connection: sa.Connection, rule: LabelRule, *, since: date | None = None
) -> list[DayCounts]:
    """The tips of each day, counted in SQL; sorted by day, kind, source and version."""
    groups: dict[tuple[str, str, str, int], dict[str, Any]] = defaultdict(
        lambda: {"tips": 0, "shown": 0, "positives": 0, "negatives": 0, "dwell": {}}
    )
    for row in connection.execute(_counts_query(connection, rule, since)).mappings():
        group = groups[row["day"], row["kind"], row["source"], row["version"]]
        for name in ("tips", "shown", "positives", "negatives"):
            group[name] += row[name]
        if row["reaction"]:
            bins = group["dwell"].setdefault(row["reaction"], [0] * (UNKNOWN_DWELL + 1))
            bins[row["bin"]] += row["tips"]
    return [
        DayCounts(
            date.fromisoformat(day),
            kind,
            source,
            version,
            **{**group, "dwell": {name: tuple(bins) for name, bins in group["dwell"].items()}},
        )
        for (day, kind, source, version), group in sorted(groups.items())
    ]


def _counts_query(
    connection: sa.Connection, rule: LabelRule, since: date | None
) -> sa.Select[*tuple[Any, ...]]:
    row = tip_scores.c
    is_read = sa.and_(row.shown_at.is_not(None), row.training_allowed, sa.not_(row.cut))
    bins = [(row.dwell_ms < edge, place) for place, edge in enumerate(DWELL_EDGES_MS)]
    unknown = (row.dwell_ms.is_(None), UNKNOWN_DWELL)
    marks = {
        "shown": row.shown_at.is_not(None),
        "positives": is_read & rule.positive_condition(),
        "negatives": is_read & rule.negative_condition(),
    }
    tips = sa.select(
        _day(connection).label("day"),
        row.kind,
        row.source,
        sa.func.coalesce(row.model_version, 0).label("version"),
        sa.func.coalesce(row.reaction, "").label("reaction"),
        sa.case(unknown, *bins, else_=len(DWELL_EDGES_MS)).label("bin"),
        *[sa.case((mark, 1), else_=0).label(name) for name, mark in marks.items()],
    )
    if since is not None:
        tips = tips.where(row.created_at >= datetime.combine(since, time(), UTC))
    of = tips.subquery("tips").c
    groups = (of.day, of.kind, of.source, of.version, of.reaction, of.bin)
    sums = [sa.func.sum(of[name]).label(name) for name in marks]
    return sa.select(*groups, sa.func.count().label("tips"), *sums).group_by(*groups)


def _day(connection: sa.Connection) -> sa.ColumnElement[str]:
    """The UTC day of a tip as text; SQLite stores times as text."""
    if connection.dialect.name == "postgresql":
        return sa.func.to_char(sa.func.timezone("UTC", tip_scores.c.created_at), "YYYY-MM-DD")
    return sa.func.substr(sa.type_coerce(tip_scores.c.created_at, sa.Text), 1, 10)


def _row(counts: DayCounts) -> dict[str, Any]:
    values = {name: getattr(counts, name) for name in OF_DAY}
    return {"day": counts.day.isoformat(), "dwell_json": json.dumps(counts.dwell), **values}


def _counts(row: sa.RowMapping) -> DayCounts:
    dwell = {name: tuple(bins) for name, bins in json.loads(row["dwell_json"]).items()}
    values = {name: row[name] for name in OF_DAY}
    return DayCounts(date.fromisoformat(row["day"]), **values, dwell=dwell)


def _summary(row: sa.RowMapping) -> Summary:
    parts = {name: json.loads(row[f"{name}_json"]) for name in AS_JSON}
    return Summary(**{name: row[name] for name in OF_SUMMARY}, **parts)


def _place(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)
