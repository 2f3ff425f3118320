"""The loop under faults at random moments: killed, without room for files, without its servers.

Every kill may come later than the one before it, by a factor, so that all ends on a busy machine,
too. The seed is printed; `REACTUNE_TEST_SEED` repeats a failure. What must hold afterwards: nothing
acknowledged is lost or double, no stage is done twice, and `status` tells the truth.
"""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa

from cli_fixtures import stored, write_rows
from loop_fixtures import SECRET, copy_of_trained, expose, install, reactions, take_in
from ollama_fixtures import ollama_server
from reactune.records import STAGES
from reactune.runs.folders import all_runs
from reactune.runs.manifest import ending, manifests
from reactune.store.database import opened_store, writing
from reactune.store.schema import rollouts
from registry_fixtures import aliases_of, mlflow_client
from server_fixtures import (
    free_port,
    lose,
    make_cluster,
    running_postgres,
    tracking_server,
    wait_until,
)
from service_processes import Load, check_nothing_acknowledged_is_lost, model_server, served
from serving_fixtures import rows_of, set_champion

pytestmark = pytest.mark.slow
RUN_KILLS, REVIEW_KILLS, SERVE_KILLS = 20, 10, 6  # at least; 12 more of `ingest`, 10 of `erase`
SERVE_OUTAGES = 10
REFUSED_FILES = 12  # sizes above which no file may grow, one after the other
GROWTH = 1.25
COMMAND = Path(sys.executable).with_name("reactune")


def kill_times(draw, first):
    """Seconds after which to kill, at random below a limit that grows from `first`."""
    for number in range(40):  # more than an hour from two seconds
        yield draw.uniform(0.3, first * GROWTH**number)


@pytest.fixture
def draw():
    """Random numbers of a seed that a failure shows."""
    seed = int(os.environ.get("REACTUNE_TEST_SEED") or random.SystemRandom().randrange(10**6))
    sys.stdout.write(f"REACTUNE_TEST_SEED={seed}\n")
    return random.Random(seed)


def start(folder, *arguments, limit=None):
    """A command as a process; with `limit`, none of its files may be larger in bytes."""

    def set_limit():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "REACTUNE_KEY": SECRET},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=set_limit,
    )


def finished(folder, *arguments, limit=None):
    """Code, output and errors of a command."""
    process = start(folder, *arguments, limit=limit)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def killed_or_ended(folder, seconds, *arguments):
    """Kill -9 after so many seconds; what it had printed, and its code."""
    process = start(folder, *arguments)
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
    return process.returncode, out


def stages_done(lines):
    """How often each stage said that it was done now: not before, and not left for later."""
    done = rf"^({'|'.join(STAGES)}) +(?! |waiting).*\(\d+ s\)$"
    return Counter(re.findall(done, "\n".join(lines), re.MULTILINE))


def assert_ended_once(config, said):
    """One run, all its stages, one version beside the base; status and MLflow agree.

    A process that was killed after its last stage has ended a run, so the next call begins another
    one, which waits for the verdict on the first.
    """
    run, *later = all_runs(config.run_root)
    assert [ending(each).outcome for each in later] == ["waiting"] * len(later)
    assert set(manifests(run)) == set(STAGES)
    assert max(stages_done(said).values()) == 1
    assert versions(config) == [1, 2]
    code, out, err = finished(config.folder, "status")
    assert code == 0, err
    assert re.search("champion tip-generator:v1, challenger tip-generator:v2 .*at 5%", out)
    code, out, err = finished(config.folder, "run")
    assert (code, "waiting" in out) == (0, True), err
    assert versions(config) == [1, 2]


def versions(config):
    """Numbers of the versions that MLflow shows."""
    with mlflow_client(config.tracking_uri) as client:
        found = client.search_model_versions(f"name = '{config.registry.model_name}'")
        return sorted(int(each.version) for each in found)


def test_a_run_killed_at_random_moments_is_done_once(tmp_path, draw):
    kills = 0
    for number in count():
        folder = tmp_path / str(number)
        folder.mkdir()
        config = install(folder)
        take_in(config, reactions(200))
        said = []
        for seconds in kill_times(draw, 5.0):
            code, out = killed_or_ended(folder, seconds, "run")
            said.append(out)
            assert code in (0, -signal.SIGKILL), out
            if code == 0:
                break
            kills += 1
        assert_ended_once(config, said)
        if kills >= RUN_KILLS:
            break


def on_trial_since(folder, *, hours):
    """A trained installation whose challenger is better, and whose rollout began long ago."""
    config = copy_of_trained(folder)
    began = datetime.now(UTC) - timedelta(hours=hours)
    with opened_store(config.store_url) as engine, writing(engine) as connection:
        is_open = rollouts.c.closed_at.is_(None)
        times = {"opened_at": began, "share_since": began}
        connection.execute(sa.update(rollouts).where(is_open).values(times))
    expose(config, 2_000, champion=0.2, challenger=0.8)
    return config


def test_a_review_killed_at_random_moments_promotes_once(tmp_path, draw):
    kills = 0
    for number in count():
        folder = tmp_path / str(number)
        config = on_trial_since(folder, hours=3)
        for seconds in kill_times(draw, 2.0):
            code, out = killed_or_ended(folder, seconds, "review")
            assert code in (0, -signal.SIGKILL), out
            if code == 0:
                break
            kills += 1
        code, out, err = finished(folder, "review")
        assert code == 0, err
        promotions = "SELECT count(*) FROM decisions WHERE verdict = 'promote' AND actor = 'review'"
        assert stored(folder, promotions) == [(1,)]
        assert stored(folder, "SELECT count(*) FROM rollouts WHERE closed_at IS NULL") == [(1,)]
        assert stored(folder, "SELECT count(*) FROM tip_scores WHERE arm <> ''") == [(2_000,)]
        assert aliases_of(config.registry, config.tracking_uri) == {"champion": 2}
        code, out, err = finished(folder, "status")
        assert code == 0, err
        assert "champion tip-generator:v2" in out
        assert "challenger" not in out.splitlines()[0]
        if kills >= REVIEW_KILLS:
            break


def test_a_service_killed_again_and_again_loses_and_doubles_nothing(tmp_path, draw):
    url, threads = f"sqlite:///{tmp_path / 'store.db'}", 8
    given, reacted = set(), {}
    for number in range(SERVE_KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        set_up = set_champion if number == 0 else lambda engine, model: None
        with served(url, folder, set_up=set_up) as (engine, address, process):
            with Load(address, threads=threads) as load:
                wait_until(lambda load=load: len(load.reacted) > 20)
                time.sleep(draw.uniform(0.0, 2.0))
                process.kill()
                process.wait(60)
                load.end()
            given |= load.given
            reacted |= load.reacted
            rows = {row["tip_id"]: row["dwell_ms"] for row in rows_of(engine)}
        assert given <= rows.keys()
        assert {tip_id: rows[tip_id] for tip_id in reacted} == reacted
        # Besides, only what was being answered when it was killed.
        assert len(rows) <= len(given) + threads * (number + 1)


def test_where_files_may_not_grow_a_run_says_so_in_one_line_and_goes_on_later(tmp_path, draw):
    config = install(tmp_path)
    take_in(config, reactions(200))
    before = stored(tmp_path, "SELECT count(*), count(DISTINCT tip_id) FROM tip_scores")
    said = []
    for _ in range(REFUSED_FILES):
        limit = round(10 ** draw.uniform(3.5, 8))
        code, out, err = finished(tmp_path, "run", limit=limit)
        said.append(out)
        assert "Traceback" not in err, (limit, err)
        if code == 0:
            break
        # An error of ours, or a library's process that the system ended.
        assert code == 1, (limit, code, err)
        assert err.strip().splitlines()[-1].startswith("reactune: "), (limit, err)
    code, out, err = finished(tmp_path, "run")
    assert code == 0, err
    if "waiting" not in out:
        assert_ended_once(config, [*said, out])
    assert stored(tmp_path, "SELECT count(*), count(DISTINCT tip_id) FROM tip_scores") == before


def test_an_ingest_killed_or_without_room_at_random_moments_takes_each_row_once(tmp_path, draw):
    config = install(tmp_path)
    rows = reactions(6_000)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    for number in range(12):
        if number % 3 == 2:
            code, _, err = finished(
                tmp_path, "ingest", str(file), limit=round(10 ** draw.uniform(4, 6.5))
            )
            assert "Traceback" not in err, err
            assert code in (0, 1), err
        else:
            killed_or_ended(tmp_path, draw.uniform(0.2, 3.0), "ingest", str(file))
    code, out, err = finished(tmp_path, "ingest", str(file))
    assert code == 0, (out, err)
    found = stored(tmp_path, "SELECT tip_id, tip_content, reaction FROM tip_scores")
    wanted = [(each["tip_id"], each["tip_content"], each["reaction"]) for each in rows]
    assert sorted(found) == sorted(wanted)
    assert config.folder == tmp_path


def test_an_erasure_killed_at_random_moments_leaves_nothing_of_the_user(tmp_path, draw):
    config = install(tmp_path)
    take_in(config, reactions(200))
    code, _, err = finished(tmp_path, "run")
    assert code == 0, err
    arguments = ("erase", "--user", "user-3", "--reason", "asked", "--allow-unknown")
    for _ in range(10):
        code, _ = killed_or_ended(tmp_path, draw.uniform(0.3, 4.0), *arguments)
        if code == 0:
            break
    code, out, err = finished(tmp_path, *arguments)
    assert code == 0, (out, err)
    gone = {each["tip_content"] for each in reactions(200) if each["user_id"] == "user-3"}
    texts = {row[0] for row in stored(tmp_path, "SELECT tip_content FROM tip_scores")}
    assert gone
    assert not gone & texts
    code, out, err = finished(tmp_path, "erase", "--verify", "--user", "user-3")
    assert code == 0, (out, err)


class Outages:
    """Stops and starts servers at random moments, in a thread; all are up at the end.

    `servers` are functions that give a context in which the server runs; leaving it must stop it.
    """

    def __init__(self, draw, servers, *, first, longest):
        self.draw, self.longest = draw, longest
        self.servers, self.running, self.count = servers, {}, Counter()
        self.times = kill_times(draw, first)
        self.over, self.all_run, self.left = (threading.Event() for _ in range(3))
        self.thread = threading.Thread(target=self._go)
        self.failed = None

    def _start(self, name):
        stack = contextlib.ExitStack()
        stack.enter_context(self.servers[name]())
        self.running[name] = stack

    def _go(self):
        try:
            while not self.over.wait(next(self.times)):
                name = self.draw.choice(sorted(self.servers))
                self.running.pop(name).close()
                self.count[name] += 1
                self.over.wait(self.draw.uniform(0.2, self.longest))
                self._start(name)
        except BaseException as failed:
            self.failed = failed
            raise
        finally:
            self.all_run.set()
        # The system ends a server when the thread that started it ends.
        self.left.wait()

    def __enter__(self):
        for name in self.servers:
            self._start(name)
        self.thread.start()
        return self

    def end(self):
        """No more outages; all servers run."""
        self.over.set()
        self.all_run.wait()
        sys.stdout.write(f"outages: {dict(self.count)}\n")
        assert self.failed is None, self.failed

    def __exit__(self, *error):
        self.over.set()
        self.all_run.wait()
        for stack in self.running.values():
            stack.close()
        self.left.set()
        self.thread.join()


@contextlib.contextmanager
def crashing_postgres(folder, port, *, options=("-c", "fsync=off")):
    """PostgreSQL that is lost at the end, as with its machine."""
    with running_postgres(folder, port=port, options=options) as server:
        try:
            yield
        finally:
            lose(server)


@pytest.fixture
def cluster():
    """A folder with a PostgreSQL cluster, and a port for it."""
    folder = Path(tempfile.mkdtemp(prefix="reactune-postgres-"))
    make_cluster(folder)
    yield folder, free_port()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.postgres
def test_a_run_whose_servers_come_and_go_ends_and_is_done_once(tmp_path, draw, cluster):
    folder, port = cluster
    mlflow_port, ollama_port = free_port(), free_port()
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    here, models = tmp_path / "installation", tmp_path / "ollama"
    here.mkdir()
    models.mkdir()
    servers = {
        "PostgreSQL": lambda: crashing_postgres(folder, port),
        "MLflow": lambda: tracking_server(tmp_path / "mlflow", port=mlflow_port),
        "Ollama": lambda: ollama_server(models, port=ollama_port),
    }
    changes = {
        "store": {"url": url},
        "registry": {"tracking_uri": f"http://127.0.0.1:{mlflow_port}"},
        "serve": {"runtime": "ollama", "ollama_url": f"http://127.0.0.1:{ollama_port}"},
    }
    with running_postgres(folder, port=port) as server:
        config = install(here, **changes)
        take_in(config, reactions(200))
        server.terminate()
        server.wait(60)
    said, code = [], None
    with Outages(draw, servers, first=10.0, longest=3.0) as outages:
        while code != 0:
            code, out, err = finished(here, "run")
            said.append(out)
            assert "Traceback" not in err, err
            assert code in (0, 1), err
            if code == 1:
                assert err.strip().splitlines()[-1].startswith("reactune: "), err
        outages.end()
        assert_ended_once(config, said)
        with opened_store(url) as engine, engine.connect() as connection:
            query = sa.text("SELECT count(*), count(DISTINCT tip_id) FROM tip_scores")
            assert tuple(connection.execute(query).one()) == (200, 200)


@pytest.mark.postgres
def test_a_service_whose_servers_come_and_go_loses_and_doubles_nothing(tmp_path, draw, cluster):
    folder, port = cluster
    model_port = free_port()
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    servers = {
        "PostgreSQL": lambda: crashing_postgres(folder, port, options=()),
        "the model server": lambda: model_server(model_port, tmp_path),
    }
    with (
        Outages(draw, servers, first=4.0, longest=2.0) as outages,
        served(url, tmp_path, model_port=model_port) as (engine, address, process),
        Load(address) as load,
    ):
        wait_until(lambda: outages.count.total() >= SERVE_OUTAGES, seconds=300)
        outages.end()
        before = len(load.reacted)
        wait_until(lambda: len(load.reacted) > before + 20)
        load.end()
        assert process.poll() is None
        check_nothing_acknowledged_is_lost(engine, load)


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A file system of so many megabytes; skipped where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(stack, file):
    """Take all the room there is on the disk of a file, until the stack is left."""
    stack.callback(file.unlink)
    with file.open("wb", buffering=0) as ballast:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(b"x" * size)


def test_on_a_disk_that_is_full_at_random_moments_nothing_is_lost_or_double(tmp_path, draw):
    disk = tmp_path / "disk"
    with small_disk(disk, 800):
        here = disk / "installation"
        here.mkdir()
        config = install(here)
        rows = reactions(200)
        file = write_rows(tmp_path / "rows.jsonl", rows)
        said = []
        for arguments in (("ingest", str(file)), ("run",)):
            for seconds in kill_times(draw, 4.0):
                with contextlib.ExitStack() as stack:
                    timer = threading.Timer(seconds, fill, (stack, disk / "ballast"))
                    timer.start()
                    code, out, err = finished(here, *arguments)
                    timer.cancel()
                    timer.join()
                said.append(out)
                assert "Traceback" not in err, err
                assert code in (0, 1), err
                if code == 0:
                    break
                assert err.strip().splitlines()[-1].startswith("reactune: "), err
        assert_ended_once(config, said)
        found = stored(here, "SELECT tip_id, tip_content, reaction FROM tip_scores")
        wanted = [(each["tip_id"], each["tip_content"], each["reaction"]) for each in rows]
        assert sorted(found) == sorted(wanted)
