"""The loop on workers that share no disk: runs are on a real S3 server, folders start empty."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from loop_fixtures import SECRET, install, reactions, take_in, write_settings
from reactune import pipeline, status, tracking
from reactune.config.settings import load
from reactune.errors import DataError
from reactune.model.files import base_model
from reactune.records import STAGES
from reactune.runs.manifest import manifests
from reactune.runs.remote import RunRoot, remote_files
from server_fixtures import free_port, shown_tip

RUN = "20260302-080000-0000"
REACTUNE = Path(sys.executable).with_name("reactune")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)


@pytest.fixture
def shared(tmp_path, s3_url):
    """What all workers share: a database with reactions, the registry, and where runs are kept."""
    folder = tmp_path / "shared"
    folder.mkdir()
    take_in(install(folder), reactions(200))
    return {
        "store": {"url": f"sqlite:///{folder / 'reactune.db'}"},
        "registry": {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}"},
        "run": {"root": s3_url},
    }


@pytest.fixture
def worker(tmp_path, shared):
    """Makes an empty folder with nothing but settings in it."""

    def make(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        return write_settings(folder, **{**shared, "model": {"cache_dir": ""}, **changes})

    return make


def environment(file):
    """That of a worker: an empty home, and no cache but the one in it."""
    home = file.parent / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return {**kept, "HOME": str(home)}


def call(file, *arguments):
    """A command as a process of its own in a worker's folder."""
    command = [REACTUNE, *arguments]
    return subprocess.run(
        command, cwd=file.parent, env=environment(file), text=True, capture_output=True
    )


def cut(url, name, size):
    """Leave the first bytes of an object, as an upload that broke off would."""
    with remote_files(RunRoot(url=url)) as (files, top):
        files.pipe_file(f"{top}/{name}", files.cat_file(f"{top}/{name}")[:size])


@pytest.mark.slow
def test_two_workers_do_two_stages_of_one_run(tmp_path, worker, s3_url):
    one, two, three = (
        load(worker(f"worker-{number}", model={"cache_dir": str(tmp_path / f"cache-{number}")}))
        for number in range(3)
    )
    base_model(one.model)
    for other in (two, three):
        shutil.copytree(one.model.cache_dir, other.model.cache_dir)
    said = []
    pipeline.run_one_stage(one, "extract", RUN, say=said.append)
    cut(s3_url, f"{RUN}/extract/labelled.parquet", 1_000)
    with pytest.raises(DataError, match=f"{RUN}/extract/labelled.parquet is not what its stage"):
        pipeline.run_one_stage(two, "dataset", RUN, say=said.append)
    with remote_files(RunRoot(url=s3_url)) as (files, top):
        files.rm_file(f"{top}/{RUN}/extract/manifest.json")
    pipeline.run_one_stage(one, "extract", RUN, say=said.append)
    done = pipeline.run_one_stage(two, "dataset", RUN, say=said.append)
    assert done.outcome == "done"
    assert one.run_root != two.run_root
    assert set(manifests(two.run_root / RUN)) == {"extract", "dataset"}
    lines = status.status(three, now=datetime.now(UTC))
    assert lines[-1].startswith(f"last run  {RUN}: interrupted, done: extract, dataset")
    pipeline.run_one_stage(three, "extract", RUN, say=said.append)
    assert [line.partition(" ")[0] for line in said] == ["extract", "extract", "dataset", "extract"]
    assert ["(done before)" in line for line in said] == [False, False, False, True]


def test_a_password_in_a_url_does_not_reach_the_bucket(tmp_path, worker, s3_url):
    config = load(worker("worker"), ("source.url=postgresql://me:secret@db/tips",))
    tracking.start_run(config, RUN)
    with remote_files(RunRoot(url=s3_url)) as (files, top):
        text = files.cat_file(f"{top}/{RUN}/config.json").decode()
    assert json.loads(text)["source"]["url"] == "postgresql://me:***@db/tips"


@contextmanager
def served(file):
    """`reactune serve` in a worker's folder; its address once it is ready."""
    port = free_port()
    # Long enough for a model of random weights to end.
    options = ("--set", f"serve.port={port}", "--set", "serve.max_tokens=96")
    command = [REACTUNE, *options, "serve"]
    with (
        file.with_name("serve.log").open("w") as log,
        subprocess.Popen(
            command, cwd=file.parent, env=environment(file), stdout=log, stderr=log
        ) as process,
    ):
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while not is_ready(url):
                assert process.poll() is None, file.with_name("serve.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def is_ready(url):
    try:
        return httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_every_stage_and_the_service_run_on_workers_of_their_own(tmp_path, worker, shared, s3_url):
    for stage in STAGES:
        file = worker(stage)
        done = call(file, "stage", stage, "--run", RUN)
        assert (done.returncode, done.stdout.split()[:1]) == (0, [stage]), done.stderr
        # Nothing but what is shared can help the next one.
        shutil.rmtree(file.parent)
    database = shared["store"]["url"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(database)) as connection:
        kept = connection.execute("SELECT gguf, adapter, reward FROM model_versions")
        assert kept.fetchall() == [
            ("base/export/model.gguf", None, None),
            (f"{RUN}/export/model.gguf", f"{RUN}/train/adapter", f"{RUN}/export/reward"),
        ]
        live_now = "SELECT champion, challenger FROM rollouts WHERE closed_at IS NULL"
        assert connection.execute(live_now).fetchall() == [(1, 2)]

    again = worker("again")
    done = call(again, "stage", "train", "--run", RUN)
    assert done.stdout.endswith("(done before)\n"), done.stderr
    assert not list(again.parent.rglob("adapter_model.safetensors"))
    assert "challenger tip-generator:v2" in call(again, "status").stdout

    pairs = tmp_path / "pairs.jsonl"
    pair = {"kind": "focus", "context": {"time_of_day": "morning"}}
    texts = [("abab cdcd", "wxwx yzyz"), ("baba dcdc", "xwxw zyzy")]
    rows = [{**pair, "chosen": chosen, "rejected": rejected} for chosen, rejected in texts]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = call(worker("judge"), "evaluate", "--pairs", pairs, "--model", "challenger")
    assert judged.stdout.startswith("challenger: generator by mean log-probability: 1.000"), (
        judged.stderr
    )

    tip = {"user": "u-7", "kind": "focus", "context": {"time_of_day": "morning"}}
    with served(worker("service")) as url:
        assert shown_tip(url, tip)["content"]

    cut(s3_url, "base/export/model.gguf", 1_000)
    refused = call(worker("late"), "serve")
    assert refused.returncode == 1
    assert f"{s3_url}/base/export/model.gguf is not what its stage wrote" in refused.stderr
