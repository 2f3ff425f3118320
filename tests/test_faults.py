"""The loop under faults at random moments: killed, without room for files, without its servers.

The seed is printed; `REACTUNE_TEST_SEED` repeats a failure. What must hold afterwards: nothing
acknowledged is lost or double, no stage is done twice, and `status` tells the truth.
"""

import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cli_fixtures import stored, write_rows
from loop_fixtures import SECRET, install, reactions, take_in
from reactune.records import STAGES
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests
from registry_fixtures import mlflow_client

pytestmark = pytest.mark.slow
KILLS = 50  # of `run`, in all
REFUSED_FILES = 12  # sizes above which no file may grow, one after the other
COMMAND = Path(sys.executable).with_name("reactune")


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
    """How often each stage said that it was done now (not before)."""
    done = re.findall(rf"^({'|'.join(STAGES)}) .*\(\d+ s\)$", "\n".join(lines), re.MULTILINE)
    return Counter(done)


def assert_ended_once(config, said):
    """One run, all its stages, one version beside the base; status and MLflow agree."""
    (run,) = all_runs(config.run_root)
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
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = install(folder)
        take_in(config, reactions(200))
        said, code = [], None
        while code != 0:
            # Later and later, so that the longest stage has its turn on a slow machine, too.
            latest = 5.0 + 2.0 * len(said)
            code, out = killed_or_ended(folder, draw.uniform(0.5, latest), "run")
            said.append(out)
            assert code in (0, -signal.SIGKILL), out
            kills += code != 0
            assert kills <= 10 * KILLS, "it never came to its end"
        assert_ended_once(config, said)
        if kills >= KILLS:
            break


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
