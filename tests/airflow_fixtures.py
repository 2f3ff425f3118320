"""Airflow for tests: in its own environment, with a home and a database of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from loop_fixtures import SECRET
from places import REPOSITORY
from server_fixtures import free_port

DAGS = REPOSITORY / "dags"
NEVER = "0 0 29 2 *"
PYTHON = Path(
    os.environ.get("REACTUNE_TEST_AIRFLOW") or REPOSITORY / ".airflow" / "venv" / "bin" / "python"
)


def needs_airflow():
    """Skip the test where there is no environment with Airflow in it."""
    if not PYTHON.is_file():
        pytest.skip(
            f"no Airflow environment at {PYTHON}: `make airflow-env` makes one, or name its Python "
            "in REACTUNE_TEST_AIRFLOW"
        )


def environment(home, **more):
    """Environment variables for Airflow at this home, and for what its tasks call."""
    needs_airflow()
    ours = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "2",
        "AIRFLOW__API__WORKERS": "1",
        "REACTUNE_BIN": str(Path(sys.executable).with_name("reactune")),
        "REACTUNE_KEY": SECRET,
        "REACTUNE_AIRFLOW_RETRIES": "0",
    }
    path = f"{PYTHON.parent}:{os.environ['PATH']}"
    return {**os.environ, **ours, "PATH": path, **more}


def airflow(home, *arguments, **more):
    """Call Airflow's command line."""
    return call(home, "-m", "airflow", *arguments, **more)


def call(home, *arguments, **more):
    """Run Airflow's Python; what it printed. Its own words are shown when it fails."""
    done = subprocess.run(
        [PYTHON, *map(str, arguments)],
        env=environment(home, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-6_000:]
    return done.stdout


def describe(home, **more):
    """What is in the DAG files, as Airflow reads them."""
    out = call(home, REPOSITORY / "tests" / "airflow_describe.py", DAGS, **more)
    return json.loads(out.splitlines()[-1])


@contextmanager
def standalone(home, **more):
    """A running Airflow with scheduler, web server and all; a client of its REST API."""
    port = free_port()
    settings = {
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "REACTUNE_AIRFLOW_FINETUNE_CRON": NEVER,
        "REACTUNE_AIRFLOW_REVIEW_CRON": NEVER,
        **more,
    }
    airflow(home, "pools", "set", "gpu", "1", "trainings at a time")
    with (home / "standalone.log").open("wb") as log:
        server = subprocess.Popen(
            [PYTHON, "-m", "airflow", "standalone"],
            env=environment(home, **settings),
            stdout=log,
            stderr=log,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                wait_until(lambda: is_up(client), seconds=300)
                token = client.get("/auth/token").json()["access_token"]
                client.headers["authorization"] = f"Bearer {token}"
                yield client
        finally:
            family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(True)]
            server.send_signal(signal.SIGINT)
            for process in psutil.wait_procs(family, timeout=30)[1]:
                process.kill()
            server.wait()


def is_up(client):
    """Whether all parts of Airflow say that they are well."""
    try:
        parts = client.get("/api/v2/monitor/health").json()
    except (httpx.HTTPError, json.JSONDecodeError):
        return False
    return {part["status"] for part in parts.values()} == {"healthy"}


def wait_until(condition, *, seconds):
    """What the condition gives once it gives something; an error if it never does."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.5)
    return found
