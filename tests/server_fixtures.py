"""Servers that tests start, kill and start again, and how to wait for them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, *, seconds=60, process=None, log=None, pause=0.05):
    """Return when the condition holds; fail with the log if the process ends or time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        text = log.read_text() if log else ""
        assert process is None or process.poll() is None, f"it ended with {process.poll()}:\n{text}"
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{text}"
        time.sleep(pause)


def answers(address):
    """Whether a server answers there with a status of success."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(address, trust_env=False).is_success
    return False


def shown_tip(url, asked):
    """A tip of a service with the tiny model, which does not always write what can be shown."""
    for _ in range(20):
        answer = httpx.post(f"{url}/v1/tips", json=asked, timeout=60)
        if answer.status_code != 503:
            break
    assert answer.status_code == 200, answer.text
    return answer.json()


def postgres_programs():
    """Folder of initdb and postgres, newest version first."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: int(file.parts[-3])
    )
    on_path = shutil.which("initdb")
    if not installed and on_path is None:
        pytest.skip("PostgreSQL's server programs are not installed")
    return installed[-1].parent if installed else Path(on_path).resolve().parent


def make_cluster(folder, *, password=None):
    """An empty cluster in `folder / "data"`; with a password, one that asks for it."""
    someone = _not_root(folder)
    command = [postgres_programs() / "initdb", "-D", folder / "data", "-U", "postgres", "-N"]
    access = ["-A", "trust"]
    if password is not None:
        (folder / "password").write_text(password)
        access = ["-A", "scram-sha-256", "--pwfile", folder / "password"]
    subprocess.run([*command, *access, "-E", "UTF8"], check=True, capture_output=True, **someone)


@contextlib.contextmanager
def running_postgres(folder, *, port, options=("-c", "fsync=off")):
    """The server of a cluster that `make_cluster` made; the process, once it answers.

    Lose it with `lose(server)`, and enter this again to have it back.
    """
    # The server ends with these tests, even when they are killed.
    command = ["setpriv", "--pdeathsig", "INT", postgres_programs() / "postgres"]
    where = ["-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    log = folder / "log"
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [*command, *where, *options],
            stdout=output,
            stderr=output,
            **_not_root(folder),
        ) as server,
    ):
        try:
            _wait_for_postgres(port, server, log)
            yield server
        finally:
            server.send_signal(signal.SIGINT)


def lose(server):
    """End PostgreSQL at once, with all its connections, as a crash of the machine would."""
    server.send_signal(signal.SIGQUIT)
    server.wait(60)


@contextlib.contextmanager
def administration(url):
    """A connection of a superuser that commits each statement."""
    location = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(location, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        yield connection


@contextlib.contextmanager
def tracking_server(folder, *, store=None, port=None, options=()):
    """MLflow's own server on a free port; its URL and its process, once it answers.

    What is logged stays in `folder`, or in the database `store` and `folder / "files"`.
    """
    folder.mkdir(exist_ok=True)
    port = port or free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", store or f"sqlite:///{folder / 'mlflow.db'}", "--serve-artifacts",
        "--artifacts-destination", str(folder / "files"), "--workers", "1",
        *options,
    ]  # fmt: skip
    # Seven processes of no use here; with them it takes three times as long to start.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=environment
        ) as server,
    ):
        try:
            health = f"http://127.0.0.1:{port}/health"
            wait_until(
                lambda: answers(health), seconds=240, process=server, log=folder / "log", pause=0.3
            )
            yield f"http://127.0.0.1:{port}", server
        finally:
            kill_tracking_server(server)


def kill_tracking_server(server):
    """Kill -9, with all its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait(60)


def _not_root(folder):
    """Whom PostgreSQL runs as: it refuses root."""
    if os.geteuid() != 0:
        return {"cwd": folder}
    shutil.chown(folder, "postgres", "postgres")
    return {"cwd": folder, "user": "postgres", "group": "postgres", "extra_groups": []}


def _wait_for_postgres(port, server, log):
    ready = [postgres_programs() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    wait_until(
        lambda: subprocess.run(ready, check=False).returncode == 0,
        process=server,
        log=log,
        pause=0.1,
    )
