"""The service as real processes: killed under load, several on one PostgreSQL, stopped at once."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

import reactune
from places import BENCH, TESTS
from reactune.config.sections import ModelConfig, PromptConfig, ServeConfig
from reactune.errors import ConfigError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, write_prompt_folder
from reactune.store.database import create_store
from reactune.web import server
from server_fixtures import answers, free_port, wait_until
from serving_fixtures import rows_of, set_challenger, set_champion, version

PATHS = (str(TESTS), str(Path(reactune.__file__).parents[1]))
STUB = BENCH / "model_stub.py"
TIP = {"kind": "focus", "context": {"free_text": "essay"}}


@contextlib.contextmanager
def running(*command, ready, folder):
    """A process, once `ready` (an address) answers; ended at the end."""
    environment = {
        **os.environ, "REACTUNE_KEY": "k" * 32, "PYTHONPATH": os.pathsep.join(PATHS)
    }  # fmt: skip
    log = folder / f"log-{free_port()}"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, *map(str, command)], env=environment, cwd=folder, stderr=output
        ) as process,
    ):
        try:
            wait_until(lambda: answers(ready), seconds=120, process=process, log=log)
            yield process
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def served(url, folder, *, workers=1, set_up=set_champion, stub=()):
    """`reactune serve` on a database, with a model server that answers at once; its address."""
    prompts, base = folder / "prompt", base_model(ModelConfig()).folder
    write_prompt_folder(load_chat(base, PromptConfig()), base, prompts)
    engine = create_store(url)
    set_up(engine, replace(version(1), prompt_folder=prompts))
    port, model_port = free_port(), free_port()
    settings = folder / "reactune.toml"
    settings.write_text(
        f"[store]\nurl = '{url}'\n[serve]\nport = {port}\nworkers = {workers}\nruntime = 'ollama'\n"
        f"ollama_url = 'http://127.0.0.1:{model_port}'\nrequests_per_second = 100000\n"
    )
    serve = ("-c", "from reactune.cli import main; main()", "--config", settings, "serve")
    model = (STUB, "--port", model_port, "--delay-ms", 5, *stub)
    address = f"http://127.0.0.1:{port}"
    with (
        running(*model, ready=f"http://127.0.0.1:{model_port}/api/tags", folder=folder),
        running(*serve, ready=f"{address}/readyz", folder=folder) as process,
    ):
        yield engine, address, process
    engine.dispose()


class Load:
    """Asks for tips and reacts to them from threads, and remembers what was acknowledged."""

    def __init__(self, address, threads=8):
        self.address, self.stop = address, threading.Event()
        self.given, self.reacted, self.failed = set(), {}, 0
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(threads)
        self.jobs = [self.pool.submit(self._ask, n) for n in range(threads)]

    def _ask(self, number):
        count = 0
        # A connection for each request, so that every worker gets some.
        closing = {"connection": "close"}
        client = httpx.Client(base_url=self.address, timeout=30, trust_env=False, headers=closing)
        while not self.stop.is_set():
            count += 1
            try:
                self._one(client, f"u{number}-{count}", count)
            except httpx.TransportError:
                self.failed += 1
                time.sleep(0.02)

    def _one(self, client, user, dwell_ms):
        tip = client.post("/v1/tips", json={**TIP, "user": user})
        if tip.status_code != 200:
            return
        tip_id = tip.json()["tip_id"]
        with self.lock:
            self.given.add(tip_id)
        reaction = {"tip_id": tip_id, "reaction": "done", "dwell_ms": dwell_ms}
        if client.post("/v1/reactions", json=reaction).status_code == 204:
            with self.lock:
                self.reacted[tip_id] = dwell_ms

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.pool.shutdown()

    def end(self):
        self.__exit__()
        assert [job.result() for job in self.jobs] == [None] * len(self.jobs)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


def check_nothing_acknowledged_is_lost(engine, load):
    rows = {row["tip_id"]: row for row in rows_of(engine)}
    assert len(load.given) > 20
    assert load.given <= rows.keys()
    assert {tip_id: rows[tip_id]["dwell_ms"] for tip_id in load.reacted} == load.reacted


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
