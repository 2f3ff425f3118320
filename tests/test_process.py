import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from reactune.errors import DataError
from reactune.process import (
    PARENT,
    Repeater,
    child_environment,
    worker_pool,
)
from server_fixtures import wait_until


def test_a_task_is_repeated_from_the_start_until_the_block_ends():
    calls = []
    with Repeater(lambda: calls.append(time.monotonic()), seconds=0.01, name="task") as repeater:
        wait_until(lambda: len(calls) >= 3, seconds=10)
        assert repeater.thread.daemon
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count
    assert not repeater.thread.is_alive()


def test_between_two_calls_lie_the_seconds():
    calls = []
    with Repeater(lambda: calls.append(time.monotonic()), seconds=0.1, name="task"):
        wait_until(lambda: len(calls) >= 3, seconds=10)
    assert calls[1] - calls[0] >= 0.09
    assert calls[2] - calls[1] >= 0.09


def test_closing_does_not_wait_for_the_seconds():
    started = time.monotonic()
    with Repeater(lambda: None, seconds=60, name="task"):
        pass
    assert time.monotonic() - started < 5


def test_an_error_is_logged_once_until_its_message_changes_or_the_task_succeeds(caplog):
    outcomes = ["a", "a", "a", None, "a", "b", "b"]
    left = list(outcomes)

    def task():
        message = left.pop(0) if left else None
        if message:
            raise DataError(message)

    with Repeater(task, seconds=0.001, name="rollout watcher"):
        wait_until(lambda: not left, seconds=10)
    assert [record.getMessage() for record in caplog.records] == [
        "rollout watcher: a",
        "rollout watcher: a",
        "rollout watcher: b",
    ]


@pytest.mark.parametrize(("join_seconds", "is_alive"), [(0.05, True), (None, False)])
def test_a_call_under_way_is_waited_for_as_long_as_is_said(join_seconds, is_alive):
    begun, finish = threading.Event(), threading.Event()

    def slow():
        begun.set()
        finish.wait(0.5 if join_seconds is None else 20)

    repeater = Repeater(slow, seconds=60, name="slow", join_seconds=join_seconds)
    assert begun.wait(10)
    repeater.close()
    assert repeater.thread.is_alive() == is_alive
    finish.set()


def test_a_child_knows_its_parent_and_keeps_the_environment_it_is_given(monkeypatch):
    monkeypatch.setenv("OF_THE_APP", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    environment = child_environment()
    assert (environment["OF_THE_APP"], environment["GOMP_SPINCOUNT"]) == ("1", "7")
    assert environment[PARENT] == str(os.getpid())
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert child_environment()["GOMP_SPINCOUNT"] == "1000"


LINE = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
# A parent that starts a child in a session of its own, by `python -m reactune.process`.
STARTS = f"""
import subprocess, sys
from reactune.process import child_environment
command = [sys.executable, "-m", "reactune.process", sys.executable, "-c", {LINE!r}]
subprocess.run(command, env=child_environment(), start_new_session=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills with the parent")
def test_a_program_that_takes_the_place_of_a_child_dies_with_the_parent():
    parent = subprocess.Popen([sys.executable, "-c", STARTS], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.ppid() == parent.pid
    parent.kill()
    assert psutil.wait_procs([child], timeout=30)[1] == []
    parent.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux kills with the parent")
def test_a_child_whose_parent_has_ended_ends_at_once():
    environment = {**os.environ, PARENT: "1" if os.getpid() != 1 else "2"}
    code = "from reactune.process import die_with_parent; die_with_parent(); print('alive')"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "")


def test_workers_of_a_pool_multiply_with_one_thread_each_unless_the_user_says_otherwise(
    monkeypatch,
):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with worker_pool(2) as pool:
        found = [pool.submit(os.getenv, f"{name}_NUM_THREADS").result()
                 for name in ("OPENBLAS", "MKL")]  # fmt: skip
    assert found == ["1", "3"]
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    assert os.environ["MKL_NUM_THREADS"] == "3"
