"""The DAG files as Airflow reads them: what each task calls, and what is said about it."""

import ast
import subprocess

import pytest

from airflow_fixtures import DAGS, PYTHON, describe, needs_airflow
from reactune.records import REVIEW_STEPS, STAGES

RUN_ID = "{{ dag_run.run_after.strftime('%Y%m%d-%H%M%S-%f') }}"
FINETUNE, REVIEW = "finetune_tip_generator", "review_tip_generator"
FILES = sorted(DAGS.glob("*.py"))
HEAVY = {"torch", "transformers", "mlflow", "pandas", "numpy", "docker", "kubernetes", "reactune"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    needs_airflow()
    return tmp_path_factory.mktemp("airflow")


@pytest.fixture(scope="module")
def read(home):
    """The DAGs with the settings that nobody changed."""
    return describe(home)


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dag_imports_nothing_of_reactune_itself(path):
    modules = {alias.name for n in ast.walk(tree_of(path)) if isinstance(n, ast.Import)
               for alias in n.names}  # fmt: skip
    modules |= {n.module for n in ast.walk(tree_of(path)) if isinstance(n, ast.ImportFrom)}
    assert "reactune" not in {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("name", [FINETUNE, REVIEW])
def test_a_dag_file_holds_no_logic(name):
    kinds = {type(node) for node in ast.walk(tree_of(DAGS / f"{name}.py"))}
    logic = {ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.FunctionDef, ast.Lambda,
             ast.ListComp, ast.DictComp, ast.GeneratorExp, ast.BoolOp, ast.Compare}  # fmt: skip
    assert kinds & logic == set()


def test_reading_the_dags_imports_nothing_heavy(read):
    assert HEAVY & {name.partition(".")[0] for name in read["modules"]} == set()


def test_the_stages_are_tasks_in_their_order(read):
    tasks = read["dags"][FINETUNE]["tasks"]
    names = [*STAGES[:-1], "shadow_deploy"]
    assert list(tasks) == names
    assert [tasks[name]["upstream"] for name in names] == [[], *([name] for name in names[:-1])]
    for name, stage in zip(names, STAGES, strict=True):
        assert tasks[name]["bash_command"] == (
            'REACTUNE_PARENT=$PPID exec "${REACTUNE_BIN:-reactune}" '
            f"stage {stage} --run {RUN_ID} --waiting-exit-code 99"
        )


def test_the_steps_of_a_review_are_tasks_of_which_the_last_three_are_alternatives(read):
    tasks = read["dags"][REVIEW]["tasks"]
    assert {name: task["upstream"] for name, task in tasks.items()} == {
        "compare": [],
        "decide": ["compare"],
        "promote": ["decide"],
        "roll_back": ["decide"],
        "wait": ["decide"],
    }
    for task, step in zip(map(tasks.get, tasks), REVIEW_STEPS, strict=True):
        assert f" review {step} --id {RUN_ID} --waiting-exit-code 99" in task["bash_command"]


@pytest.mark.parametrize("name", [FINETUNE, REVIEW])
def test_every_task_is_explained_limited_retried_and_missed(read, name):
    dag = read["dags"][name]
    assert len(dag["doc"]) > 100
    assert (dag["max_active_runs"], dag["catchup"]) == (1, False)
    for task in dag["tasks"].values():
        assert len(task["doc"]) > 60
        assert task["seconds"] >= 600
        assert (task["retries"], task["backoff"]) == (0, 2.0)
        assert task["skips_on"] == [99]
        assert task["on_failure"] == ["notify"]


def test_only_training_asks_for_the_gpu(read):
    pools = {name: task["pool"] for name, task in read["dags"][FINETUNE]["tasks"].items()}
    assert {name for name, pool in pools.items() if pool == "gpu"} == {"train"}


def test_reactions_start_a_training_and_its_new_version_a_review(read):
    dags = read["dags"]
    assert dags[FINETUNE]["assets"] == ["tip_scores"]
    assert dags[REVIEW]["assets"] == ["tip-generator"]
    outlets = {name: task["outlets"] for name, task in dags[FINETUNE]["tasks"].items()}
    assert {name: of for name, of in outlets.items() if of} == {"shadow_deploy": ["tip-generator"]}


def test_the_environment_sets_the_schedule_and_the_retries(home):
    found = describe(
        home,
        REACTUNE_AIRFLOW_FINETUNE_CRON="15 4 * * 1",
        REACTUNE_AIRFLOW_REVIEW_CRON="*/10 * * * *",
        REACTUNE_AIRFLOW_RETRIES="5",
    )["dags"]
    assert (found[FINETUNE]["cron"], found[REVIEW]["cron"]) == ("15 4 * * 1", "*/10 * * * *")
    assert {task["retries"] for task in found[FINETUNE]["tasks"].values()} == {5}


def needs_provider(module):
    """Skip the test where Airflow's environment lacks a provider."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({module!r}) is None)"
    if subprocess.run([PYTHON, "-c", code], check=False).returncode:
        pytest.skip(f"Airflow's environment lacks {module}")


def test_by_docker_a_task_is_a_container_that_does_the_same(home):
    needs_provider("docker")
    mounts = '[{"Target": "/tips", "Source": "/srv/tips", "Type": "bind", "ReadOnly": false}]'
    found = describe(
        home,
        REACTUNE_AIRFLOW_OPERATOR="docker",
        REACTUNE_AIRFLOW_IMAGE="reactune:1.2",
        REACTUNE_AIRFLOW_ARGUMENTS=f'{{"mounts": {mounts}}}',
    )["dags"]
    task = found[FINETUNE]["tasks"]["train"]
    assert (task["operator"], task["image"], task["pool"]) == (
        "DockerOperator", "reactune:1.2", "gpu",
    )  # fmt: skip
    wanted = ["reactune", "stage", "train", "--run", RUN_ID, "--waiting-exit-code", "99"]
    assert task["command"] == wanted
    assert task["skips_on"] == [99]
    assert task["mounts"][0]["Source"] == "/srv/tips"


def test_by_kubernetes_a_task_is_a_pod_that_does_the_same(home):
    needs_provider("kubernetes")
    found = describe(
        home,
        REACTUNE_AIRFLOW_OPERATOR="kubernetes",
        REACTUNE_AIRFLOW_IMAGE="reactune:1.2",
        REACTUNE_AIRFLOW_ARGUMENTS='{"namespace": "tips"}',
    )["dags"]
    task = found[REVIEW]["tasks"]["roll_back"]
    assert (task["operator"], task["image"], task["namespace"], task["name"]) == (
        "KubernetesPodOperator", "reactune:1.2", "tips", "reactune-roll-back",
    )  # fmt: skip
    assert task["cmds"] == ["reactune"]
    assert task["arguments"] == ["review", "rollback", "--id", RUN_ID, "--waiting-exit-code", "99"]
    assert task["skips_on"] == [99]
