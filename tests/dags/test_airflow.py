"""The DAGs really run, by a real Airflow: on real rows, with a real small training; killed, too."""

import json
import threading
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from airflow_fixtures import (
    DAGS,
    REPOSITORY,
    airflow,
    call,
    needs_airflow,
    standalone,
    wait_until,
)
from loop_fixtures import SECRET, copy_of_trained, expose, install, reactions, take_in
from reactune import deployment
from reactune.records import STAGES
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests
from reactune.store import schema
from reactune.store.database import open_store, writing

FINETUNE, REVIEW = "finetune_tip_generator", "review_tip_generator"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home of Airflow with an empty database."""
    needs_airflow()
    folder = tmp_path_factory.mktemp("airflow")
    airflow(folder, "db", "migrate")
    return folder


def installed(folder, rows, **changes):
    """A tiny installation with so many reactions; its settings."""
    folder.mkdir()
    config = install(folder, **changes)
    take_in(config, reactions(rows))
    return config


def dag_runs(home, *pairs, **environment):
    """Do DAG runs by `dag.test()`, each of a settings file and a DAG; state and states of tasks."""
    results = home / "results.json"
    call(home, REPOSITORY / "tests" / "airflow_run.py", DAGS, results, *pairs, **environment)
    return [(run["state"], run["tasks"]) for run in json.loads(results.read_text())]


@contextmanager
def listening():
    """A server that keeps what is posted to it; its address, and the list."""
    heard = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *ignored):
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", heard
        finally:
            server.shutdown()
            thread.join()


def test_airflow_skips_what_comes_after_too_few_rows_and_reports_a_failure(home, tmp_path):
    few = installed(tmp_path / "few", 24)
    names = [*STAGES[:-1], "shadow_deploy"]
    with listening() as (address, heard):
        waited, failed = dag_runs(
            home,
            *(few.folder / "reactune.toml", FINETUNE),
            *(tmp_path / "nowhere.toml", FINETUNE),
            REACTUNE_AIRFLOW_NOTIFIER="reactune_notifiers:webhook",
            REACTUNE_AIRFLOW_WEBHOOK=address,
        )

    assert waited == ("success", {"extract": "success", **dict.fromkeys(names[1:], "skipped")})
    (folder,) = all_runs(few.run_root)
    assert manifests(folder)["dataset"].summary == "waiting: 12 of 40 positives, 12 of 40 negatives"

    later = dict.fromkeys(names[1:], "upstream_failed")
    assert failed == ("failed", {"extract": "failed", **later})
    (said,) = heard
    assert said["text"].startswith(f"{FINETUNE}.extract failed in manual__")
    assert "exit code 1" in said["text"]


@pytest.mark.slow
def test_airflow_trains_on_real_rows_and_opens_the_trial(home, tmp_path):
    enough = installed(tmp_path / "enough", 200)
    (trained,) = dag_runs(home, enough.folder / "reactune.toml", FINETUNE)
    names = [*STAGES[:-1], "shadow_deploy"]
    assert trained == ("success", dict.fromkeys(names, "success"))
    (folder,) = all_runs(enough.run_root)
    assert {each.outcome for each in manifests(folder).values()} == {"done"}
    assert tuple(manifests(folder)) == STAGES
    assert [model.version for model in deployment.versions(enough)] == [1, 2]
    assert (deployment.current(enough).champion, deployment.current(enough).challenger) == (1, 2)


@pytest.mark.slow
def test_a_review_by_airflow_promotes_the_better_model_and_takes_the_worse_one_back(home, tmp_path):
    better, worse = (copy_of_trained(tmp_path / name) for name in ("better", "worse"))
    for config in (better, worse):
        open_a_day_earlier(config)
    expose(better, 2_000, champion=0.2, challenger=0.8)
    expose(worse, 2_000, champion=0.8, challenger=0.2)
    toml = "reactune.toml"
    promoted, withdrawn = dag_runs(home, better.folder / toml, REVIEW, worse.folder / toml, REVIEW)
    both = {"compare": "success", "decide": "success", "wait": "skipped"}
    assert promoted == ("success", {**both, "promote": "success", "roll_back": "skipped"})
    assert withdrawn == ("success", {**both, "promote": "skipped", "roll_back": "success"})
    assert (deployment.current(better).champion, deployment.current(better).challenger) == (2, None)
    assert (deployment.current(worse).champion, deployment.current(worse).challenger) == (1, None)


def open_a_day_earlier(config):
    """Date the open rollout back, so that windows of tips shown since have closed."""
    opened = deployment.current(config).opened_at - timedelta(days=1)
    engine = open_store(config.store_url)
    with writing(engine) as connection:
        connection.execute(schema.rollouts.update().values(opened_at=opened))
    engine.dispose()


def dag_runs_of(client, dag):
    """The DAG runs of a DAG as the REST API tells them, oldest first."""
    answer = client.get(f"/api/v2/dags/{dag}/dagRuns", params={"order_by": "run_after"})
    return answer.raise_for_status().json()["dag_runs"]


def final_state(client, dag, *, place, seconds=900):
    """State of a DAG run that has ended, and state and tries of its tasks."""

    def ended():
        runs = dag_runs_of(client, dag)
        return len(runs) > place and runs[place]["state"] in ("success", "failed") and runs[place]

    run = wait_until(ended, seconds=seconds)
    where = f"/api/v2/dags/{dag}/dagRuns/{run['dag_run_id']}/taskInstances"
    tasks = client.get(where).raise_for_status().json()["task_instances"]
    return run, {task["task_id"]: (task["state"], task["try_number"]) for task in tasks}


def at_work_on(config):
    """Reactune's process in the stage `train`, and its trainer, once it has kept a checkpoint."""
    if not any(config.run_root.glob("2*/train/**/trainer_state.json")):
        return None
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if f"{config.run_root}/" in words and "job.json" in words:
            return process.parent(), process
    return None


def say_that_there_are_reactions(client):
    """Create an event of the asset `tip_scores`, as whoever takes in reactions does."""
    wanted = {"name_pattern": "tip_scores"}
    found = wait_until(
        lambda: client.get("/api/v2/assets", params=wanted).json()["assets"], seconds=120
    )
    event = {"asset_id": found[0]["id"]}
    client.post("/api/v2/assets/events", json=event).raise_for_status()


def written(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/manifest.json")}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["task", "supervisor"])
def test_new_reactions_train_once_though_airflow_is_killed_at_it_and_a_review_follows(
    tmp_path, victim
):
    home = tmp_path / "airflow"
    home.mkdir()
    airflow(home, "db", "migrate")
    config = installed(tmp_path / "tips", 200, train={"epochs": 20})
    settings = {
        "REACTUNE_CONFIG": str(config.folder / "reactune.toml"),
        "REACTUNE_AIRFLOW_RETRIES": "2",
        "REACTUNE_AIRFLOW_RETRY_SECONDS": "2",
    }
    with standalone(home, **settings) as client:
        say_that_there_are_reactions(client)
        reactune, trainer = wait_until(lambda: at_work_on(config), seconds=600)
        (folder,) = all_runs(config.run_root)
        before = written(folder)
        assert set(before) == {"extract", "dataset", "reward"}
        task = reactune.parent()
        (task if victim == "task" else task.parent()).kill()
        assert psutil.wait_procs([task, reactune, trainer], timeout=20)[1] == []

        run, tasks = final_state(client, FINETUNE, place=0)
        assert (run["state"], run["run_type"]) == ("success", "asset_triggered")
        names = [*STAGES[:-1], "shadow_deploy"]
        assert tasks == {name: ("success", 2 if name == "train" else 1) for name in names}
        check_that_one_run_is_complete(config, before)

        run, tasks = final_state(client, REVIEW, place=0)
        assert (run["state"], run["run_type"]) == ("success", "asset_triggered")
        skipped = {name for name, (state, _) in tasks.items() if state == "skipped"}
        assert skipped == {"promote", "roll_back"}

        where = f"/api/v2/dags/{FINETUNE}/dagRuns"
        client.post(where, json={"logical_date": None, "conf": {}}).raise_for_status()
        run, tasks = final_state(client, FINETUNE, place=1)
        assert (run["state"], run["run_type"]) == ("success", "manual")
        assert {state for state, _ in tasks.values()} == {"skipped"}


def check_that_one_run_is_complete(config, before):
    """What was done before the kill is as it was, and the training went on where it was."""
    (folder,) = all_runs(config.run_root)
    after = written(folder)
    assert tuple(manifests(folder)) == STAGES
    assert {stage: after[stage] for stage in before} == before
    assert [model.version for model in deployment.versions(config)] == [1, 2]
    lines = (folder / "train" / "sft" / "progress.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(range(1, steps[-1] + 1))
