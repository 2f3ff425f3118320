"""Databases for tests: SQLite files, and a PostgreSQL server of our own for the session."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from reactune.store import create_store

pytest_plugins = ("s3_fixtures",)


@pytest.fixture
def sqlite_url(tmp_path):
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'reactune.db'}"


@pytest.fixture(scope="session")
def postgres_url():
    """A running PostgreSQL server of our own; one database, shared by the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="reactune-postgres-"))
    try:
        with _running_server(folder, _postgres_programs()) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _scratch_url(postgres_url):
    with _administration(postgres_url) as connection:
        connection.exec_driver_sql("CREATE DATABASE scratch")
    return postgres_url.rpartition("/")[0] + "/scratch"


@pytest.fixture
def fresh_postgres_url(_scratch_url):
    """An empty database on the session's server."""
    # Emptying one is ten times as fast as creating and dropping many.
    with _administration(_scratch_url) as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    return _scratch_url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_url(request):
    """An empty database: first a SQLite file, then one on a real PostgreSQL server."""
    name = {"sqlite": "sqlite_url", "postgres": "fresh_postgres_url"}[request.param]
    return request.getfixturevalue(name)


@pytest.fixture
def engine(store_url):
    """An open store with empty tables, on SQLite and on PostgreSQL."""
    engine = create_store(store_url)
    yield engine
    engine.dispose()


def _postgres_programs():
    """Folder of initdb and postgres, newest version first."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3])
    )
    on_path = shutil.which("initdb")
    if not installed and on_path is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    return installed[-1].parent if installed else Path(on_path).resolve().parent


@contextlib.contextmanager
def _running_server(folder, programs):
    # PostgreSQL refuses to run as root.
    someone = {"cwd": folder}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
        someone |= {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = folder / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"],
        check=True, capture_output=True, **someone,
    )  # fmt: skip
    port = _free_port()
    # The server ends with these tests, even when they are killed.
    command = ["setpriv", "--pdeathsig", "INT", programs / "postgres", "-D", data]
    options = ["-p", str(port), "-k", folder, "-h", "127.0.0.1", "-c", "fsync=off"]
    log = folder.joinpath("log")
    with (
        log.open("wb") as output,
        subprocess.Popen([*command, *options], stdout=output, stderr=output, **someone) as server,
    ):
        try:
            url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
            _wait_until_it_answers(url, server, log)
            yield url
        finally:
            server.send_signal(signal.SIGINT)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(url, server, log):
    deadline = time.monotonic() + 60
    while True:
        try:
            with _administration(url):
                return
        except sa.exc.OperationalError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}") from error
            time.sleep(0.1)


@contextlib.contextmanager
def _administration(url):
    location = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(location, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection
