import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reactune.store.database
from reactune.errors import CanaryError, DataError
from reactune.records import ModelVersion, Reason, Rollout
from reactune.store import database
from reactune.store.database import create_store, migrate, open_store, writing
from reactune.store.queries import (
    add_decision,
    add_model_version,
    all_model_versions,
    close_rollout,
    current_rollout,
    hold_rollout,
    model_version,
    open_rollout,
    update_rollout,
    upsert_scores,
)
from reactune.store.schema import SCHEMA, SCHEMA_TABLE, decisions, metadata, rollouts, tip_scores

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
BASE = ModelVersion(
    version=1,
    name="tip-generator:v1",
    run_id="base",
    gguf=Path("/models/v1.gguf"),
    sha256="ab" * 32,
    prompt_folder=Path("/models/prompt"),
    base="smollm2-135m-instruct",
    quantisation="q8_0",
)
TUNED = replace(
    BASE, version=2, name="tip-generator:v2", run_id="r2", adapter=Path("/runs/r2/adapter")
)
CANARY = Rollout(
    rollout_id="first",
    champion=1,
    challenger=2,
    phase="canary",
    share=0.05,
    salt="salt",
    unit="user_day",
    planned_units=5_000,
    opened_at=NOON,
    share_since=NOON,
)
IDLE = replace(CANARY, rollout_id="idle", challenger=None, phase="idle", share=0.0)
WHY = Reason("review", "no harm at 5 %", {"low": -0.01, "units": 250}, NOON)


def score(tip_id="t1", **columns):
    return {
        "tip_id": tip_id,
        "user_key": "u",
        "key_id": "k",
        "kind": "headline",
        "context_json": "{}",
        "tip_content": "Take a walk",
        "created_at": NOON,
    } | columns


@pytest.fixture
def models(engine):
    with writing(engine) as connection:
        add_model_version(connection, BASE, NOON)
        add_model_version(connection, TUNED, NOON)
    return engine


def test_a_new_database_has_the_columns_that_the_code_declares(engine):
    with engine.begin() as connection:
        migrated = _catalogue(connection)
        connection.execute(sa.text(f"DROP TABLE {SCHEMA_TABLE}"))
        metadata.drop_all(connection)
        metadata.create_all(connection)
        declared = _catalogue(connection)
    assert migrated - _of_alembic(migrated) == declared
    assert len(declared) > 10


def test_the_declared_schema_is_the_newest_migration():
    config = Config()
    config.set_main_option(
        "script_location", str(Path(reactune.store.database.__file__).parent / "migrations")
    )
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA]


def test_migrating_again_changes_nothing(engine):
    with writing(engine) as connection:
        upsert_scores(connection, [score()])
    migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(tip_scores.c.tip_content)) == "Take a walk"


def test_processes_that_set_up_one_database_at_once_all_succeed(store_url):
    code = (
        "import sys, alembic.command; from reactune.store.database import create_store\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "create_store(sys.argv[1]).dispose()"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    setups = [
        subprocess.Popen([sys.executable, "-c", code, store_url], text=True, **pipes)
        for _ in range(5)
    ]
    for setup in setups:
        assert setup.stdout.readline() == "ready\n"
    for setup in setups:
        setup.stdin.write("go\n")
        setup.stdin.flush()
    assert [(setup.communicate()[1], setup.returncode) for setup in setups] == [("", 0)] * 5
    engine = open_store(store_url)
    with engine.connect() as connection:
        versions = connection.execute(sa.text(f"SELECT version_num FROM {SCHEMA_TABLE}"))
        assert versions.scalars().all() == [SCHEMA]
    engine.dispose()


def test_a_migration_that_fails_leaves_no_half_made_tables(store_url):
    engine = database._connect(database._location(store_url))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE rollouts (theirs INTEGER)"))
    with pytest.raises(DataError, match=r"cannot make the tables.*name an empty database"):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == ["rollouts"]
    engine.dispose()


def test_a_missing_sqlite_file_is_named_and_not_made(sqlite_url, tmp_path):
    with pytest.raises(DataError, match=r"reactune\.db: no such database; run `reactune init`"):
        open_store(sqlite_url)
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_tables_asks_for_init(store_url):
    if store_url.startswith("sqlite"):
        Path(store_url.removeprefix("sqlite:///")).touch()
    with pytest.raises(DataError, match="no tables yet; run `reactune init`"):
        open_store(store_url)


@pytest.mark.parametrize(
    ("version", "advice"), [("9999", "newer reactune"), ("0000", "run `reactune init`")]
)
def test_tables_of_another_version_are_not_opened(engine, store_url, version, advice):
    _stamp(engine, version)
    with pytest.raises(DataError, match=advice):
        open_store(store_url)


def test_tables_of_a_newer_version_are_not_migrated(engine):
    _stamp(engine, "9999")
    with pytest.raises(DataError, match="newer reactune"):
        migrate(engine)


def test_a_server_that_is_away_is_named_without_its_password():
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/tips: cannot open") as caught:
        open_store("postgresql://app:s3cret@127.0.0.1:1/tips")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("mysql://host/tips", "names mysql"),
        ("not a url", "not a database URL"),
        ("postgresql://host:s3cret/tips", "not a database URL"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
    ],
)
def test_a_url_that_cannot_be_is_refused(url, problem):
    with pytest.raises(DataError, match=problem) as caught:
        create_store(url)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("dear diary " * 500)
    with pytest.raises(DataError, match="file is not a database"):
        open_store(f"sqlite:///{file}")


def test_a_missing_driver_names_the_extra_to_install():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from reactune.store.database import open_store\n"
        "open_store('postgresql://host/tips')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DataError: psycopg is not installed" in result.stderr
    assert "pip install 'reactune[postgres]'" in result.stderr


def test_sqlite_survives_a_power_cut_and_checks_references(sqlite_url):
    engine = create_store(sqlite_url)
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    engine.dispose()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    time=st.datetimes(datetime(1970, 1, 3), datetime(2099, 1, 1)),
    offset=st.integers(-14 * 60, 14 * 60),
)
def test_a_time_comes_back_as_the_same_instant_in_utc(engine, time, offset):
    time = time.replace(tzinfo=timezone(timedelta(minutes=offset)))
    with engine.connect() as connection:
        upsert_scores(connection, [score(shown_at=time)])
        found = connection.scalar(sa.select(tip_scores.c.shown_at))
        is_found = connection.scalar(sa.select(tip_scores.c.tip_id).filter_by(shown_at=time))
        connection.rollback()
    assert (found, found.tzinfo, is_found) == (time, UTC, "t1")


def test_a_time_without_offset_is_refused(engine):
    with engine.connect() as connection, pytest.raises(DataError, match="without an offset"):
        upsert_scores(connection, [score(shown_at=datetime(2026, 3, 4))])


def test_an_upsert_changes_only_the_columns_it_names(engine):
    served = {"arm": "challenger", "propensity": 0.05, "model_version": 2, "rollout_id": "first"}
    with writing(engine) as connection:
        upsert_scores(connection, [score(**served, training_allowed=False)])
        upsert_scores(connection, [score(tip_content="Sit down", reaction="done", dwell_ms=20_000)])
        row = connection.execute(sa.select(tip_scores)).mappings().one()
    expected = score(**served, training_allowed=False, tip_content="Sit down", source="llm")
    assert {**row} == dict.fromkeys(row) | expected | {
        "reaction": "done",
        "dwell_ms": 20_000,
    }


def test_of_two_rows_with_one_tip_id_the_later_stands(engine):
    with writing(engine) as connection:
        upsert_scores(connection, [score(tip_content=text) for text in ("one", "two", "three")])
        assert connection.scalars(sa.select(tip_scores.c.tip_content)).all() == ["three"]


def test_rows_that_name_different_columns_are_refused(engine):
    with writing(engine) as connection, pytest.raises(DataError, match="same columns"):
        upsert_scores(connection, [score("t1"), score("t2", reaction="done")])


def test_upserting_nothing_is_fine(engine):
    with writing(engine) as connection:
        upsert_scores(connection, [])
        assert connection.scalar(sa.select(sa.func.count()).select_from(tip_scores)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "\N{OWL}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}\U0010fffd",
        "\N{RIGHT-TO-LEFT EMBEDDING}\N{HEBREW LETTER SHIN}\N{ARABIC LETTER MEEM}",
        "x" * 1_000_000,
        "a\r\n\tb'\"%s:x\\",
    ],
    ids=["emoji", "right to left", "long", "quoting"],
)
def test_text_comes_back_as_it_was(engine, text):
    with writing(engine) as connection:
        upsert_scores(connection, [score(tip_content=text)])
    with engine.connect() as connection:
        assert connection.scalar(sa.select(tip_scores.c.tip_content)) == text


@pytest.mark.parametrize("wrong", [{"reaction": "love"}, {"dwell_ms": -1}, {"propensity": 0.0}])
def test_the_database_itself_refuses_impossible_scores(engine, wrong):
    with pytest.raises(sa.exc.IntegrityError), writing(engine) as connection:
        upsert_scores(connection, [score(**wrong)])


def test_an_error_message_does_not_hold_the_parameters(sqlite_url):
    engine = create_store(sqlite_url)
    with pytest.raises(sa.exc.IntegrityError) as caught, writing(engine) as connection:
        upsert_scores(connection, [score(tip_content="call Anna", dwell_ms=-1)])
    assert "Anna" not in str(caught.value)
    engine.dispose()


def test_a_model_version_comes_back_as_it_was_registered(models):
    with models.connect() as connection:
        assert all_model_versions(connection) == (BASE, TUNED)
        assert model_version(connection, 2) == TUNED


def test_registering_a_version_twice_changes_nothing(models):
    with writing(models) as connection:
        add_model_version(connection, TUNED, NOON + timedelta(days=1))
    with models.connect() as connection:
        assert all_model_versions(connection) == (BASE, TUNED)


@pytest.mark.parametrize("other", [replace(TUNED, sha256="00"), replace(TUNED, version=3)])
def test_a_version_is_never_overwritten(models, other):
    with writing(models) as connection, pytest.raises(DataError, match="another model"):
        add_model_version(connection, other, NOON)


def test_an_unknown_version_is_named(models):
    with models.connect() as connection, pytest.raises(DataError, match="version 7 is not"):
        model_version(connection, 7)


def test_before_the_first_rollout_nothing_is_live(engine):
    with engine.connect() as connection:
        assert current_rollout(connection) is None


def test_a_rollout_takes_the_place_of_an_idle_one(models):
    later = replace(CANARY, opened_at=NOON + timedelta(hours=1))
    with writing(models) as connection:
        open_rollout(connection, IDLE)
        open_rollout(connection, later)
    with models.connect() as connection:
        assert current_rollout(connection) == later
        ended = connection.execute(sa.select(rollouts).filter_by(rollout_id="idle")).one()
    assert (ended.phase, ended.closed_at, ended.verdict) == ("closed", later.opened_at, None)


def test_a_running_challenger_is_not_pushed_aside(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        with pytest.raises(CanaryError, match="rollout first is still running"):
            open_rollout(connection, replace(CANARY, rollout_id="second"))
        assert current_rollout(connection) == CANARY


def test_a_rollout_needs_registered_models(models):
    with writing(models) as connection, pytest.raises(DataError, match="version 9 is not"):
        open_rollout(connection, replace(CANARY, challenger=9))


def test_the_database_itself_allows_one_open_rollout(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
    with models.connect() as connection:
        row = {**connection.execute(sa.select(rollouts)).mappings().one()}
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(rollouts.insert(), row | {"rollout_id": "second"})


def test_a_ramp_moves_phase_and_share_and_says_why(models):
    moved = replace(CANARY, phase="ramp", share=0.1, share_since=NOON + timedelta(days=1))
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        update_rollout(connection, replace(moved, salt="another"), why=WHY)
    with models.connect() as connection:
        assert current_rollout(connection) == moved
        row = connection.execute(sa.select(decisions)).one()
    assert row == (1, "first", NOON, "review", "wait", WHY.text, '{"low":-0.01,"units":250}')


def test_an_ended_rollout_keeps_its_verdict_and_the_successor_is_live(models):
    successor = replace(IDLE, rollout_id="next", champion=2)
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        close_rollout(connection, "first", "promote", why=WHY, successor=successor)
    with models.connect() as connection:
        assert current_rollout(connection) == successor
        ended = connection.execute(sa.select(rollouts).filter_by(rollout_id="first")).one()
        assert connection.scalars(sa.select(decisions.c.verdict)).all() == ["promote"]
    assert (ended.phase, ended.closed_at, ended.verdict) == ("closed", NOON, "promote")


def test_a_closed_rollout_is_neither_moved_nor_closed_again(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        close_rollout(connection, "first", "promote", why=WHY, successor=IDLE)
        with pytest.raises(CanaryError, match="first is not open any more"):
            close_rollout(
                connection, "first", "promote", why=WHY, successor=replace(IDLE, rollout_id="x")
            )
        with pytest.raises(CanaryError, match="first is not open any more"):
            update_rollout(connection, CANARY, why=WHY)
        assert current_rollout(connection) == IDLE


def test_a_change_and_its_record_are_written_together_or_not_at_all(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
    with pytest.raises(DataError, match="version 9"), writing(models) as connection:
        close_rollout(connection, "first", "promote", why=WHY, successor=replace(IDLE, champion=9))
    with models.connect() as connection:
        assert current_rollout(connection) == CANARY
        assert connection.execute(sa.select(decisions)).all() == []


def test_a_decision_is_about_a_rollout_that_exists(models):
    with pytest.raises(sa.exc.IntegrityError), writing(models) as connection:
        add_decision(connection, "first", "wait", why=WHY)


def test_reviews_at_once_do_not_lose_a_step(models):
    with writing(models) as connection:
        open_rollout(connection, replace(CANARY, share=0.0))

    def ramp():
        for _ in range(5):
            with writing(models) as connection:
                live = hold_rollout(connection)
                update_rollout(connection, replace(live, share=live.share + 0.01), why=WHY)

    reviews = [threading.Thread(target=ramp) for _ in range(4)]
    for review in reviews:
        review.start()
    for review in reviews:
        review.join()
    with models.connect() as connection:
        assert current_rollout(connection).share == pytest.approx(0.20)
        assert len(connection.execute(sa.select(decisions)).all()) == 20


def test_a_locked_sqlite_database_is_reported_as_such(sqlite_url, monkeypatch):
    monkeypatch.setattr(database, "BUSY_MS", 50)
    engine = create_store(sqlite_url)
    with (
        writing(engine),
        pytest.raises(DataError, match="not written: database is locked"),
        writing(engine),
    ):
        pass
    engine.dispose()


@pytest.mark.postgres
def test_a_server_that_ends_the_connection_is_reported_as_such(fresh_postgres_url):
    engine = create_store(fresh_postgres_url)

    def lose_the_connection():
        with writing(engine) as connection:
            upsert_scores(connection, [score()])
            connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DataError, match=r"not written: .*terminating"):
        lose_the_connection()
    with engine.connect() as connection:
        assert connection.execute(sa.select(tip_scores)).all() == []
    engine.dispose()


@pytest.mark.postgres
def test_a_server_that_vanished_is_missed_in_a_minute_unless_the_url_says_otherwise(
    fresh_postgres_url,
):
    for query, idle in (("", 30), ("?keepalives_idle=7", 7)):
        engine = create_store(fresh_postgres_url + query)
        with engine.connect() as connection:
            number = connection.connection.driver_connection.fileno()
            with socket.socket(fileno=os.dup(number)) as line:
                assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        engine.dispose()


@pytest.mark.postgres
def test_a_database_that_cannot_hold_every_text_is_refused(postgres_url):
    engine = sa.create_engine(
        postgres_url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE western TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'"
        )
    engine.dispose()
    with pytest.raises(DataError, match=r"encoded in LATIN1.*ENCODING 'UTF8'"):
        create_store(postgres_url.rpartition("/")[0] + "/western")


def test_the_store_needs_nothing_heavy():
    code = (
        "import sys, reactune.store.queries, reactune.data.ingest\n"
        "print({'alembic', 'torch', 'mlflow', 'ibis', 'pyarrow', 'pandas'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "set()\n"


def _stamp(engine, version):
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {SCHEMA_TABLE} SET version_num = '{version}'"))


def _catalogue(connection):
    """Tables, columns, constraints and indexes in the database's own words."""
    if connection.dialect.name == "sqlite":
        # A column that came later stands last, behind the constraints: order says nothing.
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master").all()
        parts = {name: (sql or "").removesuffix(")").split(",") for name, sql in rows}
        return {(name, *sorted(part.strip() for part in of)) for name, of in parts.items()}
    queries = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = 'public'",
        "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace",
    )
    return {tuple(row) for query in queries for row in connection.exec_driver_sql(query)}


def _of_alembic(catalogue):
    return {row for row in catalogue if SCHEMA_TABLE in str(row)}
