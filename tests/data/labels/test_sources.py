"""`[source]`: where reactions may lie, which of them count, and the query that looks for them."""

import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from uuid import UUID

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
from click.testing import CliRunner

from reactune.cli import commands
from reactune.cli.session import Session
from reactune.config.sections import LabelConfig, SourceConfig
from reactune.data.labels.scores import (
    after_consent,
    consent_note,
    label_counts,
    label_sql,
    read_scores,
)
from reactune.data.labels.sources import backends, condition, dialect_of, open_scores
from reactune.errors import ConfigError, DataError
from reactune.privacy.hashing import user_key
from reactune.store.database import create_store, writing
from reactune.store.queries import upsert_scores
from score_fixtures import KEY, expected_labels, fill, labels_in, row, varied_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated, use to_arrow:DeprecationWarning")

LABELS = LabelConfig()
DIALECTS = (
    "sqlite", "postgres", "duckdb", "bigquery", "snowflake", "trino", "clickhouse", "pyspark",
    "databricks",
)  # fmt: skip


def read(source, store_url="sqlite:///none.db", folder=Path("/nowhere")):
    with open_scores(source, store_url=store_url, folder=folder) as scores:
        batches = read_scores(scores, LABELS, source=source, key=KEY)
        found = labels_in([each for batch in batches for each in batch.to_pylist()])
        return found, after_consent(label_counts(scores, LABELS), Counter(), read=len(found))


def with_apps(rows):
    return [{**each, "app": f"app{number % 3}"} for number, each in enumerate(rows)]


def write_parquet(rows, folder, parts=3):
    for part in range(parts):
        (folder / f"day={part}").mkdir(parents=True)
        table = pa.Table.from_pylist(rows[part::parts])
        pq.write_table(table, folder / f"day={part}" / "scores.parquet")


@pytest.mark.parametrize("place", ["scores", "scores/day=*/*.parquet"])
def test_a_folder_of_parquet_files_is_a_table(tmp_path, place):
    rows = varied_rows(600)
    write_parquet(rows, tmp_path / "scores")
    found, counts = read(SourceConfig(url=f"parquet://{place}"), folder=tmp_path)
    assert found == expected_labels(rows)
    assert counts.came_in == 600


def test_a_folder_of_parquet_files_on_s3_is_a_table(tmp_path, s3_url):
    import s3fs

    rows = varied_rows(600)
    write_parquet(rows, tmp_path / "scores")
    s3fs.S3FileSystem().put(str(tmp_path / "scores"), f"{s3_url}/scores", recursive=True)
    assert read(SourceConfig(url=f"{s3_url}/scores"))[0] == expected_labels(rows)
    third = SourceConfig(url=f"{s3_url}/scores", where="day = 1")
    assert read(third)[0].keys() <= {each["tip_id"] for each in rows[1::3]}
    with pytest.raises(DataError, match=r"cannot read table tip_scores of s3://"):
        read(SourceConfig(url=f"{s3_url}/nothing"))


def test_a_folder_without_parquet_files_is_named(tmp_path):
    with pytest.raises(DataError, match=r"No files found.*scores"):
        read(SourceConfig(url="parquet://scores"), folder=tmp_path)


def test_a_condition_leaves_out_what_does_not_meet_it(tmp_path, store_url):
    rows = varied_rows(900)
    expected = {tip for tip, _ in expected_labels(rows).items()}
    fill(store_url, rows)
    old = {each["tip_id"] for each in rows if each["tip_id"] < "tip-00300"}
    source = SourceConfig(where="tip_id < 'tip-00300' AND kind LIKE 'foc%'")
    found, counts = read(source, store_url)
    assert found.keys() == expected & old
    assert counts.came_in == 900
    assert counts.refused["outside [source] where"] == 600
    assert counts.went_out == len(found)
    assert sum(counts.refused.values()) == 900 - len(found)


def test_a_condition_may_name_columns_that_are_not_ours(tmp_path):
    rows = with_apps(varied_rows(600))
    write_parquet(rows, tmp_path / "scores")
    source = SourceConfig(url="parquet://scores", where="app IN ('app0', 'app2')")
    expected = expected_labels(rows)
    wanted = {each["tip_id"] for each in rows if each["app"] != "app1"}
    assert read(source, folder=tmp_path)[0].keys() == expected.keys() & wanted


def test_who_opted_out_stays_out_where_the_condition_hides_the_refusal(store_url):
    from datetime import timedelta

    from score_fixtures import START

    later = START + timedelta(days=1)
    fill(store_url, [
        row("early", user="ann"),
        row("late", user="ann", created_at=later, training_allowed=False),
        row("other", user="bo"),
    ])  # fmt: skip
    assert read(SourceConfig(where="tip_id <> 'late'"), store_url)[0] == {"other": True}


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("app = ", "is not one condition"),
        ("app = 'x'; DROP TABLE tip_scores", "is not one condition"),
        ("app = 'x' ORDER BY 1", "is not one condition"),
        ("app = 'x') OR (1 = 1", "is not one condition"),
        ("SELECT 1", "is not one condition"),
        ("app IN (SELECT app FROM apps)", "asks another table"),
        ("count(*) > 5", "needs more than one row"),
        ("max(app) OVER () = app", "needs more than one row"),
        ("1 = 1", "names no column"),
        ("ap = 'x'", "names ap, but there are tip_id, app"),
    ],
)
def test_what_is_not_one_condition_is_refused(where, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        condition(where, dialect="postgres", columns=["tip_id", "app"])
    assert "app = 'coach'" in str(caught.value)


def test_a_condition_may_use_what_only_its_engine_understands():
    columns = ["app", "context"]
    assert condition("context ->> 'lang' = 'en'", dialect="postgres", columns=columns)
    assert condition("context:lang::string = 'en'", dialect="snowflake", columns=columns)
    assert condition("APP ~ '^coach'", dialect="postgres", columns=columns)


def test_a_condition_that_the_engine_refuses_is_one_error(tmp_path):
    write_parquet(varied_rows(9), tmp_path / "scores")
    source = SourceConfig(url="parquet://scores", where="no_such_function(kind)")
    with pytest.raises(DataError, match="no_such_function"):
        read(source, folder=tmp_path)


def test_a_table_may_be_named_with_its_schema(tmp_path):
    rows = varied_rows(300)
    write_parquet(rows, tmp_path / "scores")
    with duckdb.connect(str(tmp_path / "db.duckdb")) as database:
        database.execute("CREATE SCHEMA app")
        database.execute(
            f"CREATE TABLE app.nudges AS FROM read_parquet('{tmp_path}/scores/*/*.parquet')"
        )
    url = f"duckdb://{tmp_path}/db.duckdb"
    assert read(SourceConfig(url=url, table="app.nudges"))[0] == expected_labels(rows)
    filtered = SourceConfig(url=url, table="app.nudges", where="day = 0")
    assert read(filtered)[0].keys() <= expected_labels(rows).keys()


def with_reactions(words, place, folder):
    """A source at a kind of place, whose rows have these reactions."""
    rows = [row(f"t{number}", reaction=word) for number, word in enumerate(words)]
    table = pa.Table.from_pylist(rows)
    if place == "parquet":
        pq.write_table(table, folder / "scores.parquet")
        return SourceConfig(url="parquet://scores.parquet")
    if place == "sqlite":
        names = [name for name in rows[0] if name != "key_id"]
        with closing(sqlite3.connect(folder / "app.db")) as connection:
            typed = {"dwell_ms": "INTEGER", "training_allowed": "BOOLEAN"}
            columns = ", ".join(f"{name} {typed.get(name, 'TEXT')}" for name in names)
            connection.execute(f"CREATE TABLE tip_scores ({columns})")
            slots = ", ".join("?" * len(names))
            told = [[str(r[n]) if n.endswith("_at") else r[n] for n in names] for r in rows]
            connection.executemany(f"INSERT INTO tip_scores VALUES ({slots})", told)
            connection.commit()
        return SourceConfig(url="sqlite:///app.db")
    with closing(duckdb.connect(str(folder / "app.duckdb"))) as connection:
        connection.register("given", table)
        connection.execute("CREATE TABLE tip_scores AS SELECT * FROM given")
    return SourceConfig(url="duckdb://app.duckdb")


@pytest.mark.parametrize("place", ["parquet", "sqlite", "duckdb"])
def test_a_reaction_is_read_for_what_it_means(tmp_path, place):
    words = ["done", "Done", " DONE", "dismissed", "Dismiss", "Snoozed", "liked", "undone", None]
    source = with_reactions(words, place, tmp_path)
    with open_scores(source, store_url="", folder=tmp_path) as scores:
        batches = read_scores(scores, LABELS, source=source, key=KEY)
        found = {each["tip_id"]: each["reaction"] for b in batches for each in b.to_pylist()}
        counts = label_counts(scores, LABELS)
        named = scores.answers.rows(scores.scores.table.select("tip_id", "reaction"))
    assert found == {"t0": "done", "t1": "done", "t2": "done"}  # all looked at for 30 s
    assert (counts.came_in, counts.went_out) == (9, 3)
    meant = {each["tip_id"]: each["reaction"] for each in named}
    assert [meant[f"t{number}"] for number in range(3, 9)] == [
        "dismiss", "dismiss", "snooze", "liked", "undone", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["completed"] * 7 + ["skipped"] * 5 + ["Anna did it", None],
         "'completed' (7 rows), 'skipped' (5 rows)"),
        (["my own words"] * 4, "rare texts"),
    ],
)  # fmt: skip
def test_reactions_of_other_names_are_one_error_that_names_the_frequent(tmp_path, words, shown):
    source = with_reactions(words, "sqlite", tmp_path)
    with (
        open_scores(source, store_url="", folder=tmp_path) as scores,
        pytest.raises(DataError) as found,
    ):
        label_counts(scores, LABELS)
    assert str(found.value) == (
        f"no reaction there is done or dismiss or snooze; found: {shown}; name a view in [source] "
        "table that gives them our names"
    )


@pytest.mark.parametrize(
    "words", [[None, None], ["snooze", "other"], [w for w in "abcdefg" for _ in "12"] + ["dismiss"]]
)
def test_rows_without_a_reaction_or_evidence_are_no_error(tmp_path, words):
    source = with_reactions(words, "sqlite", tmp_path)
    with open_scores(source, store_url="", folder=tmp_path) as scores:
        assert label_counts(scores, LABELS).refused["no evidence"] == len(words)


@pytest.mark.postgres
def test_types_of_postgresql_that_are_no_text_are_read_as_text(fresh_postgres_url):
    import sqlalchemy as sa

    url = fresh_postgres_url.replace("postgresql://", "postgresql+psycopg://")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TYPE what AS ENUM ('Done', 'dismiss')"))
        connection.execute(
            sa.text(
                "CREATE TABLE tip_scores AS SELECT gen_random_uuid() AS tip_id, 'ann' AS user_id, "
                "'focus' AS kind, 'llm' AS source, '{\"a\": 1}'::jsonb AS context_json, 'Walk.' AS "
                "tip_content, 'Done'::what AS reaction, 20000::bigint AS dwell_ms, "
                "TIMESTAMP '2026-03-01 10:00:00' AS created_at, true AS training_allowed"
            )
        )
    engine.dispose()
    source = SourceConfig(url=fresh_postgres_url, columns={"user_id": "user_id"})
    with open_scores(source, store_url="", folder=Path()) as scores:
        batches = read_scores(scores, LABELS, source=source, key=KEY)
        (only,) = [each for batch in batches for each in batch.to_pylist()]
    assert (only["context_json"], only["reaction"], only["label"]) == ('{"a": 1}', "done", True)
    assert len(only["tip_id"]) == 36
    assert only["created_at"].isoformat() == "2026-03-01T10:00:00+00:00"


def test_an_engine_that_is_not_installed_says_what_to_install():
    with pytest.raises(ConfigError, match=r"pip install 'ibis-framework\[snowflake\]'") as caught:
        read(SourceConfig(url="snowflake://joe:hunter2@account/db"))
    assert "hunter2" not in str(caught.value)


def test_a_url_that_is_none_is_named_without_its_password():
    with pytest.raises(ConfigError, match=r"Port could not be cast.*\[source\] url") as caught:
        read(SourceConfig(url="postgresql://joe:hunter2@db:port/tips"))
    assert "hunter2" not in str(caught.value)


def test_an_engine_that_nobody_knows_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match=r"bigquery.*snowflake.*trino"):
        read(SourceConfig(url="oracel://somewhere/db"))


def test_every_engine_has_its_dialect():
    urls = {
        "sqlite:///app.db": "sqlite",
        "postgresql+psycopg://joe@db/app": "postgres",
        "duckdb://app.duckdb": "duckdb",
        "parquet://folder": "duckdb",
        "s3://bucket/folder": "duckdb",
        "bigquery://project/dataset": "bigquery",
        "clickhouse://db": "clickhouse",
    }
    assert {url: dialect_of(url) for url in urls} == urls
    assert backends() >= set(DIALECTS)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_two_conditions_stand_in_the_sql_of_every_dialect(dialect):
    source = SourceConfig(table="app.nudges", where="app = 'coach'", columns={"dwell_ms": "dwell"})
    sql = label_sql(source, LABELS, url="postgresql://db/app", dialect=dialect)
    assert "BETWEEN 15000 AND 120000" in sql
    assert "BETWEEN 0 AND 4999" in sql
    assert "app = 'coach'" in sql
    assert re.search(r"FROM\s+.app.\..nudges.", sql)
    assert ";" not in sql
    parsed = sqlglot.parse_one(sql, read={"pyspark": "spark"}.get(dialect, dialect))
    assert parsed.named_selects[-1] == "label"


def test_a_condition_is_written_in_the_dialect_that_is_asked_for():
    source = SourceConfig(where="kind ILIKE 'foc%'")
    written = label_sql(source, LABELS, url="postgresql://db/app", dialect="bigquery")
    assert "LOWER(kind) LIKE LOWER('foc%')" in " ".join(written.split())


@pytest.mark.postgres
def test_explain_prints_the_query_that_runs_and_what_leaves(fresh_postgres_url, tmp_path):
    rows = varied_rows(300)
    fill(fresh_postgres_url, rows)
    place = fresh_postgres_url.replace("postgres@", "postgres:hunter2@")
    (tmp_path / "reactune.toml").write_text(
        f'[store]\nurl = "{place}"\n[source]\nwhere = "tip_id < \'tip-00200\'"\n'
    )
    session = Session(file=tmp_path / "reactune.toml")
    arguments = ["--config", str(tmp_path / "reactune.toml"), "explain"]
    result = CliRunner().invoke(commands, arguments, obj=session, catch_exceptions=False)
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    assert "\x1b" not in result.output
    first, second, *_ = result.output.splitlines()
    assert first.startswith("-- What leaves tip_scores of postgresql://")
    assert second == "-- Everything else leaves it as counts."
    engine = create_store(fresh_postgres_url)
    with writing(engine) as connection:
        found = connection.exec_driver_sql(result.output.replace("%", "%%")).mappings().all()
        upsert_scores(connection, [])
    engine.dispose()
    wanted = {tip for tip in expected_labels(rows) if tip < "tip-00200"}
    assert {each["tip_id"] for each in found} == wanted


def test_explain_colours_what_a_terminal_shows(tmp_path):
    session = Session()
    result = CliRunner().invoke(commands, ["explain"], obj=session, color=True)
    assert "\x1b[" in result.output
    refused = CliRunner().invoke(commands, ["explain", "--dialect", "sequel"], obj=session)
    assert isinstance(refused.exception, ConfigError)
    assert "clickhouse" in str(refused.exception)


UUID_OF_ANNA = "0189d3ab-77e2-7c41-9d3a-5f00c0ffee01"
IDS = {
    "double": (pa.array([7.0], pa.float64()), "7"),
    "decimal": (pa.array(["7.00"]).cast(pa.decimal128(5, 2)), "7"),
    "text": (pa.array(["7.0"]), "7.0"),
    "blob": (pa.array([b"u-7"], pa.binary()), "u-7"),
    "fixed": (pa.array([b"u-7\0\0"], pa.binary(5)), "u-7"),
    "uuid": (pa.array([UUID(UUID_OF_ANNA).bytes], pa.binary(16)), UUID_OF_ANNA),
    "padded": (pa.array(["zoe\u0308   "]), "zo\u00eb"),
}


def raw_rows(ids, **columns):
    count = len(ids)
    rows = [row(f"t{number}") for number in range(count)]
    table = pa.Table.from_pylist(rows).drop_columns(["user_key", *columns])
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table.append_column("user_id", ids)


def keys_in(source, folder):
    with open_scores(source, store_url="", folder=folder) as scores:
        batches = read_scores(scores, LABELS, source=source, key=KEY)
        return {row["tip_id"]: row["user_key"] for each in batches for row in each.to_pylist()}


@pytest.mark.parametrize("kind", IDS)
def test_a_raw_id_of_any_type_is_the_same_person(tmp_path, kind):
    column, user_id = IDS[kind]
    pq.write_table(raw_rows(column), tmp_path / "scores.parquet")
    source = SourceConfig(url="parquet://scores.parquet", columns={"user_id": "user_id"})
    assert keys_in(source, tmp_path) == {"t0": user_key(KEY, user_id)}


@pytest.mark.parametrize(
    ("declared", "value", "user_id"),
    [
        ("DOUBLE", 7.0, "7"),
        ("DECIMAL(5, 2)", 7, "7"),
        ("BLOB", b"u-7", "u-7"),
        ("TEXT", "7.0", "7.0"),
    ],
)
def test_a_raw_id_of_sqlite_is_read_by_its_type(tmp_path, declared, value, user_id):
    first = row("t0")
    names = [name for name in first if name != "user_key"]
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        columns = ", ".join(f"{name} TEXT" for name in names if name != "dwell_ms")
        connection.execute(f"CREATE TABLE tip_scores ({columns}, dwell_ms INTEGER, who {declared})")
        values = {name: str(first[name]) for name in names} | {"training_allowed": 1}
        slots = ", ".join("?" for _ in range(len(names) + 1))
        connection.execute(
            f"INSERT INTO tip_scores ({', '.join(names)}, who) VALUES ({slots})",
            [*(values[name] for name in names), value],
        )
        connection.commit()
    source = SourceConfig(url="sqlite:///app.db", columns={"user_id": "who"})
    assert keys_in(source, tmp_path) == {"t0": user_key(KEY, user_id)}


@pytest.mark.parametrize("ids", [pa.array([[7]]), pa.array([True]), pa.array([{"id": 7}])], ids=str)
def test_a_column_of_a_type_without_ids_is_refused(tmp_path, ids):
    pq.write_table(raw_rows(ids), tmp_path / "scores.parquet")
    source = SourceConfig(url="parquet://scores.parquet", columns={"user_id": "user_id"})
    with pytest.raises(DataError, match=r"column user_id is of type .*no user ids"):
        keys_in(source, tmp_path)


def test_who_opts_out_under_one_spelling_has_opted_out_under_all(tmp_path):
    ids = pa.array(["zo\u00eb", "zoe\u0308 ", "ben"])
    table = raw_rows(ids, training_allowed=[True, False, True])
    pq.write_table(table, tmp_path / "scores.parquet")
    source = SourceConfig(url="parquet://scores.parquet", columns={"user_id": "user_id"})
    assert keys_in(source, tmp_path) == {"t2": user_key(KEY, "ben")}


def test_types_of_postgresql_that_hold_ids_are_read_by_type(fresh_postgres_url):
    import sqlalchemy as sa

    url = fresh_postgres_url.replace("postgresql://", "postgresql+psycopg://")
    engine = sa.create_engine(url)
    of_type = {
        "7.0::double precision": "7", "7.00::numeric(5, 2)": "7", "'u-7'::char(10)": "u-7",
        "'u-7'::bytea": "u-7", f"'{UUID_OF_ANNA.upper()}'::uuid": UUID_OF_ANNA, "7::bigint": "7",
    }  # fmt: skip
    for number, (value, user_id) in enumerate(of_type.items()):
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    f"CREATE TABLE scores_{number} AS SELECT 't0' AS tip_id, {value} AS user_id, "
                    "'focus' AS kind, 'llm' AS source, '{}' AS context_json, 'Walk.' AS "
                    "tip_content, 'done' AS reaction, 20000 AS dwell_ms, "
                    "TIMESTAMP '2026-03-01 10:00:00' AS created_at"
                )
            )
        source = SourceConfig(
            url=fresh_postgres_url, table=f"scores_{number}", columns={"user_id": "user_id"}
        )
        assert keys_in(source, Path()) == {"t0": user_key(KEY, user_id)}, value
    engine.dispose()


def test_a_file_of_a_folder_without_the_column_of_consent_is_not_learned_from(tmp_path):
    rows = [row(f"t{number}", user=f"user-{number}") for number in range(4)]
    old = pa.Table.from_pylist(rows[:2]).drop_columns(["training_allowed"])
    new = pa.Table.from_pylist(rows[2:]).select([*reversed(rows[0])])
    (tmp_path / "scores").mkdir()
    pq.write_table(old, tmp_path / "scores" / "2025.parquet")
    pq.write_table(new, tmp_path / "scores" / "2026.parquet")
    found, _ = read(SourceConfig(url="parquet://scores"), folder=tmp_path)
    assert set(found) == {"t2", "t3"}


@pytest.mark.parametrize("verdict", ["allow", "refuse"])
def test_a_source_without_the_column_of_consent_counts_as_the_settings_say(tmp_path, verdict):
    table = pa.Table.from_pylist([row("t0")]).drop_columns(["training_allowed"])
    pq.write_table(table, tmp_path / "scores.parquet")
    labels = LabelConfig(without_consent=verdict)
    source = SourceConfig(url="parquet://scores.parquet")
    with open_scores(source, store_url="", folder=tmp_path) as scores:
        batches = read_scores(scores, labels, source=source, key=KEY)
        found = [each["tip_id"] for batch in batches for each in batch.to_pylist()]
        counts = label_counts(scores, labels)
        note = consent_note(scores.scores, labels)
    assert found == (["t0"] if verdict == "allow" else [])
    assert counts.refused.get("no consent stated", 0) == (verdict == "refuse")
    assert note.endswith(": every row counts as allowed" if found else ": no row counts as allowed")


@pytest.mark.parametrize("name", ["training_allowed", "TRAINING_ALLOWED", "trainingAllowed"])
def test_consent_is_read_for_what_it_says_under_any_case_of_its_name(tmp_path, name):
    texts = {"t": True, "f": False, " TRUE ": True, "no": False, "0": False, "1": True, "x": False}
    rows = [row(f"t{number}", user=f"user-{number}") for number in range(len(texts))]
    table = pa.Table.from_pylist(rows).drop_columns(["training_allowed"])
    pq.write_table(table.append_column(name, pa.array([*texts])), tmp_path / "scores.parquet")
    found, _ = read(SourceConfig(url="parquet://scores.parquet"), folder=tmp_path)
    assert set(found) == {f"t{number}" for number, text in enumerate(texts) if texts[text]}


def test_a_column_that_is_nearly_that_of_consent_is_refused(tmp_path):
    table = pa.Table.from_pylist([row("t0")]).rename_columns(
        {"training_allowed": "training_alowed"}
    )
    pq.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="training_alowed, which may be meant"):
        read(SourceConfig(url="parquet://scores.parquet"), folder=tmp_path)


def test_dwell_times_that_are_no_numbers_are_refused(tmp_path):
    table = pa.Table.from_pylist([{**row("t0"), "dwell_ms": "20000"}])
    pq.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="column dwell_ms is of type string"):
        read(SourceConfig(url="parquet://scores.parquet"), folder=tmp_path)


@pytest.mark.parametrize("table", ["absent", "nowhere.tip_scores", "'; drop"])
def test_a_table_that_is_not_there_is_named(tmp_path, table):
    create_store(f"sqlite:///{tmp_path / 'store.db'}").dispose()
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with pytest.raises(DataError, match=f"cannot read table {re.escape(table)} of sqlite"):
        read(SourceConfig(url=url, table=table))


class DatabaseError(Exception):
    """Of an engine that is not installed here; PEP 249 gives it this name in every driver."""


QUOTING = type("DataError", (DatabaseError,), {})  # the kind whose message may quote a value


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (sqlite3.OperationalError("disk I/O error"), "disk I/O error"),
        (psycopg.OperationalError("connection lost\nmore"), "connection lost;"),
        (psycopg.InterfaceError("cursor closed"), "cursor closed"),
        (duckdb.IOException("no such file"), "no such file"),
        (DatabaseError("access denied"), "access denied"),
        (QUOTING("'anna@example.com' is no number"), "DataError: a value is not of the type"),
    ],
)
def test_what_a_driver_raises_is_one_error_whatever_the_engine(tmp_path, error, said):
    create_store(url := f"sqlite:///{tmp_path / 'tips.db'}").dispose()
    with (
        pytest.raises(DataError, match=rf"cannot read table tip_scores of sqlite.*: {said}") as one,
        open_scores(SourceConfig(), store_url=url, folder=tmp_path),
    ):
        raise error
    assert "anna" not in str(one.value)


def test_a_mistake_of_ours_is_not_taken_for_the_drivers(tmp_path):
    create_store(url := f"sqlite:///{tmp_path / 'tips.db'}").dispose()
    with (
        pytest.raises(KeyError),
        open_scores(SourceConfig(), store_url=url, folder=tmp_path),
    ):
        raise KeyError("x")
