"""A real Ollama server of our own, with an empty store."""

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from places import SHARED
from server_fixtures import free_port

SCRIPT = SHARED / "tools" / "ollama_test_server.sh"


@pytest.fixture(scope="session")
def ollama_url(tmp_path_factory):
    """A running Ollama with an empty store; `REACTUNE_OLLAMA_SERVER` may name a command."""
    with ollama_server(tmp_path_factory.mktemp("ollama"), port=free_port()) as url:
        yield url


@contextlib.contextmanager
def ollama_server(folder, *, port):
    """A running Ollama that keeps its models in the folder; its address."""
    command = serve_command()
    host = f"127.0.0.1:{port}"
    env = os.environ | {"OLLAMA_HOST": host, "OLLAMA_MODELS": str(folder / "models")}
    with (
        (folder / "log").open("ab") as log,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *command], env=env, stdout=log, stderr=log
        ) as server,
    ):
        try:
            wait_until_it_answers(f"http://{host}", folder / "log", server)
            yield f"http://{host}"
        finally:
            server.send_signal(signal.SIGTERM)


def serve_command():
    """The command that serves, from the environment, or set up once by the project's script."""
    given = os.environ.get("REACTUNE_OLLAMA_SERVER")
    if given:
        return shlex.split(given)
    script = Path(os.environ.get("REACTUNE_TEST_OLLAMA", SCRIPT))
    if not script.is_file():
        pytest.skip(f"no Ollama: {script} is absent and REACTUNE_OLLAMA_SERVER is not set")
    folder = Path(tempfile.gettempdir()) / f"reactune-test-ollama-{os.getuid()}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").is_file():
            subprocess.run(["bash", script, folder], check=True, capture_output=True)
            (folder / "done").touch()
    return [str(folder / "ollama.sh"), "serve"]


def wait_until_it_answers(url, log, server):
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(f"{url}/api/version", timeout=5).raise_for_status()
            return
        except httpx.HTTPError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ollama did not start:\n{log.read_text()}") from error
            time.sleep(0.05)
