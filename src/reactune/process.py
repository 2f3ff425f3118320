"""Background work that ends with its owner: child processes, and threads that repeat a task."""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self
from weakref import WeakSet

from reactune.environment import SPINS, multiply_with_one_thread
from reactune.errors import ReactuneError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PARENT = "REACTUNE_PARENT"  # process id of the one that starts the child

log = logging.getLogger(__name__)


class Forkable(Protocol):
    """What has threads or connections that a forked child does not have, or must not use."""

    def after_fork(self) -> None:
        """Called in the child, where no other thread runs: note it, and do nothing that waits."""


_forkable: "WeakSet[Forkable]" = WeakSet()


def tell_of_forks(owner: Forkable) -> None:
    """Call `after_fork` of `owner`, while it lives, in every child that this process forks."""
    _forkable.add(owner)


def _after_fork() -> None:
    for each in _forkable:
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)


class Repeater:
    """Calls `task` every `seconds` in a daemon thread until closed; the first call comes at once.

    A `ReactuneError` of the task is logged when its message changes, and the task is tried again.
    `close` waits `join_seconds` for a call that is under way; None: until it returns.
    """

    def __init__(
        self,
        task: Callable[[], object],
        *,
        seconds: float,
        name: str,
        join_seconds: float | None = 5.0,
    ) -> None:
        self._task, self._seconds, self._join_seconds = task, seconds, join_seconds
        self._stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name=name)
        self.thread.start()

    def close(self) -> None:
        """Call the task no more."""
        self._stopped.set()
        self.thread.join(self._join_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        logged = ""
        while not self._stopped.is_set():
            try:
                self._task()
                logged = ""
            except ReactuneError as error:
                if str(error) != logged:
                    logged = str(error)
                    log.warning("%s: %s", self.thread.name, logged)
            self._stopped.wait(self._seconds)


def child_environment() -> dict[str, str]:
    """The environment of a child that computes: ours, its parent's id, and how its threads wait.

    Its threads wait as those of `environment.limit_spinning`.
    """
    return {"GOMP_SPINCOUNT": SPINS, **os.environ, PARENT: str(os.getpid())}


@contextmanager
def worker_pool(workers: int, **options: Any) -> "Iterator[ProcessPoolExecutor]":
    """A pool of so many processes, each of which multiplies matrices with one thread.

    `options` are those of `ProcessPoolExecutor`.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    added = multiply_with_one_thread()
    try:
        # A fork would copy threads of DuckDB and Arrow that hold locks.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), **options) as pool:
            yield pool
    finally:
        for name in added:
            os.environ.pop(name, None)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that ends.

    The parent is the process that `child_environment` names; if it ended before this call, this
    process ends now. On other systems nothing happens, and the parent has to clean up.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = int(os.environ.pop(PARENT, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def become(command: list[str]) -> None:
    """Run a program in place of this one; it dies with our parent, and its children with it.

    The signal that was asked for survives `execv`, and so does the process id, which its children
    compare with their parent's.
    """
    die_with_parent()
    os.environ[PARENT] = str(os.getpid())
    os.execv(command[0], command)


if __name__ == "__main__":
    become(sys.argv[1:])
