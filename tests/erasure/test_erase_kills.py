"""An erasure that is killed anywhere is finished by calling it again, and leaves nothing."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from people_fixtures import ANNA, NOW, RING, install, populate
from reactune import deployment
from reactune.erasure import requests
from reactune.erasure.erase import finish, request_erasure
from reactune.erasure.verify import verify
from reactune.reward.cache import CHUNKS
from reactune.runs.folders import all_runs
from reactune.runs.manifest import read_manifest, recorded_manifests
from reactune.store.database import reading

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
UNTIL = {"20260301-080000-0000": "deploy", "20260302-080000-0000": "train"}


def erase(config):
    """What `reactune erase --user` does."""
    request_erasure(config, RING, [ANNA], reason="asked", now=NOW, say=print)
    finish(config, RING, now=NOW, say=print)


def in_a_child(work, *, kill_at):
    """Do it in a process that kills itself before its n-th change; how many changes it came to.

    None, if it was killed.
    """
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        changes = 0

        def count():
            nonlocal changes
            changes += 1
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def heard(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int)
            if event in CHANGES or (writes and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                count()

        sys.addaudithook(heard)
        sa.event.listen(sa.Engine, "commit", lambda connection: count())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            work()
            os.write(there, str(changes).encode())
        finally:
            os._exit(0)
    os.close(there)
    _, status = os.waitpid(child, 0)
    with os.fdopen(here) as said:
        told = said.read()
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert told, "the erasure failed"
    return int(told)


class Installation:
    """A folder with people in the database and in two runs, put back as it was for each try."""

    def __init__(self, folder, root):
        self.folder, self.saved = folder / "now", folder / "saved"
        self.config = install(self.folder, run={"root": root.format(folder=self.folder)})
        populate(self.config, runs=UNTIL)
        # Left by a stage that was killed long ago; no manifest names it.
        run = all_runs(self.config.run_root)[0]
        (run / "dataset" / "kto.jsonl.part").write_text(ANNA)
        (run / "reward" / CHUNKS).mkdir(parents=True)
        (run / "reward" / CHUNKS / "00001.parquet").write_text(ANNA)
        shutil.copytree(self.folder, self.saved)
        self.changes = in_a_child(lambda: erase(self.config), kill_at=None)

    def put_back(self):
        shutil.rmtree(self.folder)
        shutil.copytree(self.saved, self.folder)


ROOTS = [
    pytest.param("runs", id="folder"),
    pytest.param("file://{folder}/shared", id="url", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=ROOTS)
def installation(request, tmp_path_factory):
    return Installation(tmp_path_factory.mktemp("kills"), request.param)


def check_all_is_clean(config):
    report = verify(config, RING, [ANNA])
    assert (report.traces, report.unchecked) == ([], [])
    whole, ended = all_runs(config.run_root)
    root = Path(config.run_url.removeprefix("file://")) if config.run_url else config.run_root
    for run in (whole, ended):
        assert not list((root / run.name).rglob(".erasing*"))
    stated = recorded_manifests(whole)
    assert list(stated) == ["extract", "dataset", "reward", "train", *list(stated)[4:]]
    for stage, manifest in stated.items():
        assert read_manifest(whole / stage) == manifest, f"{stage} is not as it says"
    digest = stated["extract"].outputs["labelled.parquet"]
    assert stated["dataset"].inputs == {"extract/labelled.parquet": digest}
    for manifest in (stated[stage] for stage in ("extract", "dataset", "reward", "train")):
        assert [each["rows"] for each in manifest.erased] == [7]
    assert {name: each.outcome for name, each in recorded_manifests(ended).items()} == {
        "extract": "refused"
    }
    with deployment.database(config) as engine, reading(engine) as connection:
        assert requests.open_erasures(connection) == ()


def survive(installation, kill_at):
    installation.put_back()
    assert in_a_child(lambda: erase(installation.config), kill_at=kill_at) is None
    finish(installation.config, RING, now=NOW, say=print)
    if verify(installation.config, RING, [ANNA]).traces:
        # Killed before anything was written down: whoever asked has had no answer, and asks again.
        with deployment.database(installation.config) as engine, reading(engine) as connection:
            assert requests.all_erasures(connection) == ()
        erase(installation.config)
    check_all_is_clean(installation.config)


def test_an_erasure_that_nobody_kills_leaves_nothing(installation):
    installation.put_back()
    assert verify(installation.config, RING, [ANNA]).traces != []
    erase(installation.config)
    check_all_is_clean(installation.config)
    assert installation.changes > 50


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1))
def test_killed_between_any_two_changes_it_is_finished_by_the_next_call(installation, place):
    survive(installation, 1 + round(place * (installation.changes - 1)))


@pytest.mark.slow
def test_killed_before_every_single_change_it_is_finished_by_the_next_call(installation):
    for kill_at in range(1, installation.changes + 1):
        survive(installation, kill_at)


@pytest.mark.slow
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.lists(st.floats(0, 1), min_size=2, max_size=3))
def test_killed_again_and_again_it_is_finished_in_the_end(installation, places):
    installation.put_back()
    for place in places:
        kill_at = 1 + round(place * (installation.changes - 1))
        # Not killed where less than that was left to do.
        in_a_child(lambda: erase(installation.config), kill_at=kill_at)
    erase(installation.config)
    report = verify(installation.config, RING, [ANNA])
    assert (report.traces, report.unchecked) == ([], [])
