import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory

import reactune.store.database
from reactune.errors import DataError
from reactune.store import database
from reactune.store.database import (
    compact,
    create_store,
    insert_new,
    is_there,
    migrate,
    open_store,
    opened_store,
    reading,
    upsert,
    writing,
)
from reactune.store.queries import (
    upsert_scores,
)
from reactune.store.schema import (
    SCHEMA,
    SCHEMA_TABLE,
    consents,
    metadata,
    tip_scores,
)
from score_fixtures import START, row
from server_fixtures import administration


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
        upsert_scores(connection, [row("t1")])
    migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(tip_scores.c.tip_content)) == "Tip t1"


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


def test_an_error_message_does_not_hold_the_parameters(sqlite_url):
    engine = create_store(sqlite_url)
    with pytest.raises(sa.exc.IntegrityError) as caught, writing(engine) as connection:
        upsert_scores(connection, [row("t1", tip_content="call Anna", dwell_ms=-1)])
    assert "Anna" not in str(caught.value)
    engine.dispose()


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
            upsert_scores(connection, [row("t1")])
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
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(postgres_url, encoding):
    name = f"western_{encoding.lower()}"
    with administration(postgres_url) as connection:
        connection.exec_driver_sql(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING {encoding} LOCALE 'C'"
        )
    with pytest.raises(DataError, match=rf"encoded in {encoding}.*ENCODING 'UTF8'"):
        create_store(f"{postgres_url.rpartition('/')[0]}/{name}")


@pytest.mark.postgres
def test_times_are_read_whatever_the_servers_country(chatham_url):
    engine = create_store(chatham_url)
    late = datetime(2026, 3, 4, 23, 30, tzinfo=UTC)  # the next day in Chatham
    with writing(engine) as connection:
        upsert_scores(connection, [row("t1", created_at=late)])
    with reading(engine) as connection:
        assert connection.execute(sa.select(tip_scores.c.created_at)).scalar() == late
        days = sa.select(sa.cast(tip_scores.c.created_at, sa.Date))
        assert connection.execute(days).scalar() == late.date()
    engine.dispose()


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


CONSENT = {"mark": "m1", "key_id": "k", "training_allowed": True, "decided_at": START}


def consents_in(engine):
    with reading(engine) as connection:
        return [dict(each) for each in connection.execute(sa.select(consents)).mappings()]


def test_inserting_a_row_that_exists_leaves_it_as_it_is(engine):
    with writing(engine) as connection:
        insert_new(connection, consents, [])
        insert_new(connection, consents, [CONSENT])
        insert_new(connection, consents, [{**CONSENT, "training_allowed": False}])
    assert consents_in(engine) == [CONSENT]


def test_an_upsert_changes_the_columns_that_its_rows_name(engine):
    with writing(engine) as connection:
        upsert(connection, consents, [])
        upsert(connection, consents, [CONSENT])
        upsert(connection, consents, [{**CONSENT, "training_allowed": False}])
    assert consents_in(engine) == [{**CONSENT, "training_allowed": False}]


def test_an_upsert_changes_no_row_that_does_not_meet_its_condition(engine):
    def is_newer(new):
        return consents.c.decided_at < new.decided_at

    older, newer = ({**CONSENT, "decided_at": START + timedelta(n)} for n in (-1, 1))
    with writing(engine) as connection:
        for each in (CONSENT, older):
            upsert(connection, consents, [each], only_if=is_newer)
    assert consents_in(engine) == [CONSENT]
    with writing(engine) as connection:
        upsert(connection, consents, [newer], only_if=is_newer)
    assert consents_in(engine) == [newer]


def test_rows_of_an_upsert_name_the_same_columns(engine):
    with pytest.raises(DataError, match="consents: rows name different columns; group them first"):
        upsert_wrongly(engine)


@pytest.mark.parametrize(("name", "exists"), [("here.db", True), ("gone.db", False)])
def test_whether_an_sqlite_file_exists_is_known_without_opening_it(tmp_path, name, exists):
    (tmp_path / "here.db").touch()
    assert is_there(f"sqlite:///{tmp_path / name}") is exists
    assert sorted(each.name for each in tmp_path.iterdir()) == ["here.db"]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "postgresql://nowhere/db"])
def test_what_is_no_file_is_taken_to_exist(url):
    assert is_there(url)


def upsert_wrongly(engine):
    with writing(engine) as connection:
        insert_new(connection, consents, [CONSENT])
        upsert(connection, consents, [CONSENT, {"mark": "m2"}])


def test_an_opened_store_is_closed_after_an_error(sqlite_url):
    create_store(sqlite_url).dispose()
    with pytest.raises(DataError), opened_store(sqlite_url) as engine:
        upsert_wrongly(engine)
    assert engine.pool.checkedout() == 0


def test_nothing_is_written_when_a_transaction_fails(engine):
    with pytest.raises(DataError):
        upsert_wrongly(engine)
    assert consents_in(engine) == []


def test_compacting_leaves_no_byte_of_a_deleted_text_in_the_sqlite_files(sqlite_url, tmp_path):
    engine = create_store(sqlite_url)
    secret = "the quick brown secret"
    with writing(engine) as connection:
        upsert_scores(connection, [row("a", tip_content=secret), row("b")])
    with writing(engine) as connection:
        connection.execute(tip_scores.delete().where(tip_scores.c.tip_id == "a"))
    compact(engine)
    files = list(tmp_path.iterdir())
    assert files
    assert not any(secret.encode() in file.read_bytes() for file in files)
    with reading(engine) as connection:
        assert connection.execute(sa.select(tip_scores.c.tip_id)).scalars().all() == ["b"]
    engine.dispose()


def test_compacting_asks_to_repeat_while_somebody_reads(sqlite_url, monkeypatch):
    monkeypatch.setattr(database, "BUSY_MS", 50)
    engine = create_store(sqlite_url)
    with writing(engine) as connection:
        upsert_scores(connection, [row("a")])
    with reading(engine) as connection:
        connection.execute(sa.select(tip_scores)).all()
        with writing(engine) as other:
            upsert_scores(other, [row("b")])
        with pytest.raises(DataError, match="repeat"):
            compact(engine)
    compact(engine)
    engine.dispose()
