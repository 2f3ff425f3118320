"""Databases for tests: SQLite files, and a PostgreSQL server of our own for the session."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from reactune.environment import limit_spinning
from reactune.store.database import create_store
from server_fixtures import administration, free_port, make_cluster, running_postgres

limit_spinning()
# Without a deadline: how long an example takes says nothing on a machine that others use too.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=200, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# What is made once for all parallel processes lies in a folder that the first process made.
SHARED = "REACTUNE_TEST_SHARED"

pytest_plugins = (
    "ollama_fixtures",
    "s3_fixtures",
    "serving_fixtures",
    "tiny_model",
    "wheel_fixtures",
)


def pytest_configure(config):
    """Make the folder that all test processes share; workers inherit its name."""
    if SHARED not in os.environ:
        os.environ[SHARED] = tempfile.mkdtemp(prefix="reactune-test-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(SHARED), ignore_errors=True))


def pytest_make_parametrize_id(val, argname):
    """Name a file's bytes by their length: a packed file holds its time, and workers must agree."""
    if isinstance(val, bytes) and not (val.isascii() and val.decode().isprintable()):
        return f"{argname}-{len(val)}-bytes"
    return None


@pytest.fixture
def sqlite_url(tmp_path):
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'reactune.db'}"


@pytest.fixture(scope="session")
def postgres_url():
    """A running PostgreSQL server of our own; one database, shared by the whole session."""
    folder = Path(tempfile.mkdtemp(prefix="reactune-postgres-"))
    try:
        make_cluster(folder)
        port = free_port()
        with running_postgres(folder, port=port):
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _scratch_url(postgres_url):
    with administration(postgres_url) as connection:
        connection.exec_driver_sql("CREATE DATABASE scratch")
    return postgres_url.rpartition("/")[0] + "/scratch"


@pytest.fixture
def fresh_postgres_url(_scratch_url):
    """An empty database on the session's server."""
    # Emptying one is ten times as fast as creating and dropping many.
    with administration(_scratch_url) as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    return _scratch_url


@pytest.fixture
def chatham_url(fresh_postgres_url):
    """One that words times as Germans do, and is three quarters of an hour ahead of New Zealand."""
    settings = {"timezone": "Pacific/Chatham", "datestyle": "German, DMY"}
    name = fresh_postgres_url.rpartition("/")[2]
    with administration(fresh_postgres_url) as connection:
        for key, value in settings.items():
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET {key} = '{value}'")
    yield fresh_postgres_url
    with administration(fresh_postgres_url) as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} RESET ALL")


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
