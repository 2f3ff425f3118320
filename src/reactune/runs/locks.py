"""Who may work in a stage, where workers share no disk: a lock that must be refreshed.

Locks of one machine are `runs.py`'s; where the objects lie, `run_root.py` knows.
"""

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from reactune.errors import DataError
from reactune.records import write_atomically
from reactune.runs.remote import RunRoot, reach

BEATS = 10  # refreshes within the time after which a lock is stale

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """One lock object. A lock that is taken over gets the next number; the highest one holds."""

    place: str
    number: int
    owner: str
    worker: str

    @property
    def name(self) -> str:
        """Name of the object, from the run root."""
        return f"{self.place}/.lock-{self.number:06}"


@contextmanager
def lease(root: RunRoot, place: str) -> Iterator[Callable[[], None]]:
    """Hold a stage's folder among all workers; gives a check that it is still held.

    The caller holds the folder's lock on this machine: what another process of this worker left
    is therefore dead, and taken over at once; what other workers left, when it was not refreshed
    for `stale_seconds`. Without a URL there is nothing to hold.

    Raises:
        DataError: another worker holds it; from the check: it was taken over.
    """
    if not root.url:
        yield lambda: None
        return
    mine = _take(root, place)
    done = threading.Event()
    beating = threading.Thread(target=_refresh, args=(root, mine, done), daemon=True)
    beating.start()
    try:
        yield lambda: _require(root, mine)
    finally:
        done.set()
        beating.join()
        _release(root, mine)


def _take(root: RunRoot, place: str) -> Lease:
    now = datetime.now(UTC)
    owner = (
        f"process {os.getpid()} on {socket.gethostname()} since {now.isoformat(timespec='seconds')}"
        f" ({uuid.uuid4().hex[:8]})"
    )
    worker = _worker_id(root)
    with reach(root) as (files, top):
        found = _locks(files, f"{top}/{place}")
        if found:
            theirs, age = _read(files, found[-1]), _age(files, found[-1], now)
            if theirs.get("worker") != worker and age is not None and age < root.stale_seconds:
                raise _in_use(root, place, theirs)
        number = int(found[-1].rpartition("-")[2]) + 1 if found else 1
        mine = Lease(place, number, owner, worker)
        path = f"{top}/{mine.name}"
        try:
            # Of several that try this number, one succeeds.
            with files.open(path, "xb") as file:
                file.write(_text(mine))
        except OSError as error:
            # A lost answer is asked for again, and then our own object is in the way.
            if not files.exists(path):
                raise
            theirs = _read(files, path)
            if theirs.get("owner") != owner:
                raise _in_use(root, place, theirs) from error
    return mine


def _refresh(root: RunRoot, mine: Lease, done: threading.Event) -> None:
    while not done.wait(root.stale_seconds / BEATS):
        try:
            _require(root, mine)
            with reach(root) as (files, top):
                files.pipe_file(f"{top}/{mine.name}", _text(mine))
        except DataError as error:
            log.warning("the lock of %s is not refreshed: %s", mine.place, error)


def _require(root: RunRoot, mine: Lease) -> None:
    with reach(root) as (files, top):
        found = _locks(files, f"{top}/{mine.place}")
        theirs = _read(files, found[-1]) if found else {}
    if theirs.get("owner") != mine.owner:
        raise DataError(
            f"{root.url}/{mine.place} was taken over by {theirs.get('owner', 'somebody')}, because "
            f"{mine.owner} did not refresh its lock for {root.stale_seconds:g} s; nothing of what "
            "this process did counts, see [run] stale_lock_seconds"
        )


def _release(root: RunRoot, mine: Lease) -> None:
    """Remove the locks up to ours, ours last: until then nobody can take a number below it."""
    try:
        with reach(root) as (files, top):
            for path in _locks(files, f"{top}/{mine.place}"):
                if path <= f"{top}/{mine.name}":
                    files.rm_file(path)
    except DataError as error:
        log.warning("the lock of %s stays until it is stale: %s", mine.place, error)


def _locks(files: Any, folder: str) -> list[str]:
    """Paths of the lock objects, the one that holds last."""
    return sorted(path for path in files.find(folder) if "/.lock-" in path)


def _read(files: Any, path: str) -> dict[str, str]:
    """What a lock says; nothing if it is gone or half written."""
    try:
        values: dict[str, str] = json.loads(files.cat_file(path))
    except (FileNotFoundError, ValueError):
        return {}
    return values


def _age(files: Any, path: str, now: datetime) -> float | None:
    """Seconds since the lock was refreshed; None if it is gone."""
    try:
        return float((now - files.modified(path)).total_seconds())
    except FileNotFoundError:
        return None


def _text(mine: Lease) -> bytes:
    return json.dumps(asdict(mine)).encode()


def _in_use(root: RunRoot, place: str, theirs: dict[str, str]) -> DataError:
    return DataError(
        f"{root.url}/{place} is in use by {theirs.get('owner', 'another process')}; wait for it. "
        f"If it is dead, its lock is free {root.stale_seconds:g} s after its last refresh"
    )


def _worker_id(root: RunRoot) -> str:
    """A name of this worker's folder that no other has."""
    file = root.folder / ".worker"
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")
