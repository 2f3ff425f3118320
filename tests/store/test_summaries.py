"""Counts of days against a count row by row in plain Python, on SQLite and PostgreSQL."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from reactune.config.sections import LabelConfig
from reactune.store.database import reading, writing
from reactune.store.labels import label_rule
from reactune.store.queries import upsert_scores
from reactune.store.schema import reaction_days, tip_scores
from reactune.store.summaries import (
    DWELL_EDGES_MS,
    RECENT,
    UNKNOWN_DWELL,
    Summary,
    count_days,
    counted_at,
    days_since,
    label_days,
    latest_days,
    recount,
    remove_summaries,
    run_ids,
    summaries_of,
    write_summaries,
)
from score_fixtures import START, row, varied_rows

RULE = label_rule(LabelConfig())
NOW = START + timedelta(days=15)


def labelled(each):
    if not (each["source"] == "llm" and each["shown_at"] and each["training_allowed"]):
        return None
    if each.get("cut") or each["dwell_ms"] is None:
        return None
    if each["reaction"] == "done" and 15_000 <= each["dwell_ms"] <= 120_000:
        return "positives"
    return "negatives" if each["reaction"] == "dismiss" and each["dwell_ms"] < 5_000 else None


def bin_of(dwell_ms):
    if dwell_ms is None:
        return UNKNOWN_DWELL
    return sum(dwell_ms >= edge for edge in DWELL_EDGES_MS)


def expected(rows):
    counts = Counter()
    for each in rows:
        group = (each["created_at"].astimezone(UTC).date(), each["kind"], each["source"], 0)
        counts[group, "tips"] += 1
        counts[group, "shown"] += bool(each["shown_at"])
        if label := labelled(each):
            counts[group, label] += 1
        if each["reaction"]:
            counts[group, each["reaction"], bin_of(each["dwell_ms"])] += 1
    return +counts


def found(days):
    counts = Counter()
    for each in days:
        group = (each.day, each.kind, each.source, each.version)
        for name in ("tips", "shown", "positives", "negatives"):
            counts[group, name] += getattr(each, name)
        for reaction, bins in each.dwell.items():
            for place, tips in enumerate(bins):
                counts[group, reaction, place] += tips
    return +counts


def store(engine, rows):
    with writing(engine) as connection:
        upsert_scores(connection, rows)


def days_of(engine):
    with reading(engine) as connection:
        return days_since(connection, START.date(), latest_days(connection, RULE))


def test_each_day_is_counted_as_its_rows_are(engine):
    rows = varied_rows()
    store(engine, rows)
    with reading(engine) as connection:
        assert found(count_days(connection, RULE)) == expected(rows)


def test_days_are_the_same_before_and_after_they_are_counted(engine):
    rows = varied_rows()
    store(engine, rows)
    before = days_of(engine)
    recount(engine, RULE, now=NOW)
    assert found(days_of(engine)) == found(before) == expected(rows)
    with reading(engine) as connection:
        assert counted_at(connection) == NOW


def test_reactions_of_the_latest_days_show_before_the_next_count(engine):
    store(engine, [row("old", created_at=NOW - timedelta(days=9), reaction=None, dwell_ms=None)])
    recount(engine, RULE, now=NOW)
    store(engine, [row("new", created_at=NOW + timedelta(hours=1))])
    store(engine, [row("yesterday", created_at=NOW - timedelta(days=1))])
    assert sum(each.count("done") for each in days_of(engine)) == 2


def test_a_late_reaction_shows_after_a_count_of_all_days_only(engine):
    old = NOW - timedelta(days=9)
    store(engine, [row("old", created_at=old, reaction=None, dwell_ms=None)])
    recount(engine, RULE, now=NOW)
    store(engine, [row("old", created_at=old)])
    recount(engine, RULE, now=NOW, back=RECENT)
    assert [each.count("done") for each in days_of(engine)] == [0]
    recount(engine, RULE, now=NOW)
    assert [each.count("done") for each in days_of(engine)] == [1]


def test_days_without_rows_left_are_counted_as_none(engine):
    store(engine, [row("t1")])
    recount(engine, RULE, now=NOW)
    with writing(engine) as connection:
        connection.execute(tip_scores.delete())
    recount(engine, RULE, now=NOW)
    assert days_of(engine) == []
    with reading(engine) as connection:
        assert connection.execute(sa.select(reaction_days)).all() == []


def test_labels_by_day_are_those_of_the_days_counts(engine):
    rows = varied_rows()
    store(engine, rows)
    recount(engine, RULE, now=START + timedelta(days=8))
    with reading(engine) as connection:
        days = label_days(connection, latest_days(connection, RULE))
    assert [day for day, *_ in days] == sorted({day for day, *_ in days})
    wanted = Counter(labelled(each) for each in rows)
    assert sum(each[1] for each in days) == wanted["positives"]
    assert sum(each[2] for each in days) == wanted["negatives"]


def test_a_summary_replaces_the_earlier_one_and_can_be_removed(engine):
    at = datetime(2026, 3, 1, tzinfo=UTC)
    first = Summary("20260301-000000-0000", "train", "done", "one", at, {"n": 1}, {"f": [1.5]})
    again = Summary("20260301-000000-0000", "train", "refused", "two", at, lineage={"a": "b"})
    other = Summary("20260302-000000-0000", "extract", "waiting", "three", at, seconds=2.5)
    verdict = Summary("20260301-000000-salt", "review", "done", "no run", at)
    for each in ([first, other, verdict], [again]):
        with writing(engine) as connection:
            write_summaries(connection, each)
    with reading(engine) as connection:
        assert run_ids(connection, limit=9) == [other.subject, first.subject]
        assert run_ids(connection, limit=1) == [other.subject]
        assert summaries_of(connection, [first.subject, other.subject]) == [again, other]
    with writing(engine) as connection:
        remove_summaries(connection, [(first.subject, "train")])
        assert run_ids(connection, limit=9) == [other.subject]
