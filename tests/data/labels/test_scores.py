import sqlite3
from collections import Counter
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from reactune.config.sections import LabelConfig, SourceConfig
from reactune.data.labels.scores import (
    DayCount,
    after_consent,
    daily_counts,
    forecast,
    kept_share,
    label_counts,
    label_sql,
    read_scores,
)
from reactune.data.labels.sources import open_scores
from reactune.errors import ConfigError, DataError, PrivacyError
from reactune.privacy.hashing import user_key
from reactune.records import Counts
from reactune.store.database import create_store
from score_fixtures import KEY, START, expected_labels, fill, labels_in, row, varied_rows

# Ibis 12 calls DuckDB 2 by names that will go.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated, use to_arrow:DeprecationWarning")

LABELS = LabelConfig()
STORE = SourceConfig()


@contextmanager
def scores_at(url, source=STORE):
    with open_scores(source, store_url=url, folder=Path("/nowhere")) as table:
        yield table


def read(table, source=STORE, **options):
    batches = read_scores(table, LABELS, source=source, key=KEY, **options)
    return [each for batch in batches for each in batch.to_pylist()]


def test_labels_are_those_of_the_rule_in_every_engine(store_url, tmp_path):
    rows = varied_rows()
    expected = expected_labels(rows)
    assert 50 < sum(expected.values()) < len(expected) - 50
    fill(store_url, rows)
    with scores_at(store_url) as table:
        assert labels_in(read(table)) == expected
        evidence = label_counts(table, LABELS)
    counts = after_consent(evidence, Counter(), read=len(expected))
    assert (counts.came_in, counts.went_out) == (len(rows), len(expected))
    assert sum(counts.refused.values()) == len(rows) - len(expected)
    assert all(counts.refused.values())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores.parquet")
    duckdb.connect(str(tmp_path / "scores.duckdb")).execute(
        f"CREATE TABLE tip_scores AS FROM '{tmp_path}/scores.parquet'"
    )
    for url in (f"parquet://{tmp_path}/scores.parquet", f"duckdb://{tmp_path}/scores.duckdb"):
        source = SourceConfig(url=url)
        with scores_at(store_url, source) as table:
            assert labels_in(read(table, source)) == expected
            assert label_counts(table, LABELS) == evidence


def test_the_printed_query_finds_the_same_tips_when_run_by_hand(store_url):
    rows = varied_rows(500)
    fill(store_url, rows)
    engine = create_store(store_url)
    sql = label_sql(SourceConfig(), LABELS, url=store_url)
    assert "BETWEEN 15000 AND 120000" in sql
    with engine.connect() as connection:
        found = connection.execute(sa.text(sql.replace(":", r"\:"))).mappings().all()
    assert {each["tip_id"]: bool(each["label"]) for each in found} == expected_labels(rows)
    engine.dispose()


def test_times_come_out_in_utc_to_the_microsecond(store_url):
    elsewhere = START.astimezone(timezone(timedelta(hours=5, minutes=30)))
    fill(store_url, [row("a", created_at=elsewhere), row("b", created_at=START + timedelta(1))])
    with scores_at(store_url) as table:
        times = {each["tip_id"]: each["created_at"] for each in read(table)}
    assert times == {"a": START, "b": START + timedelta(1)}
    assert all(time.utcoffset() == timedelta(0) for time in times.values())


def test_who_refuses_last_is_left_out_whole_and_who_returns_keeps_the_refused_rows_out(store_url):
    hours = [START + timedelta(hours=hour) for hour in range(3)]
    fill(
        store_url,
        [
            row("left-1", user="left", created_at=hours[0]),
            row("left-2", user="left", created_at=hours[1], training_allowed=False),
            row("back-1", user="back", created_at=hours[0]),
            row("back-2", user="back", created_at=hours[1], training_allowed=False),
            row("back-3", user="back", created_at=hours[2], reaction=None, dwell_ms=None),
            row("same-1", user="same", created_at=hours[0]),
            row("same-2", user="same", created_at=hours[0], training_allowed=False),
            row("never", user="never"),
        ],
    )
    with scores_at(store_url) as table:
        assert set(labels_in(read(table))) == {"back-1", "never"}


def test_parts_of_answers_that_were_cut_are_left_out_and_counted(store_url):
    fill(store_url, [row("whole", cut=False), row("part", user="bob", cut=True)])
    with scores_at(store_url) as table:
        assert set(labels_in(read(table))) == {"whole"}
        assert label_counts(table, LABELS).refused["cut at max_tokens"] == 1


def test_who_refused_is_found_without_reading_every_row(tmp_path):
    url = f"sqlite:///{tmp_path / 'scores.db'}"
    fill(url, [row("a"), row("b", user="bob", training_allowed=False)])
    sql = label_sql(STORE, LABELS, url=url)
    with closing(sqlite3.connect(tmp_path / "scores.db")) as base:
        steps = [step for *_, step in base.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert sum("ix_tip_scores_refusals" in step for step in steps) == 1
    whole = [step for step in steps if step.startswith("SCAN t0") and "INDEX" not in step]
    assert len(whole) == 1


def test_rows_come_in_batches_no_larger_than_asked(store_url):
    fill(store_url, [row(f"tip-{number}") for number in range(25)])
    with scores_at(store_url) as table:
        batches = list(read_scores(table, LABELS, source=STORE, key=KEY, batch_rows=10))
    assert sorted(batch.num_rows for batch in batches) == [5, 10, 10]


def test_what_comes_in_meanwhile_is_neither_counted_nor_read(store_url):
    fill(store_url, [row("a"), row("b", training_allowed=False, user="bob")])
    with scores_at(store_url) as table:
        assert label_counts(table, LABELS) == Counts(2, 2, label_counts(table, LABELS).refused)
        fill(store_url, [row("c")])
        assert set(labels_in(read(table))) == {"a"}
    with scores_at(store_url) as table:
        assert set(labels_in(read(table))) == {"a", "c"}


def test_an_empty_store_has_no_labels(store_url):
    create_store(store_url).dispose()
    with scores_at(store_url) as table:
        assert read(table) == []
        assert label_counts(table, LABELS).came_in == 0
        assert daily_counts(table, LABELS) == []


def check_days(store_url):
    rows = [
        row("a", created_at=datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)),
        row("b", created_at=datetime(2026, 3, 2, 3, tzinfo=timezone(timedelta(hours=9)))),
        row("c", created_at=datetime(2026, 3, 2, tzinfo=UTC), reaction="dismiss", dwell_ms=10),
        row("d", created_at=datetime(2026, 3, 2, tzinfo=UTC), reaction="snooze"),
    ]
    fill(store_url, rows)
    with scores_at(store_url) as table:
        assert daily_counts(table, LABELS) == [
            DayCount(date(2026, 3, 1), 2, 0),
            DayCount(date(2026, 3, 2), 0, 1),
        ]


def test_days_are_utc_days_of_the_tips(store_url):
    check_days(store_url)


@pytest.mark.postgres
def test_days_are_utc_days_whatever_the_servers_country(chatham_url):
    check_days(chatham_url)


def foreign_duckdb(folder, user_column="uid"):
    file = folder / "app.duckdb"
    with duckdb.connect(str(file)) as connection:
        connection.execute(
            f"CREATE TABLE nudges AS SELECT 1 AS id, 'ann@example.org' AS {user_column}, "
            "'focus' AS kind, 'llm' AS source, '{}'::JSON AS context_json, 'Walk.' AS body, "
            "'done' AS reaction, 20000 AS dwell_ms, TIMESTAMP '2026-03-01 10:00:00' AS made"
        )
    return SourceConfig(
        url=f"duckdb://{file}",
        table="nudges",
        columns={"tip_id": "id", "tip_content": "body", "created_at": "made"},
    )


def test_raw_ids_of_another_engine_are_hashed_on_the_way_in(tmp_path):
    source = foreign_duckdb(tmp_path)
    source = source.model_copy(update={"columns": {**source.columns, "user_id": "uid"}})
    with scores_at("unused", source) as table:
        (only,) = read(table, source)
    assert only["user_key"] == user_key(KEY, "ann@example.org")
    assert (only["tip_id"], only["tip_content"], only["label"]) == ("1", "Walk.", True)
    assert only["created_at"] == datetime(2026, 3, 1, 10, tzinfo=UTC)


def test_raw_ids_that_pose_as_keyed_hashes_are_refused_without_being_shown(tmp_path):
    source = foreign_duckdb(tmp_path, user_column="user_key")
    with scores_at("unused", source) as table, pytest.raises(PrivacyError) as caught:
        read(table, source)
    assert "user_id" in str(caught.value)
    assert "ann@" not in str(caught.value)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    source = foreign_duckdb(tmp_path)
    with (
        pytest.raises(DataError, match=r"no column user_key; it has id, uid, kind"),
        scores_at("unused", source),
    ):
        pass


def test_a_mapping_of_an_unknown_column_is_refused(tmp_path):
    source = foreign_duckdb(tmp_path).model_copy(update={"columns": {"tipp_id": "id"}})
    with pytest.raises(ConfigError, match="tipp_id"), scores_at("unused", source):
        pass


def test_texts_of_times_are_read_and_nonsense_is_named(tmp_path):
    import sqlite3

    file = tmp_path / "app.db"
    names = "tip_id, user_key, kind, source, context_json, tip_content, reaction, created_at"
    hashed = user_key(KEY, "ann")
    with sqlite3.connect(file) as connection:
        connection.execute(f"CREATE TABLE tip_scores ({names.replace(', ', ' TEXT, ')} TEXT, "
                           "dwell_ms INTEGER)")  # fmt: skip
        connection.executemany(
            f"INSERT INTO tip_scores ({names}, dwell_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                ("a", hashed, "f", "llm", "{}", "t", "done", "2026-03-01T10:00:00+02:00", 15_000),
                ("b", hashed, "f", "llm", "{}", "t", "done", "2026-03-01 10:00:00", 15_000),
            ],
        )
    connection.close()
    source = SourceConfig(url=f"sqlite:///{file}")
    with scores_at("unused", source) as table:
        times = {each["tip_id"]: each["created_at"].hour for each in read(table, source)}
        assert times == {"a": 8, "b": 10}
        assert daily_counts(table, LABELS) == [DayCount(date(2026, 3, 1), 2, 0)]
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE tip_scores SET created_at = 'yesterday'")
    connection.close()
    with scores_at("unused", source) as table, pytest.raises(DataError, match="no ISO 8601 time"):
        read(table, source)


def test_a_database_that_is_away_is_named_without_its_password_and_never_made(tmp_path):
    file = tmp_path / "none.db"
    with pytest.raises(DataError, match="reactune init"), scores_at(f"sqlite:///{file}"):
        pass
    assert not file.exists()
    url = "postgresql+psycopg://joe:hunter2@127.0.0.1:1/app"
    with pytest.raises(DataError) as caught, scores_at(url):
        pass
    assert "hunter2" not in str(caught.value)
    assert "joe" in str(caught.value)


def test_the_day_is_forecast_from_the_recent_rate():
    today = date(2026, 3, 20)
    days = [DayCount(today - timedelta(days=ago), 10, 5) for ago in range(30)]
    need = (500, 500)
    assert forecast(days, have=(300, 450), need=need, today=today) == date(2026, 4, 9)
    assert forecast(days, have=(300, 150), need=need, today=today) == date(2026, 5, 29)
    assert forecast(days, have=(500, 900), need=need, today=today) == today
    assert forecast(days, have=(300, 450), need=need, today=today, kept=0.5) == date(2026, 4, 29)


def test_duplicates_and_caps_leave_a_share_and_before_a_dataset_all():
    assert kept_share({"came_in": 1_777, "went_out": 1_333}) == pytest.approx(0.75, abs=1e-3)
    assert kept_share({"came_in": 0, "went_out": 0}) == kept_share({}) == 1.0


def test_young_data_is_not_diluted_by_days_before_it_began():
    today = date(2026, 3, 20)
    days = [DayCount(today - timedelta(days=ago), 10, 10) for ago in (0, 1)]
    assert forecast(days, have=(20, 20), need=(40, 40), today=today) == date(2026, 3, 22)


def test_no_day_is_forecast_where_one_label_does_not_come():
    today = date(2026, 3, 20)
    assert forecast([], have=(0, 0), need=(1, 1), today=today) is None
    only_liked = [DayCount(today, 10, 0)]
    assert forecast(only_liked, have=(9, 0), need=(10, 1), today=today) is None
    long_ago = [DayCount(today - timedelta(days=40), 10, 10)]
    assert forecast(long_ago, have=(9, 9), need=(10, 10), today=today) is None
