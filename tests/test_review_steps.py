"""A review one step at a time, as a scheduler does it: on a real store and a real registry."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from loop_fixtures import copy_of_trained, expose
from reactune import deployment, review
from reactune.cli import main
from reactune.errors import DataError
from reactune.records import REVIEW_STEPS
from reactune.release import registry
from reactune.review import run_step
from registry_fixtures import aliases_of

ID = "20261123-101500-airflow"
LATER = datetime.now(UTC) + timedelta(days=1)  # when every window of the exposures has closed


@pytest.fixture
def on_trial(tmp_path):
    """An installation in which version 2 is on trial beside version 1, at 5 %."""
    return copy_of_trained(tmp_path)


def steps(config, names=REVIEW_STEPS, *, review_id=ID):
    """Do some steps; those that had something to do, and what was said."""
    said = []
    done = [n for n in names if run_step(config, n, review_id, now=LATER, say=said.append)]
    return done, said


def decisions(config):
    query = "SELECT actor, verdict, reason, numbers_json FROM decisions ORDER BY decision_id"
    with closing(sqlite3.connect(config.folder / "reactune.db")) as connection:
        return connection.execute(query).fetchall()


def aliases(config):
    return aliases_of(config.registry, config.tracking_uri)


def test_the_steps_do_what_a_whole_review_does(on_trial, tmp_path_factory):
    other = copy_of_trained(tmp_path_factory.mktemp("other"))
    expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    expose(other, 2_000, champion=0.2, challenger=0.8)
    done, said = steps(on_trial)
    whole = review.review(other, now=LATER)
    assert done == ["compare", "decide", "promote"]
    assert deployment.current(on_trial).champion == whole.rollout.champion == 2
    assert aliases(on_trial) == aliases(other) == {"champion": 2}
    assert decisions(on_trial)[-1] == decisions(other)[-1]
    assert whole.line.startswith(said[1].removeprefix("decide    "))
    assert said[2].startswith("promote   version 2 is champion, none is on trial; registry alias")
    assert said[3].startswith("rollback  not done: promote: the challenger is better")
    assert said[4].startswith("wait      not done: promote: the challenger is better")


def test_the_steps_may_be_done_by_workers_that_share_no_disk(tmp_path, s3_url):
    one, two = (
        copy_of_trained(tmp_path, run={"root": s3_url}, model={"cache_dir": str(tmp_path / name)})
        for name in ("one", "two")
    )
    expose(one, 2_000, champion=0.2, challenger=0.8)
    assert steps(one, ["compare"])[0] == ["compare"]
    assert steps(two, ["decide"])[0] == ["decide"]
    assert steps(one, ["promote", "rollback"])[0] == ["promote"]
    assert steps(two)[0] == ["compare", "decide", "promote"]
    assert deployment.current(two).champion == 2
    assert [row[:2] for row in decisions(one)].count(("review", "promote")) == 1


def test_a_worse_challenger_is_rolled_back_by_the_step_of_that_name_alone(on_trial):
    expose(on_trial, 2_000, champion=0.8, challenger=0.2)
    assert steps(on_trial)[0] == ["compare", "decide", "rollback"]
    assert (deployment.current(on_trial).champion, deployment.current(on_trial).challenger) == (
        1,
        None,
    )
    assert decisions(on_trial)[-1][:2] == ("review", "roll back")


def test_waiting_gives_the_challenger_more_once_however_often_it_is_asked(on_trial):
    expose(on_trial, 60, champion=0.5, challenger=0.5)
    assert steps(on_trial)[0] == ["compare", "decide", "wait"]
    assert deployment.current(on_trial).share == 0.10
    told = decisions(on_trial)
    assert steps(on_trial)[0] == ["compare", "decide", "wait"]
    assert deployment.current(on_trial).share == 0.10
    assert decisions(on_trial) == told
    assert steps(on_trial, review_id="20261124-101500-airflow")[0][-1] == "wait"
    assert len(decisions(on_trial)) == len(told) + 1


@pytest.mark.parametrize("rates", [(0.2, 0.8), (0.8, 0.2), (0.5, 0.5)])
def test_killed_after_it_acted_a_step_acts_no_second_time(on_trial, rates):
    expose(on_trial, 2_000, champion=rates[0], challenger=rates[1])
    done, _ = steps(on_trial)
    after, told = deployment.current(on_trial), decisions(on_trial)
    manifest = on_trial.run_root / "reviews" / ID / done[-1] / "manifest.json"
    manifest.unlink()
    assert steps(on_trial)[0] == done
    assert manifest.is_file()
    assert (deployment.current(on_trial), decisions(on_trial)) == (after, told)


def test_what_somebody_did_by_hand_after_the_comparison_stands(on_trial):
    expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    steps(on_trial, ("compare", "decide"))
    review.roll_back(on_trial, now=LATER)
    told = decisions(on_trial)
    done, said = steps(on_trial, ("promote", "rollback", "wait"))
    assert done == ["promote"]
    assert said[0] == "promote   version 1 is champion, none is on trial"
    assert deployment.current(on_trial).champion == 1
    assert decisions(on_trial) == told


def test_with_nobody_on_trial_aliases_are_put_right_and_the_rest_is_not_done(on_trial):
    expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    steps(on_trial)
    with registry._client(on_trial.tracking_uri) as client:
        client.set_registered_model_alias(on_trial.registry.model_name, "champion", "1")
    done, said = steps(on_trial, review_id="20261124-101500-airflow")
    assert done == []
    waiting = "waiting: version 2 is champion, none is on trial; registry alias champion: 1 -> 2"
    assert said[0] == f"compare   {waiting}"
    assert [line.partition("not done: ")[2] for line in said[1:]] == [waiting] * 4
    assert aliases(on_trial) == {"champion": 2}


def test_a_step_whose_step_before_is_missing_is_refused(on_trial):
    with pytest.raises(DataError, match="no run '20261123-101500-airflow'"):
        steps(on_trial, ["decide"])
    steps(on_trial, ["compare"])
    with pytest.raises(DataError, match=r"stage promote lacks .*decision\.json"):
        steps(on_trial, ["promote"])


def test_a_step_of_two_reviews_may_not_share_a_name_that_does_not_sort_by_time(on_trial):
    with pytest.raises(DataError, match="so that names sort by time"):
        steps(on_trial, ["compare"], review_id="monday")


def test_the_evidence_of_a_review_lies_in_its_folder(on_trial):
    expose(on_trial, 60, champion=0.5, challenger=0.5)
    steps(on_trial)
    folder = on_trial.run_root / "reviews" / ID
    seen = json.loads((folder / "compare" / "look.json").read_text())
    assert seen["comparison"]["units"] == 60
    assert (seen["rollout"]["champion"], seen["rollout"]["challenger"]) == (1, 2)
    decided = json.loads((folder / "decide" / "decision.json").read_text())
    assert decided["numbers"] == json.loads(decisions(on_trial)[-1][3])


def test_the_command_line_skips_what_was_not_decided(on_trial, monkeypatch, capsys):
    monkeypatch.chdir(on_trial.folder)
    codes = []
    for step in REVIEW_STEPS:
        with pytest.raises(SystemExit) as caught:
            main(["review", step, "--id", ID, "--waiting-exit-code", "99"])
        codes.append(caught.value.code)
    assert codes == [0, 0, 99, 99, 0]
    assert "decide    wait: too few reactions to decide (0 units)" in capsys.readouterr().out
    for arguments in (["review", "compare"], ["review", "--id", ID]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
