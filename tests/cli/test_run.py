"""Commands of the loop before there is a model: what they wait for, and what they refuse."""

import json
import shutil
import sys

import pytest

from cli_fixtures import row, stored, write_rows
from template_fixtures import PUBLISHED


@pytest.mark.parametrize("name", ["review", "promote", "rollback"])
def test_nothing_can_be_decided_before_something_is_live(call, name):
    call("init")
    code, out, err = call(name)
    assert (code, out) == (1, "")
    assert "nothing is live" in err


def test_a_run_that_has_too_little_waits_with_the_exit_code_that_was_asked_for(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(number) for number in range(3)]))
    code, out, _ = call("run")
    assert code == 0
    assert "waiting: 3 of 500 positives, 0 of 500 negatives" in out
    run_id = out.split()[1]
    code, again, _ = call("run", "--run", run_id, "--waiting-exit-code", 99)
    assert code == 99
    assert again.count("done before") == 2
    assert call("stage", "dataset", "--run", run_id, "--waiting-exit-code", 98)[0] == 98


def test_a_scheduler_names_the_run_and_skips_what_comes_after_its_end(call, here, monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", "k" * 32)
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(number) for number in range(3)]))
    name = ("--run", "20261123-101500-airflow", "--waiting-exit-code", 99)
    assert call("stage", "dataset", *name)[0] == 1
    assert call("stage", "extract", *name)[0] == 0
    assert call("stage", "extract", *name)[1].endswith("(done before)\n")
    assert call("stage", "dataset", *name)[0] == 99
    code, out, _ = call("stage", "train", *name)
    assert code == 99
    assert "train     not done: the run ended at dataset: waiting: 3 of 500" in out


@pytest.fixture
def refusing_base(tiny, tmp_path_factory):
    """A small base model whose template takes no system message."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny, folder)
    template = (PUBLISHED / "gemma-2.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", [("deploy", "--base"), ("run",)])
def test_what_could_not_be_served_is_refused_before_anything_is_made(
    call, here, refusing_base, command
):
    call("init")
    wrong = ("--set", "prompt.system=Be brief.", "--set", "registry.model_name=team/tips")
    code, _, err = call("--set", f"model.base={refusing_base}", *wrong, *command)
    assert code == 1
    assert "nothing was started: chat template: " in err
    assert "System role not supported" in err
    assert "'team/tips' is no name for MLflow" in err
    made = [path for path in here.rglob("*") if path.suffix in (".gguf", ".parquet")]
    assert made == []
    assert not (here / "mlflow.db").exists()


def test_status_reports_what_is_missing_for_a_run(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(number) for number in range(3)]))
    code, out, _ = call("status")
    assert code == 0
    assert "3 positives and 0 negatives" in out
    assert "500 + 500" in out
    assert "nothing is live yet" in out.splitlines()[0]


@pytest.mark.parametrize(
    "command", [("run",), ("stage", "extract", "--run", "20260401-080000-0000"), ("deploy",)]
)
def test_what_trains_asks_for_its_libraries_before_it_does_anything(
    call, here, monkeypatch, command
):
    call("init")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        code, out, err = call(*command)
    assert (code, out) == (1, "")
    assert err == "reactune: this command needs torch; run `pip install 'reactune[train]'`\n"
    assert not (here / "runs").exists()


def test_a_run_that_is_not_there_is_named(call):
    call("init")
    code, _, err = call("run", "--run", "20000101-000000-dead")
    assert code == 1
    assert "20000101-000000-dead" in err


def test_evaluate_refuses_a_model_that_is_not_there(call, here):
    call("init")
    pair = {"kind": "a", "context": {}, "chosen": "x", "rejected": "y"}
    code, _, err = call("evaluate", "--pairs", write_rows(here / "p.jsonl", [pair]), "--model", "x")
    assert code == 1
    assert "'x'" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("review", "compare"), "STEP and --id go together"),
        (("review", "--id", "20261123-101500-0000"), "STEP and --id go together"),
        (("review", "guess", "--id", "20261123-101500-0000"), "compare"),
        (("deploy", "--base", "--version", "2"), "--base"),
        (("deploy", "--version", "0"), "--version"),
        (("stage", "extract"), "--run"),
        (("run", "--waiting-exit-code", "256"), "--waiting-exit-code"),
        (("backend", "install", "trl"), "unsloth"),
    ],
)
def test_options_that_do_not_fit_are_named_with_exit_code_2(call, here, arguments, named):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("run_id", ["today", "20261123", "20261123-101500", "../20261123-101500-0"])
def test_a_run_is_started_under_a_name_that_sorts_by_time_only(call, here, run_id):
    call("init")
    code, out, err = call("stage", "extract", "--run", run_id)
    assert (code, out) == (1, "")
    assert repr(run_id) in err
    assert "20261123-101500-0000" in err
    assert not (here / "runs").exists()


def test_a_stop_before_anything_is_live_changes_nothing(call, here):
    call("init")
    code, out, _ = call("rollback", "--now")
    assert (code, out) == (0, "no challenger is live: nothing to stop\n")
    assert stored(here, "SELECT count(*) FROM decisions") == [(0,)]


def test_status_names_a_key_whose_rows_nobody_could_be_erased_from(call, here, monkeypatch):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(1), row(2)]))
    ((key_id,),) = stored(here, "SELECT DISTINCT key_id FROM tip_scores")
    monkeypatch.setenv("REACTUNE_KEY", "another key of thirty-two characters")
    _, out, _ = call("status")
    (line,) = [line for line in out.splitlines() if line.startswith("keys ")]
    assert key_id in line
    assert line.split()[1:3] == ["2", "rows"]
    assert "old_key_envs" in line


def test_backends_are_listed_one_a_line(call, here):
    code, out, _ = call("--set", f"train.backend_folder={here}", "backend", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["trl", "unsloth", "axolotl"]
    assert out.splitlines()[1].endswith("not installed; run `reactune backend install unsloth`")
    listed = json.loads(
        call("--set", f"train.backend_folder={here}", "backend", "list", "--json")[1]
    )
    assert [(each["name"], each["state"]) for each in listed[:2]] == [
        ("trl", "part of reactune[train]"), ("unsloth", "not installed")
    ]  # fmt: skip
    assert list(here.iterdir()) == []
