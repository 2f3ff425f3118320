"""Background work that ends with its owner: child processes, and threads that repeat a task.

And what a process takes from its environment: how threads wait, and which proxy is asked.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

from reactune.errors import ReactuneError, hide_passwords

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SPINS = "1000"  # of libgomp, OpenMP's library in PyTorch and llama.cpp
PARENT = "REACTUNE_PARENT"  # process id of the one that starts the child

OWN_MACHINE = ("localhost", "127.0.0.1", "::1")
MATRIX_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

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

    Its threads wait as those of `limit_spinning`.
    """
    return {"GOMP_SPINCOUNT": SPINS, **os.environ, PARENT: str(os.getpid())}


def limit_spinning() -> None:
    """Let OpenMP's threads of this process spin for some fifty microseconds, then sleep.

    Threads that spin longer starve each other on a busy machine, those that sleep at once lose two
    thirds of their time to waking up (`bench/threads.py`). Called before PyTorch is imported; a
    value that the user has set stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def ask_own_machine_directly() -> None:
    """Keep a proxy of the environment out of requests to this machine, here and in children.

    A model server or MLflow on this machine cannot be reached through `HTTP_PROXY`, and programs in
    Go never try to; Python's libraries do, unless `NO_PROXY` names the host.
    """
    proxies = [name for name in os.environ if name.lower().endswith("_proxy") and os.environ[name]]
    if {name.lower() for name in proxies} <= {"no_proxy"}:
        return
    known = os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")
    excepted = [each.strip() for each in known if each.strip()]
    if "*" not in excepted:
        excepted += [host for host in OWN_MACHINE if host not in excepted]
    # Libraries differ in which of the two they read.
    os.environ.update(dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(excepted)))


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL (`HTTP_PROXY`, `NO_PROXY`, ...)."""
    place = urlsplit(url)
    if proxy_bypass(place.hostname or ""):
        return None
    return getproxies().get(place.scheme)


def by_proxy(url: str) -> str:
    """How an error names the proxy on the way to a URL; nothing where there is none."""
    proxy = proxy_of(url)
    return f" by way of the proxy {hide_passwords(proxy)} (NO_PROXY excepts hosts)" if proxy else ""


def multiply_with_one_thread() -> list[str]:
    """Let numpy multiply matrices with one thread, here and in children; the variables set for it.

    For processes that do many small products beside others: its threads would wait for each other
    and take twice the processor time (`bench/pii.py`). Called before numpy is imported; a value
    that the user has set stays.
    """
    added = [name for name in MATRIX_THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    return added


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
