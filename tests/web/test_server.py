"""The service as real processes: killed under load, several on one PostgreSQL, stopped at once."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import psutil
import pytest

from reactune.config.sections import ServeConfig
from reactune.errors import ConfigError
from reactune.web import server
from server_fixtures import wait_until
from service_processes import PATHS, Load, check_nothing_acknowledged_is_lost, served
from serving_fixtures import rows_of, set_challenger, set_champion, version


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


def tips_counted(address):
    closing = {"connection": "close"}
    metrics = httpx.get(f"{address}/metrics", trust_env=False, headers=closing).text
    lines = [line for line in metrics.splitlines() if line.startswith("reactune_tips_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_killed_under_load_the_service_loses_nothing_that_it_acknowledged(tmp_path, stack):
    with served(f"sqlite:///{tmp_path / 'store.db'}", tmp_path) as (engine, address, process):
        load = stack.enter_context(Load(address))
        wait_until(lambda: len(load.reacted) > 60)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        load.end()
        assert load.failed > 0
        check_nothing_acknowledged_is_lost(engine, load)


def test_an_address_in_use_is_refused_with_the_settings_to_change(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"127.0.0.1:{port} .*in use.*another \[serve\] host or port"
        ):
            server._listening_socket(ServeConfig(port=port))


def test_the_shared_socket_is_inherited_by_workers():
    with server._listening_socket(ServeConfig(port=0)) as shared:
        assert shared.get_inheritable()
        assert shared.getsockname()[0] == "127.0.0.1"


def test_several_workers_are_refused_on_sqlite(tmp_path):
    settings = tmp_path / "reactune.toml"
    settings.write_text("[serve]\nworkers = 2\n")
    answer = subprocess.run(
        [sys.executable, "-c", "from reactune.cli import main; main()", "--config", settings,
         "serve"], env={**os.environ, "REACTUNE_KEY": "k" * 32, "PYTHONPATH": PATHS[1]},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (answer.returncode, "has one writer" in answer.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.postgres
def test_a_killed_worker_is_restarted_and_no_acknowledged_request_is_lost(
    fresh_postgres_url, tmp_path, stack
):
    with served(fresh_postgres_url, tmp_path, workers=2) as (engine, address, process):
        supervisor = psutil.Process(process.pid)
        wait_until(lambda: len(supervisor.children()) == 2)
        load = stack.enter_context(Load(address))
        wait_until(lambda: len(load.reacted) > 30)
        victim = supervisor.children()[0]
        victim.send_signal(signal.SIGKILL)
        before = len(load.reacted)
        wait_until(lambda: len(load.reacted) > before + 30)
        wait_until(lambda: len(supervisor.children()) == 2 and victim not in supervisor.children())
        load.end()
        check_nothing_acknowledged_is_lost(engine, load)
        # Every worker reports the sum over all, the killed one included.
        for _ in range(4):
            assert tips_counted(address) >= len(load.given)


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("how", ["http", "command"])
def test_a_stop_reaches_every_worker_in_under_a_second(fresh_postgres_url, tmp_path, stack, how):
    def set_up(engine, model):
        set_champion(engine, model)
        two = replace(version(2), prompt_folder=model.prompt_folder)
        set_challenger(engine, two, share=0.9, unit="tip")

    with served(fresh_postgres_url, tmp_path, workers=3, set_up=set_up) as (engine, address, _):
        load = stack.enter_context(Load(address, threads=6))

        def versions(since):
            rows = [row for row in rows_of(engine) if row["created_at"] > since]
            return [row["model_version"] for row in rows]

        begin = datetime.now(UTC)
        wait_until(lambda: versions(begin).count(2) > 30)
        if how == "http":
            stopped = httpx.post(f"{address}/v1/rollouts/current/stop", trust_env=False)
            assert stopped.json()["challenger"] is None
        else:
            command = [sys.executable, "-c", "from reactune.cli import main; main()"]
            subprocess.run(
                [*command, "--config", tmp_path / "reactune.toml", "rollback", "--now"], check=True,
                env={**os.environ, "PYTHONPATH": PATHS[1]},
            )  # fmt: skip
        late = datetime.now(UTC) + timedelta(seconds=1)
        wait_until(lambda: len(versions(late)) > 30)
        load.end()
        assert set(versions(late)) == {1}
        again = httpx.post(f"{address}/v1/rollouts/current/stop", trust_env=False)
        assert again.status_code == 200


def test_the_pages_of_a_real_service_open_on_this_machine_alone(sqlite_url, tmp_path):
    with (
        served(sqlite_url, tmp_path) as (_, address, _),
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        page, styles = client.get("/"), client.get("/assets/pages.css")
        elsewhere = client.get("/", headers={"host": "evil.example"})
        settings = client.get("/settings").text
    assert page.status_code == styles.status_code == 200
    assert "There is no new model on trial." in page.text
    assert "reactune keys create" in page.text
    assert (elsewhere.status_code, elsewhere.headers["location"]) == (303, "/login")
    assert "100000" in settings  # requests_per_second, as the file has it
