"""What answering takes, held open: database, model server, key, and what is live.

What is done with it is told in `serving.py`.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import sqlalchemy as sa

from reactune.config.sections import LabelConfig, ServeConfig
from reactune.errors import DataError
from reactune.model.prompt import Chat
from reactune.privacy.hashing import HashingKey, HashingKeys
from reactune.records import Runtime
from reactune.runs.remote import LOCAL, RunRoot
from reactune.service.events import Recorder, forget_early, reconcile
from reactune.service.rollout_watcher import LiveModels, watching
from reactune.store.database import writing

RECONCILE_SECONDS = 5.0

log = logging.getLogger(__name__)
_utc_now = partial(datetime.now, UTC)


@dataclass(frozen=True)
class Service:
    """Made by `open_service`, ended by `close_service`.

    `draw(n)` gives n random bits: tip ids and sampling seeds come from it.
    `listeners` are called with every exposure that was recorded. `silent` are the answers of a
    challenger in the shadow phase that are under way.
    """

    engine: sa.Engine
    chat: Chat
    runtime: Runtime
    hashing_keys: HashingKeys
    settings: ServeConfig
    labels: LabelConfig
    clock: Callable[[], datetime]
    draw: Callable[[int], int]
    live: LiveModels
    recorder: Recorder
    listeners: list[Callable[[Mapping[str, Any]], None]] = field(default_factory=list)
    silent: set[asyncio.Task[None]] = field(default_factory=set)


def open_service(
    engine: sa.Engine,
    *,
    chat: Chat,
    runtime: Runtime,
    key: HashingKey,
    old_keys: Sequence[HashingKey] = (),
    settings: ServeConfig,
    labels: LabelConfig | None = None,
    root: RunRoot = LOCAL,
    clock: Callable[[], datetime] = _utc_now,
    draw: Callable[[int], int] = secrets.randbits,
) -> Service:
    """A service over an open store and a connected model server; nothing is published yet."""
    hashing_keys = HashingKeys(key, tuple(old_keys))
    live = LiveModels(engine, runtime, root=root, grace_seconds=60.0 + 2 * settings.timeout_seconds)
    return Service(
        engine=engine,
        chat=chat,
        runtime=runtime,
        hashing_keys=hashing_keys,
        settings=settings,
        labels=labels or LabelConfig(),
        clock=clock,
        draw=draw,
        live=live,
        recorder=Recorder(engine, hashing_keys.all),
    )


def close_service(service: Service) -> None:
    """Write what is waiting, stop the model server where it is ours, and take no more work."""
    service.recorder.close()
    service.runtime.close()


@contextmanager
def tending(service: Service) -> Iterator[None]:
    """Watch what is live, and give kept reactions to tips that came by another way meanwhile."""
    stop = threading.Event()
    thread = threading.Thread(target=_reconcile, args=(service, stop), daemon=True)
    with watching(service.live):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5.0)


def _reconcile(service: Service, stop: threading.Event) -> None:
    while not stop.wait(RECONCILE_SECONDS):
        try:
            with writing(service.engine) as connection:
                found = reconcile(connection)
                forget_early(connection, now=service.clock())
        except DataError as error:
            log.error("%s", error)
            continue
        if found:
            log.info("%d reactions met their tips", found)
