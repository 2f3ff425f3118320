"""Erasure and consent in a whole installation: real model, MLflow, S3; the tiny model trains."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from loop_fixtures import KEY, SECRET, copy_of_trained, expose, install, reactions, take_in
from people_fixtures import ANNA, RUN, populate
from people_fixtures import KEY as PEOPLES_KEY
from people_fixtures import install as install_people
from reactune import deployment, pipeline, review, tracking
from reactune.data.dataset.exports import read_examples
from reactune.erasure import requests
from reactune.erasure.erase import finish, request_erasure
from reactune.erasure.verify import verify
from reactune.errors import CanaryError
from reactune.privacy.consent import refuse_training
from reactune.privacy.hashing import HashingKeys, user_key
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests
from reactune.runs.remote import RunRoot, remote_files

pytestmark = pytest.mark.slow
RING = HashingKeys(KEY)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)


def call(folder, *arguments, code=0, stdin=None):
    """A command as a process of its own; what it said."""
    command = [Path(sys.executable).with_name("reactune"), *arguments]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, input=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def a_learned_user(run):
    (*_, example) = read_examples(run / "dataset")["train"]
    names = {user_key(KEY, f"user-{number}"): f"user-{number}" for number in range(40)}
    return names[example.user_key]


def users_in(run):
    return {each.user_key for part in read_examples(run / "dataset").values() for each in part}


def tags_of(config):
    client = MlflowClient(tracking_uri=config.tracking_uri)
    versions = client.search_model_versions(f"name = '{config.registry.model_name}'")
    return {int(version.version): version.tags for version in versions}


def test_a_model_that_learned_from_an_erased_person_is_replaced_in_the_end(tmp_path):
    config = copy_of_trained(tmp_path)
    (run,) = all_runs(config.run_root)
    user = a_learned_user(run)
    call(tmp_path, "erase", "--verify", "--user", user, code=3)
    said = call(tmp_path, "erase", "--user", "-", "--reason", "asked by mail", stdin=f"{user}\n")
    assert "1 people" in said
    assert "erased from 1 runs" in said
    assert call(tmp_path, "erase") == "nothing is waiting to be erased\n"

    due = f"{datetime.now(UTC) + timedelta(days=30):%Y-%m-%d}"
    assert tags_of(config)[2]["reactune.retrain_by"] == due
    assert "reactune.retrain_by" not in tags_of(config)[1]
    line = f"version 2 was trained on data of an erased user: a new challenger is due by {due}"
    assert line in call(tmp_path, "status")
    found = call(tmp_path, "erase", "--verify", "--user", user)
    assert "MLflow at sqlite" in found
    assert found.endswith("found     nothing\n")

    # It is on trial, and may win or lose; then the next run does not wait for new examples.
    review.promote(config, now=expose(config, 60, champion=0.5, challenger=0.5))
    said = []
    manifest = pipeline.run(config, say=said.append)
    assert manifest.stage == "deploy", said
    assert any("not compared with the champion" in line for line in said)
    (_, second) = all_runs(config.run_root)
    assert user_key(KEY, user) not in users_in(second)
    now = expose(config, 60, champion=0.5, challenger=0.5)
    review.promote(config, now=now)
    assert "is not live; `reactune erase --expired` removes it" in call(tmp_path, "status")
    with pytest.raises(CanaryError, match="version 2 was trained on data of"):
        deployment.open_rollout(config, 2, now=now)
    call(tmp_path, "erase", "--expired")
    assert all_runs(config.run_root) == [second]
    assert "retrain" not in call(tmp_path, "status")
    assert len(list((tmp_path / "mlflow-artifacts").rglob("model.gguf"))) == 2
    # Without news the next run waits again.
    assert "new examples" in pipeline.run(config, say=said.append).summary


def test_a_user_who_refuses_training_is_not_in_the_next_dataset(tmp_path):
    config = install(tmp_path)
    take_in(config, reactions(200))
    with deployment.database(config) as engine:
        refuse_training(engine, RING, "user-7", now=datetime.now(UTC))
    run = tracking.start_run(config, RUN)
    for stage in ("extract", "dataset"):
        pipeline.run_one_stage(config, stage, RUN, say=print)
    assert manifests(run)["extract"].counts["labels"]["refused"]["opted out"] == 6
    assert user_key(KEY, "user-7") not in users_in(run)
    assert user_key(KEY, "user-8") in users_in(run)


def test_an_interrupted_run_is_started_again_without_the_erased_user(tmp_path):
    config = install(tmp_path)
    take_in(config, reactions(200))
    old = tracking.start_run(config, RUN)
    for stage in ("extract", "dataset"):
        pipeline.run_one_stage(config, stage, RUN, say=print)
    # The service writes down only; the next run does the rest first.
    with deployment.database(config) as engine:
        now = datetime.now(UTC)
        requests.request_erasure(engine, RING, ["user-7"], actor="service", reason="asked", now=now)
    said = []
    assert pipeline.run(config, say=said.append).stage == "deploy"
    assert said[0].startswith("erased    ")
    assert len(all_runs(config.run_root)) == 2
    assert [manifest.outcome for manifest in manifests(old).values()] == ["refused"]
    assert verify(config, RING, ["user-7"]).traces == []


def test_runs_in_a_bucket_lose_the_rows_too(tmp_path, s3_url):
    config = install_people(tmp_path / "now", run={"root": s3_url})
    saved = install_people(tmp_path / "saved", run={"root": f"file://{tmp_path / 'shared'}"})
    ended, unfinished = RUN, "20260303-080000-0000"
    populate(saved, runs={ended: "deploy", unfinished: "train"})
    with remote_files(RunRoot(url=s3_url)) as (files, top):
        files.put(f"{tmp_path / 'shared'}/", f"{top}/", recursive=True)
    populate(config)
    ring = HashingKeys(PEOPLES_KEY)
    before = verify(config, ring, [ANNA]).traces
    assert f"{s3_url}/{ended}/extract/labelled.parquet: a hash of the id" in before
    now = datetime.now(UTC)
    request_erasure(config, ring, [ANNA], reason="asked", now=now, say=print)
    assert finish(config, ring, now=now, say=print) == 1
    report = verify(config, ring, [ANNA])
    assert (report.traces, report.unchecked) == ([], [])
    assert any(line.startswith(s3_url) for line in report.searched)
    with remote_files(RunRoot(url=s3_url)) as (files, top):
        manifest = json.loads(files.cat_file(f"{top}/{ended}/dataset/manifest.json"))
        left = {path.rpartition("/")[2] for path in files.find(f"{top}/{unfinished}")}
    assert manifest["erased"][0]["rows"] == 7
    assert manifest["kept_at"] == ""
    assert left - {".lock"} == {"config.json", "erased.json", "manifest.json"}
