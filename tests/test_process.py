import threading
import time

import pytest

from reactune.errors import DataError
from reactune.process import Repeater
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
