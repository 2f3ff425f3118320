"""The service as processes: one that listens, or several on one socket, begun anew when they end.

What is answered is in `api.py`.
"""

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead

from reactune.config.sections import ServeConfig
from reactune.config.settings import Config
from reactune.errors import ConfigError
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import load_hashing_keys
from reactune.process import child_environment
from reactune.records import Runtime
from reactune.runs.remote import fetch_release, run_root
from reactune.service.state import close_service, open_service, read_live
from reactune.store.database import open_store
from reactune.web.api import create_app
from reactune.web.telemetry import METRICS_FOLDER, JsonLines

LAST_SECONDS = 10  # what requests under way get to finish in when the process is asked to end
BACKLOG = 2_048
SWITCH_SECONDS = 0.0005  # the event loop waits so long for a thread that computes, not 5 ms
AGAIN_SECONDS = 1.0  # a worker that ends is begun anew at most so often
SOCKET = "REACTUNE_SOCKET"

log = logging.getLogger(__name__)


def serve_all(config: Config) -> None:
    """`serve`, in as many processes as `[serve] workers` says; they share one socket.

    Raises:
        ConfigError: several workers on SQLite, which has one writer; or the address is taken.
        Otherwise as `serve`.
    """
    if SOCKET in os.environ:
        serve(config, sockets=[socket.socket(fileno=int(os.environ[SOCKET]))])
        return
    if config.serve.workers == 1:
        serve(config)
        return
    if config.store_url.startswith("sqlite"):
        raise ConfigError(
            f"serve.workers = {config.serve.workers} on SQLite, which has one writer; "
            "name a PostgreSQL in [store] url, or set one worker"
        )
    open_store(config.store_url).dispose()
    load_hashing_keys(config.privacy, os.environ)
    with (
        _listening_socket(config.serve) as shared,
        TemporaryDirectory(prefix="reactune-figures-") as figures,
    ):
        _supervise(shared, figures, config.serve.workers)


def serve(
    config: Config,
    connect: Callable[[ServeConfig], Runtime] | None = None,
    *,
    sockets: list[socket.socket] | None = None,
) -> None:
    """Listen until SIGTERM or Ctrl-C; the model server ends with it, where it is ours.

    `connect` gives the model server; without it, the one that the settings name. `sockets` are
    those that a parent listens on.

    Raises:
        PrivacyError: the environment holds no key for user ids.
        DataError: the database does not answer or has no tables, or runs cannot be fetched.
        CanaryError: nothing is live.
        ReleaseError: the model server cannot be reached or started, or files of the champion miss.
    """
    if connect is None:
        from reactune.release import runtimes

        connect = runtimes.connect
    hashing_keys = load_hashing_keys(config.privacy, os.environ)
    engine = open_store(config.store_url)
    root = run_root(config)
    rollout, models = read_live(engine, root=root)
    fetch_release(root, models[rollout.champion])
    chat = load_chat(models[rollout.champion].prompt_folder, config.prompt, privacy=config.privacy)
    runtime = connect(config.serve)
    service = open_service(
        engine,
        chat=chat,
        runtime=runtime,
        key=hashing_keys.current,
        old_keys=hashing_keys.old,
        settings=config.serve,
        labels=config.labels,
        root=root,
    )
    try:
        _listen(create_app(service), config.serve, sockets)
    finally:
        close_service(service)
        engine.dispose()


def _listen(app: FastAPI, settings: ServeConfig, sockets: list[socket.socket] | None) -> None:
    # uvicorn sends itself the signal again when it is done: without this the process would end
    # there and leave the model server behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    _log_as_json()
    listening = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    # What is loaded now stays: looking through it for garbage would hold up requests for 90 ms.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(listening).run(sockets=sockets)


def _listening_socket(settings: ServeConfig) -> socket.socket:
    try:
        shared = socket.create_server((settings.host, settings.port), backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port} ({error}); see [serve] host, port"
        ) from error
    shared.set_inheritable(True)
    return shared


def _supervise(shared: socket.socket, figures: str, count: int) -> None:
    """Keep so many workers alive until this process is asked to end; they end with it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    workers = [_begin(shared, figures) for _ in range(count)]
    try:
        while True:
            time.sleep(AGAIN_SECONDS)
            for place, worker in enumerate(workers):
                if worker.poll() is not None:
                    code = worker.returncode
                    log.error("worker %d ended with %s; begun anew", worker.pid, code)
                    mark_process_dead(worker.pid, figures)  # type: ignore[no-untyped-call]
                    workers[place] = _begin(shared, figures)
    except KeyboardInterrupt:
        pass
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait(2 * LAST_SECONDS)


def _begin(shared: socket.socket, figures: str) -> subprocess.Popen[bytes]:
    # The same command again; the child listens where we do, and dies with us.
    program = "from reactune.cli import main; main()"
    command = [sys.executable, "-c", program, *sys.argv[1:]]
    theirs = {SOCKET: str(shared.fileno()), METRICS_FOLDER: figures}
    environment = {**child_environment(), **theirs}
    return subprocess.Popen(command, env=environment, pass_fds=[shared.fileno()])


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # A line does not say which thread, process or code wrote it, so nobody need find that out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the logging HOWTO says
    for chatty in ("httpx", "httpcore", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
