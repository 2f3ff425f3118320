"""`reactune serve` as a process, with a model server beside it, and load that remembers answers."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx

import reactune
from places import BENCH, TESTS
from reactune.config.sections import ModelConfig, PromptConfig
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, write_prompt_folder
from reactune.store.database import create_store
from server_fixtures import answers, free_port, wait_until
from serving_fixtures import rows_of, set_champion, version

PATHS = (str(TESTS), str(Path(reactune.__file__).parents[1]))
STUB = BENCH / "model_stub.py"
REACTUNE = ("-c", "from reactune.cli import main; main()")
TIP = {"kind": "focus", "context": {"free_text": "essay"}}


@contextlib.contextmanager
def running(*command, ready, folder, key="k" * 32):
    """A process, once `ready` (an address) answers; ended at the end.

    What it prints goes to a file `log-NUMBER` in the folder.
    """
    environment = {**os.environ, "REACTUNE_KEY": key, "PYTHONPATH": os.pathsep.join(PATHS)}
    log = folder / f"log-{free_port()}"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            wait_until(lambda: answers(ready), seconds=120, process=process, log=log)
            yield process
        finally:
            process.terminate()
            process.wait(60)


def model_server(port, folder, *stub):
    """A model server that answers at once, as a process."""
    command = (STUB, "--port", port, "--delay-ms", 5, *stub)
    return running(*command, ready=f"http://127.0.0.1:{port}/api/tags", folder=folder)


@contextlib.contextmanager
def served(url, folder, *, workers=1, set_up=set_champion, stub=(), model_port=None):
    """`reactune serve` on a database; its address.

    The model server runs beside it, unless `model_port` names one of the caller's.
    """
    prompts, base = folder / "prompt", base_model(ModelConfig()).folder
    write_prompt_folder(load_chat(base, PromptConfig()), base, prompts)
    engine = create_store(url)
    set_up(engine, replace(version(1), prompt_folder=prompts))
    port, own_port = free_port(), free_port()
    settings = folder / "reactune.toml"
    settings.write_text(
        f"[store]\nurl = '{url}'\n[serve]\nport = {port}\nworkers = {workers}\nruntime = 'ollama'\n"
        f"ollama_url = 'http://127.0.0.1:{model_port or own_port}'\nrequests_per_second = 100000\n"
    )
    serve = (*REACTUNE, "--config", settings, "serve")
    address = f"http://127.0.0.1:{port}"
    own = contextlib.nullcontext() if model_port else model_server(own_port, folder, *stub)
    with (
        own,
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
        if tip.status_code != 200 or not tip.json()["recorded"]:
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


def check_nothing_acknowledged_is_lost(engine, load):
    rows = {row["tip_id"]: row for row in rows_of(engine)}
    assert len(load.given) > 20
    assert load.given <= rows.keys()
    assert {tip_id: rows[tip_id]["dwell_ms"] for tip_id in load.reacted} == load.reacted
