import json
import os
import signal
import subprocess
import sys
from datetime import UTC, date, datetime

import pytest

from reactune.config.sections import PromptConfig
from reactune.config.settings import load
from reactune.errors import DataError
from reactune.runs.folders import (
    StageResult,
    find_run,
    new_run,
    prompt_of_run,
    run_id_at,
    run_stage,
    unfinished_run,
)
from reactune.runs.manifest import ending, manifests
from reactune.tracking import start_run

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path, {"a": 1}, run_id=run_id_at(NOW))


def stage(run, name="extract", *, text="x", calls=None, settings=None, inputs=None, **result):
    def work(folder):
        if calls is not None:
            calls.append(name)
        (folder / "out.txt").write_text(text)
        return StageResult("done", outputs=("out.txt",), **result)

    return run_stage(run, name, work, inputs=inputs or {}, settings=settings or {})


def test_templates_are_told_the_day_on_which_a_run_began(tmp_path, run):
    asked = PromptConfig()
    assert prompt_of_run(run, asked).date == "2026-01-02"  # a run of release 0.1 recorded none
    recorded = {"prompt": {"date": "2026-01-01"}}
    other = new_run(tmp_path, recorded, run_id=run_id_at(NOW.replace(hour=4)))
    assert prompt_of_run(other, asked).date == "2026-01-01"
    named = PromptConfig(date="2025-12-24")
    assert prompt_of_run(other, named) == named


def test_a_new_run_records_the_day(tmp_path):
    config = load(None).model_copy(update={"folder": tmp_path})
    before = datetime.now(UTC).date()
    run = start_run(config)
    day = json.loads((run / "config.json").read_text())["prompt"]["date"]
    assert before <= date.fromisoformat(day) <= datetime.now(UTC).date()
    assert prompt_of_run(run, config.prompt).date == day


def test_a_finished_stage_is_not_done_again(run):
    calls = []
    assert stage(run, calls=calls)[1]
    assert not stage(run, calls=calls)[1]
    assert calls == ["extract"]


def test_a_stage_is_done_again_when_a_setting_an_input_or_its_output_changed(run, tmp_path):
    calls = []
    source = tmp_path / "in.txt"
    source.write_text("1")
    one, two = {"train": {"seed": 1}}, {"train": {"seed": 2}}
    stage(run, calls=calls, inputs={"in": source}, settings=one)
    stage(run, calls=calls, inputs={"in": source}, settings=two)
    source.write_text("2")
    stage(run, calls=calls, inputs={"in": source}, settings=two)
    (run / "extract" / "out.txt").write_text("damaged")
    stage(run, calls=calls, inputs={"in": source}, settings=two)
    assert len(calls) == 4


def test_a_setting_that_only_one_version_of_reactune_records_does_not_count(run):
    calls = []
    stage(run, calls=calls, settings={"train": {"seed": 1, "removed": 2}, "gone": {"a": 1}})
    assert not stage(run, calls=calls, settings={"train": {"seed": 1, "added": 3}})[1]
    assert calls == ["extract"]


def test_a_missing_input_is_named(run, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt; run the stages before it"):
        stage(run, inputs={"in": tmp_path / "nowhere.txt"})


def test_a_half_written_manifest_counts_as_none(run):
    stage(run)
    (run / "extract" / "manifest.json").write_text('{"stage": "extr')
    assert manifests(run) == {}


@pytest.mark.parametrize("outcome", ["waiting", "refused"])
def test_a_waiting_or_refused_stage_ends_the_run(run, tmp_path, outcome):
    assert unfinished_run(tmp_path) == run
    stage(run, outcome=outcome)
    assert ending(run).outcome == outcome
    assert unfinished_run(tmp_path) is None


def test_an_unknown_run_is_named_with_those_there_are(run, tmp_path):
    with pytest.raises(DataError, match=f"no run 'nope'.*{run.name}"):
        find_run(tmp_path, "nope")


@pytest.mark.parametrize("name", ["mine", "../20260102-030405-0000", "20260102-030405-0000/x", ""])
def test_a_name_that_would_not_sort_by_time_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="is no name of a run: write it as 2026"):
        new_run(tmp_path / "runs", {}, run_id=name)
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from reactune.runs.locks import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_stage_in_use_is_refused_and_free_once_its_owner_was_killed(run):
    folder = run / "extract"
    folder.mkdir()
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / ".lock")], stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"in use by process {owner.pid} on"):
            stage(run)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    assert stage(run)[1]
