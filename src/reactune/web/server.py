"""The service as processes: one that listens, or several on one socket, restarted when they end.

A process that is asked to end finishes the requests under way, writes what is waiting and stops its
model server. Workers end with their parent, however that ends.
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

SHUTDOWN_SECONDS = 10  # for requests under way when the process is asked to end
BACKLOG = 2_048
SWITCH_SECONDS = 0.0005  # how long the event loop waits for a computing thread; 5 ms otherwise
RESTART_SECONDS = 1.0  # between two checks whether a worker has ended
SOCKET = "REACTUNE_SOCKET"

log = logging.getLogger(__name__)


def serve_all(config: Config) -> None:
    """`serve` in `[serve] workers` processes that share one socket.

    Raises:
        ConfigError: several workers on SQLite, which has one writer; or the address is in use.
        PrivacyError, DataError: as `serve`. Other errors of a worker are logged, and it restarts.
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
        TemporaryDirectory(prefix="reactune-metrics-") as metrics,
    ):
        _supervise(shared, metrics, config.serve.workers)


def serve(
    config: Config,
    connect: Callable[[ServeConfig], Runtime] | None = None,
    *,
    sockets: list[socket.socket] | None = None,
) -> None:
    """Listen until SIGTERM or Ctrl-C; then stop the model server, where it is ours.

    `connect` opens the model server; without it, the one that the settings name. `sockets` are
    those on which a parent listens.

    Raises:
        PrivacyError: the environment holds no hashing key.
        DataError: the database does not answer or has no tables, or runs cannot be fetched.
        CanaryError: nothing is live.
        ReleaseError: the model server cannot be reached or started, or the champion lacks files.
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
        _listen(create_app(service, config), config.serve, sockets)
    finally:
        close_service(service)
        engine.dispose()


def _listen(app: FastAPI, settings: ServeConfig, sockets: list[socket.socket] | None) -> None:
    # uvicorn raises the signal again after its shutdown: without a handler the process would end
    # there, and leave the model server running.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    _log_as_json()
    server = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    # What is loaded now stays: collecting it would delay requests by 90 ms (decision 35).
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(server).run(sockets=sockets or [_listening_socket(settings)])


def _listening_socket(settings: ServeConfig) -> socket.socket:
    try:
        shared = socket.create_server((settings.host, settings.port), backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); stop what "
            "listens there, or name another [serve] host or port"
        ) from error
    shared.set_inheritable(True)
    return shared


def _supervise(shared: socket.socket, metrics: str, count: int) -> None:
    """Keep `count` workers running until this process is asked to end (decision 44)."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    workers = [_start_worker(shared, metrics) for _ in range(count)]
    try:
        while True:
            time.sleep(RESTART_SECONDS)
            for index, worker in enumerate(workers):
                if (code := worker.poll()) is not None:
                    log.error("worker %d ended with %s; it is restarted", worker.pid, code)
                    mark_process_dead(worker.pid, metrics)  # type: ignore[no-untyped-call]
                    workers[index] = _start_worker(shared, metrics)
    except KeyboardInterrupt:
        pass
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait(2 * SHUTDOWN_SECONDS)


def _start_worker(shared: socket.socket, metrics: str) -> subprocess.Popen[bytes]:
    # The same command again: the child listens on our socket, and is killed when we end.
    program = "from reactune.cli import main; main()"
    command = [sys.executable, "-c", program, *sys.argv[1:]]
    inherited = {SOCKET: str(shared.fileno()), METRICS_FOLDER: metrics}
    environment = {**child_environment(), **inherited}
    return subprocess.Popen(command, env=environment, pass_fds=[shared.fileno()])


def _log_as_json() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Lines do not name thread, process or code, so these are not looked up for each of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # see "Optimization" in the logging HOWTO
    for name in ("httpx", "httpcore", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
