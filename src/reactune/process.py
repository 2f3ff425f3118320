"""Child processes that do not outlive the one that started them.

Leaves what the children do to their own modules.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SPINS = "1000"  # of libgomp, OpenMP's library in PyTorch and llama.cpp
PARENT = "REACTUNE_PARENT"  # process id of the one that starts the child


def child_environment() -> dict[str, str]:
    """The environment of a child that computes: ours, who its parent is, and how threads wait.

    They spin for some fifty microseconds, then sleep. Threads that go on spinning starve each
    other on a busy machine; those that sleep at once lose two thirds of their time to waking up.
    `bench/threads.py` shows both.
    """
    return {"GOMP_SPINCOUNT": SPINS, **os.environ, PARENT: str(os.getpid())}


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends, however that ends.

    The parent is the one that `child_environment` names; if it ended before this call, so does
    this process, now. Elsewhere nothing happens: the parent's own clean-up has to do.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = int(os.environ.pop(PARENT, os.getppid()))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def become(command: list[str]) -> None:
    """Turn into another program that dies with our parent; its children can die with it.

    The wish to be killed outlives the exchange of programs, and so does the process id, which
    the children then look for.
    """
    die_with_parent()
    os.environ[PARENT] = str(os.getpid())
    os.execv(command[0], command)


if __name__ == "__main__":
    become(sys.argv[1:])
