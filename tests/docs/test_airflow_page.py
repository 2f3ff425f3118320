"""The guide to Airflow, command by command in one shell, with a real Airflow.

Only parsed, in `test_consoles.py`: `make airflow`, which fills the checkout's own `.airflow`. Its
requests run on an Airflow with the same settings. No container and no pod is started: both DAGs are
read with the operators of the page.
"""

import json
import shlex
import sys
from pathlib import Path

import pytest

from airflow_fixtures import REPOSITORY, airflow, environment, standalone, wait_until
from console_fixtures import commands_of, run_in_shell
from loop_fixtures import SECRET, install, reactions, take_in
from places import TESTS
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests

COMMANDS = commands_of("airflow.md")
REQUESTS = COMMANDS.index("AIRFLOW=http://localhost:8080")
CONTAINERS = COMMANDS.index("export REACTUNE_AIRFLOW_OPERATOR=docker")

pytestmark = pytest.mark.slow


@pytest.fixture
def tips(tmp_path):
    """A folder of settings and a few reactions, with the key in a file beside them."""
    folder = tmp_path / "tips"
    folder.mkdir()
    config = install(folder)
    take_in(config, reactions(24))
    (folder / "key").write_text(SECRET, encoding="utf-8")
    return config


@pytest.fixture
def home(tmp_path):
    """A home of Airflow with an empty database."""
    folder = tmp_path / "airflow"
    folder.mkdir()
    airflow(folder, "db", "migrate")
    return folder


def in_checkout(commands, tmp_path, places):
    """Run commands of the page in a folder with the DAGs, as the user of an own Airflow."""
    here = tmp_path / "checkout"
    here.mkdir()
    (here / "dags").symlink_to(REPOSITORY / "dags")
    for name, ours in places.items():
        commands = [command.replace(name, str(ours)) for command in commands]
    clean = environment(tmp_path)
    return run_in_shell(
        ["unset AIRFLOW__CORE__DAGS_FOLDER REACTUNE_BIN REACTUNE_KEY", *commands],
        here,
        PATH=clean.pop("PATH"),
        **{name: value for name, value in clean.items() if name.startswith("AIRFLOW")},
    )


def test_the_commands_lead_to_a_run_by_an_airflow_of_ones_own(tmp_path, home, tips):
    make, *commands = COMMANDS[:REQUESTS]
    assert make == "make airflow"
    places = {
        "/opt/airflow": home,
        "/opt/reactune/bin/reactune": Path(sys.executable).with_name("reactune"),
        "/srv/tips": tips.folder,
    }
    printed = in_checkout(commands, tmp_path, places)
    assert "No data found" in printed
    (folder,) = all_runs(tips.run_root)
    assert manifests(folder)["dataset"].summary.startswith("waiting: 12 of 40 positives")
    dags = json.loads(airflow(home, "dags", "list", "--output", "json").splitlines()[-1])
    assert {dag["dag_id"]: dag["is_paused"] for dag in dags} == {
        "finetune_tip_generator": "False",
        "review_tip_generator": "False",
    }


def test_the_requests_start_a_training(tmp_path, home, tips):
    commands = COMMANDS[REQUESTS:CONTAINERS]
    with standalone(home, REACTUNE_CONFIG=str(tips.folder / "reactune.toml")) as client:
        assets = {"name_pattern": "tip_scores"}
        wait_until(
            lambda: client.get("/api/v2/assets", params=assets).json()["assets"], seconds=120
        )
        here = str(client.base_url).rstrip("/")
        commands = [each.replace("http://localhost:8080", here) for each in commands]
        run_in_shell(commands, tmp_path)
        where = "/api/v2/dags/finetune_tip_generator/dagRuns"

        def ended():
            runs = client.get(where).json()["dag_runs"]
            return [run for run in runs if run["state"] in ("success", "failed")]

        (run,) = wait_until(ended, seconds=300)
    assert (run["state"], run["run_type"]) == ("success", "asset_triggered")


@pytest.mark.parametrize(
    ("operator", "kind"), [("docker", "DockerOperator"), ("kubernetes", "KubernetesPodOperator")]
)
def test_the_dags_are_read_with_the_operators_of_the_page(tmp_path, home, operator, kind):
    first = COMMANDS.index(f"export REACTUNE_AIRFLOW_OPERATOR={operator}")
    describe = shlex.join(["python", str(TESTS / "airflow_describe.py"), str(REPOSITORY / "dags")])
    pod = tmp_path / "reactune.yaml"
    pod.write_text("apiVersion: v1\nkind: Pod\n", encoding="utf-8")
    copied = [f"mkdir -p {home}/dags", f"cp -r dags/. {home}/dags/", f"export AIRFLOW_HOME={home}"]
    printed = in_checkout(
        [*copied, *COMMANDS[first : first + 5], describe],
        tmp_path,
        {"/opt/airflow/pods/reactune.yaml": pod},
    )
    assert "No data found" in printed
    dags = json.loads(printed.splitlines()[-1])["dags"]
    tasks = [task for dag in dags.values() for task in dag["tasks"].values()]
    assert {(task["operator"], task["image"]) for task in tasks} == {(kind, "reactune-trainer")}
