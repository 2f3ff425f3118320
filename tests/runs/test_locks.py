"""Locks on one machine and of workers without a common disk, on S3 and behind `file://`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from reactune.config.settings import load
from reactune.errors import DataError
from reactune.runs.locks import hold_stage, hold_stages, lease, lock
from reactune.runs.remote import LOCAL, RunRoot, remote_files, run_root

PLACE = "20260102-030405-0000/train"
HOLD = """
import sys
from pathlib import Path
from reactune.runs.locks import lease
from reactune.runs.remote import RunRoot
root = RunRoot(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
with lease(root, sys.argv[4]) as require_held:
    print("held", flush=True)
    sys.stdin.readline()
    require_held()
    print("still", flush=True)
"""


@pytest.fixture
def url(request, tmp_path):
    """Where workers meet: on a real S3 server, or in a folder if a test asks for `file`."""
    if getattr(request, "param", "s3") == "s3":
        return request.getfixturevalue("s3_url")
    return (tmp_path / "shared").as_uri()


@pytest.fixture
def holder(tmp_path, url):
    """Starts a process that holds the place until a line is written to it."""
    started = []

    def start(name, stale_seconds):
        command = [sys.executable, "-c", HOLD, tmp_path / name, url, str(stale_seconds), PLACE]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, **pipes)
        started.append(process)
        assert process.stdout.readline() == "held\n", process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def locks(root):
    with remote_files(root) as (files, top):
        return [path for path in files.find(f"{top}/{PLACE}") if "lock" in path]


@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_of_two_at_once_the_second_is_refused_with_the_owner_named(holder, tmp_path, url):
    first = holder("first", 60)
    with (
        pytest.raises(DataError, match=rf"{PLACE} is in use by process {first.pid} on .* since"),
        lease(RunRoot(tmp_path / "second", url, 60), PLACE),
    ):
        pass
    first.communicate("\n")
    assert first.returncode == 0
    second = RunRoot(tmp_path / "second", url, 60)
    assert locks(second) == []
    with lease(second, PLACE):
        assert len(locks(second)) == 1


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_what_a_killed_process_of_this_worker_left_is_taken_over_at_once(holder, tmp_path, url):
    first = holder("first", 60)
    first.kill()
    first.wait()
    with lease(RunRoot(tmp_path / "first", url, 60), PLACE) as require_held:
        require_held()


def test_a_dead_workers_lock_is_taken_over_once_it_is_stale(holder, tmp_path, url):
    first = holder("first", 3)
    second = RunRoot(tmp_path / "second", url, 3)
    first.kill()
    first.wait()
    with pytest.raises(DataError, match="its lock is free 3 s after"), lease(second, PLACE):
        pass
    deadline = time.monotonic() + 60
    while True:
        try:
            with lease(second, PLACE) as require_held:
                require_held()
                assert [path[-6:] for path in locks(second)] == ["000001", "000002"]
            break
        except DataError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert locks(second) == []


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_a_lock_that_is_held_for_long_does_not_get_stale(holder, tmp_path, url):
    first = holder("first", 3)
    second = RunRoot(tmp_path / "second", url, 3)
    with remote_files(second) as (files, _):
        (path,) = locks(second)
        taken_at = files.modified(path)
        while files.modified(path) - taken_at < timedelta(seconds=3):
            time.sleep(0.2)
    with pytest.raises(DataError, match=f"process {first.pid} on"), lease(second, PLACE):
        pass


def test_a_worker_that_was_stopped_while_another_took_over_gets_an_error(holder, tmp_path, url):
    first = holder("first", 3)
    os.kill(first.pid, signal.SIGSTOP)
    second = RunRoot(tmp_path / "second", url, 3)
    deadline = time.monotonic() + 60
    while True:
        try:
            with lease(second, PLACE) as require_held:
                os.kill(first.pid, signal.SIGCONT)
                output, errors = first.communicate("\n")
                require_held()
            break
        except DataError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert (output, first.returncode) == ("", 1)
    assert f"was taken over by process {os.getpid()} on" in errors


def leave_stale_lock(tmp_path, url):
    """What a dead worker left a minute ago; only a folder's clock can be set back."""
    with remote_files(RunRoot(tmp_path, url)) as (files, top):
        file = f"{top}/{PLACE}/.lock-000007"
        files.makedirs(f"{top}/{PLACE}", exist_ok=True)
        files.pipe_file(file, json.dumps({"owner": "process 1", "worker": "elsewhere"}).encode())
    past = (datetime.now(UTC) - timedelta(seconds=61)).timestamp()
    os.utime(file, (past, past))


@pytest.mark.parametrize("url", ["file", "s3"], indirect=True)
def test_of_many_at_once_one_takes_the_lock(tmp_path, url):
    if url.startswith("file:"):
        leave_stale_lock(tmp_path / "dead", url)
    ready, done, held = threading.Barrier(8), threading.Barrier(8), []

    def take(number):
        root = RunRoot(tmp_path / f"worker-{number}", url, 60)
        ready.wait(30)
        try:
            with lease(root, PLACE):
                held.append(number)
                done.wait(30)
        except DataError:
            done.wait(30)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert locks(RunRoot(tmp_path / "late", url)) == []


def test_a_folder_of_one_machine_needs_no_lease(tmp_path):
    with lease(RunRoot(tmp_path), PLACE) as require_held:
        require_held()
    assert list(tmp_path.iterdir()) == []


def test_a_stage_is_held_against_other_processes_and_its_folder_is_made(tmp_path):
    run = tmp_path / "20260102-030405-0000"
    with hold_stage(LOCAL, run, "train") as require_held:
        require_held()
        assert (run / "train" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with (
            pytest.raises(
                DataError, match=r"train is in use by process \d+ .*; wait until it ends"
            ),
            hold_stage(LOCAL, run, "train"),
        ):
            pass
        with hold_stage(LOCAL, run, "extract"):
            pass
    with hold_stage(LOCAL, run, "train"):
        pass


def test_of_several_stages_none_stays_held_where_one_is_in_use(tmp_path):
    run = tmp_path / "20260102-030405-0000"
    with hold_stage(LOCAL, run, "train"):
        with (
            pytest.raises(DataError, match="train is in use"),
            hold_stages(LOCAL, run, ["extract", "train"]),
        ):
            pass
        with hold_stages(LOCAL, run, ["extract", "dataset"]):
            pass
    with hold_stages(LOCAL, run, ["extract", "dataset", "train"]):
        pass


def test_a_lock_names_its_last_owner_alone(tmp_path):
    file = tmp_path / ".lock"
    file.write_text("process 1 on a host with a very long name, since some time ago" * 3)
    with lock(file):
        assert file.read_text().startswith(f"process {os.getpid()} on ")
        assert "some time ago" not in file.read_text()


@pytest.mark.parametrize("url", ["file"], indirect=True)
@pytest.mark.parametrize(("seconds", "is_free"), [(60, True), (62, False)])
def test_stale_lock_seconds_decides_when_the_lock_of_a_dead_worker_is_free(
    tmp_path, url, seconds, is_free
):
    """The lock was refreshed 61 seconds ago."""
    leave_stale_lock(tmp_path / "dead", url)
    settings = tmp_path / "reactune.toml"
    settings.write_text(f'[run]\nroot = "{url}"\nstale_lock_seconds = {seconds}\n')
    root = run_root(load(settings, (f"model.cache_dir={tmp_path / 'cache'}",)))
    assert root.stale_seconds == seconds
    if is_free:
        with lease(root, PLACE) as require_held:
            require_held()
    else:
        message = rf"in use by process 1; wait for it\. If it is dead, its lock is free {seconds} s"
        with pytest.raises(DataError, match=message), lease(root, PLACE):
            pass


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_a_lock_object_has_the_fields_that_earlier_versions_read(tmp_path, url):
    root = RunRoot(tmp_path / "one", url, 60)
    with lease(root, PLACE), remote_files(root) as (files, top):
        (path,) = locks(root)
        values = json.loads(files.cat_file(path))
    assert path == f"{top}/{PLACE}/.lock-000001"
    assert (values["place"], values["number"]) == (PLACE, 1)
    assert values["owner"].startswith(f"process {os.getpid()} on ")
    assert values["worker"] == (root.folder / ".worker").read_text()


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_a_lock_in_a_folder_is_whole_while_it_is_refreshed(tmp_path, url):
    root = RunRoot(tmp_path / "one", url, 0.01)
    with lease(root, PLACE) as require_held, remote_files(root) as (files, _):
        (path,) = locks(root)
        before = os.stat(path).st_mtime_ns
        sizes = {len(files.cat_file(path)) for _ in range(2_000)}
        require_held()
        assert sizes == {len(files.cat_file(path))}
        assert os.stat(path).st_mtime_ns > before


@pytest.mark.parametrize("url", ["file"], indirect=True)
@pytest.mark.parametrize("content", [b"", b"{", b"{}"])
def test_an_incomplete_lock_of_another_worker_holds_until_it_is_stale(tmp_path, url, content):
    root = RunRoot(tmp_path / "one", url, 60)
    with remote_files(root) as (files, top):
        files.makedirs(f"{top}/{PLACE}", exist_ok=True)
        files.pipe_file(f"{top}/{PLACE}/.lock-000003", content)
    with pytest.raises(DataError, match="in use by another process"), lease(root, PLACE):
        pass
    past = (datetime.now(UTC) - timedelta(seconds=61)).timestamp()
    os.utime(f"{top}/{PLACE}/.lock-000003", (past, past))
    with lease(root, PLACE):
        assert [path[-6:] for path in locks(root)] == ["000003", "000004"]
    assert locks(root) == []


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_the_check_of_a_lease_names_who_took_it_over(tmp_path, url):
    root = RunRoot(tmp_path / "one", url, 60)
    with lease(root, PLACE) as require_held:
        with remote_files(root) as (files, top):
            other = json.dumps({"owner": "process 7 on elsewhere"}).encode()
            files.pipe_file(f"{top}/{PLACE}/.lock-000002", other)
        with pytest.raises(DataError, match=r"taken over by process 7 .* see \[run\] stale_lock"):
            require_held()
    assert [path[-6:] for path in locks(root)] == ["000002"]


@pytest.mark.parametrize("url", ["file"], indirect=True)
@pytest.mark.parametrize("content", [b"", b'{"owner": "pro'])
def test_a_lock_that_is_being_refreshed_is_held_and_one_of_a_higher_number_is_not(
    tmp_path, url, content
):
    root = RunRoot(tmp_path / "one", url, 60)
    with lease(root, PLACE) as require_held, remote_files(root) as (files, top):
        (path,) = locks(root)
        files.pipe_file(path, content)
        require_held()
        files.pipe_file(f"{top}/{PLACE}/.lock-000002", content)
        with pytest.raises(DataError, match="was taken over by another process"):
            require_held()
