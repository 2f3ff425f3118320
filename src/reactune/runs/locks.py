"""One process at a time works in a stage, on this machine and among workers without a common disk.

On one machine a lock file is held by the process that has it open. At a URL a lock object is held
while it is refreshed.
"""

import fcntl
import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from reactune.errors import DataError
from reactune.process import Repeater
from reactune.records import write_atomically
from reactune.runs.remote import RunRoot, remote_files

REFRESHES = 10  # within the time after which a lock is stale

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
        """Name of the object, relative to the run root."""
        return f"{self.place}/.lock-{self.number:06}"


@contextmanager
def hold_stage(root: RunRoot, run: Path, stage: str) -> Iterator[Callable[[], None]]:
    """Hold the folder of a stage, making it; yields a check that it is still held.

    Raises:
        DataError: another process, here or on another worker, holds it; from the check: another
            worker has taken it over.
    """
    folder = run / stage
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".lock"), lease(root, f"{run.name}/{stage}") as require_held:
        yield require_held


@contextmanager
def hold_stages(root: RunRoot, run: Path, stages: Iterable[str]) -> Iterator[None]:
    """Hold several stages of a run, so that no other process reads or writes them.

    Raises:
        DataError: another process, here or on another worker, holds one of them.
    """
    with ExitStack() as held:
        for stage in stages:
            held.enter_context(hold_stage(root, run, stage))
        yield


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock file; the system releases it when its owner ends, however that ends.

    Raises:
        DataError: another process holds it.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise DataError(
                f"{path.parent} is in use by {file.read().strip()}; wait until it ends, and repeat"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(_this_process(datetime.now(UTC)))
        file.flush()
        yield


@contextmanager
def lease(root: RunRoot, place: str) -> Iterator[Callable[[], None]]:
    """Hold a folder among all workers; yields a check that it is still held.

    The caller holds the folder's lock on this machine: a lock object of another process of this
    worker is therefore dead, and taken over at once. One of another worker is taken over when it
    was not refreshed for `root.stale_seconds`. Without a URL there is nothing to hold.

    Raises:
        DataError: another worker holds it; from the check: another worker has taken it over.
    """
    if not root.url:
        yield lambda: None
        return
    mine = _take(root, place)
    refresh = Repeater(
        partial(_refresh, root, mine),
        seconds=root.stale_seconds / REFRESHES,
        name=f"lock of {place}",
        join_seconds=None,
    )
    try:
        with refresh:
            yield lambda: _require(root, mine)
    finally:
        _release(root, mine)


def _take(root: RunRoot, place: str) -> Lease:
    now = datetime.now(UTC)
    owner = f"{_this_process(now)} ({uuid.uuid4().hex[:8]})"
    worker = _worker_id(root)
    with remote_files(root) as (files, top):
        found = _locks(files, f"{top}/{place}")
        if found:
            holder, age = _read(files, found[-1]), _age(files, found[-1], now)
            if holder.get("worker") != worker and age is not None and age < root.stale_seconds:
                raise _in_use(root, place, holder)
        number = int(found[-1].rpartition("-")[2]) + 1 if found else 1
        mine = Lease(place, number, owner, worker)
        path = f"{top}/{mine.name}"
        try:
            # Of several that try this number, one succeeds.
            with files.open(path, "xb") as file:
                file.write(_content(mine))
        except OSError as error:
            # If the answer to a write was lost, the client repeats it and meets our own object.
            if not files.exists(path):
                raise
            holder = _read(files, path)
            if holder.get("owner") != owner:
                raise _in_use(root, place, holder) from error
    return mine


def _refresh(root: RunRoot, mine: Lease) -> None:
    from fsspec.implementations.local import LocalFileSystem

    _require(root, mine)
    with remote_files(root) as (files, top):
        if isinstance(files, LocalFileSystem):
            # Written anew it would be empty for a moment, and that of nobody after a kill.
            os.utime(f"{top}/{mine.name}")
        else:
            files.pipe_file(f"{top}/{mine.name}", _content(mine))


def _require(root: RunRoot, mine: Lease) -> None:
    with remote_files(root) as (files, top):
        found = _locks(files, f"{top}/{mine.place}")
        holder = _read(files, found[-1]) if found else {}
        is_half_seen = not holder and found[-1:] == [f"{top}/{mine.name}"]
    # On a network's disk a lock may be seen half written; who takes one over takes a new number.
    if holder.get("owner") != mine.owner and not is_half_seen:
        raise DataError(
            f"{root.url}/{mine.place} was taken over by "
            f"{holder.get('owner', 'another process')}, because {mine.owner} did not refresh its "
            f"lock for {root.stale_seconds:g} s; no result of this process is kept, see "
            "[run] stale_lock_seconds"
        )


def _release(root: RunRoot, mine: Lease) -> None:
    """Remove the locks up to ours, ours last: until then no worker can take a number below it."""
    try:
        with remote_files(root) as (files, top):
            for path in _locks(files, f"{top}/{mine.place}"):
                if path <= f"{top}/{mine.name}":
                    files.rm_file(path)
    except DataError as error:
        log.warning("the lock of %s stays until it is stale: %s", mine.place, error)


def _locks(files: Any, folder: str) -> list[str]:
    """Paths of the lock objects; the last one holds."""
    return sorted(path for path in files.find(folder) if "/.lock-" in path)


def _read(files: Any, path: str) -> dict[str, str]:
    """The content of a lock object; empty if it is gone or incomplete."""
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


def _content(mine: Lease) -> bytes:
    return json.dumps(asdict(mine)).encode()


def _in_use(root: RunRoot, place: str, holder: dict[str, str]) -> DataError:
    return DataError(
        f"{root.url}/{place} is in use by {holder.get('owner', 'another process')}; wait for "
        f"it. If it is dead, its lock is free {root.stale_seconds:g} s after its last refresh"
    )


def _this_process(now: datetime) -> str:
    since = now.isoformat(timespec="seconds")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _worker_id(root: RunRoot) -> str:
    """The id of this worker's folder, unlike every other worker's."""
    file = root.folder / ".worker"
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")
