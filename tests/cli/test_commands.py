"""The command line as a person meets it: output, exit codes, and files left behind."""

import gzip
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import psutil
import pytest

from reactune.cli import commands, main

KEY = "0123456789abcdef0123456789abcdef"
HEAVY = ("torch", "mlflow", "ibis", "pyarrow", "fastapi", "sqlalchemy", "transformers", "pydantic")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and a key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", KEY)
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def call(here, capsys):
    """Call the command line; exit code, output and errors come back."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


def row(number, **other):
    return {
        "tip_id": f"tip-{number}",
        "user_id": f"user-{number}",
        "kind": "focus",
        "context_json": '{"time_of_day": "morning"}',
        "tip_content": f"Write {number} lines of the report.",
        "created_at": "2026-11-01T08:00:00+00:00",
        "shown_at": "2026-11-01T08:00:00+00:00",
        "reaction": "done",
        "dwell_ms": 20_000,
        **other,
    }


def write_rows(file, rows):
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return file


def stored(folder, query):
    with closing(sqlite3.connect(folder / "reactune.db")) as connection:
        return connection.execute(query).fetchall()


def test_help_starts_without_heavy_libraries():
    code = (
        "import sys\n"
        "from reactune.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print(*sorted(set({HEAVY!r}) & sys.modules.keys()), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stderr == "\n"
    assert "Commands:" in result.stdout


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_every_command_has_a_summary_and_an_example(call, name):
    code, out, _ = call(name, "--help")
    assert code == 0
    assert f"$ reactune {name}" in out or f" {name}\n" in out
    assert commands.commands[name].get_short_help_str(limit=200).endswith(".")


def test_init_writes_settings_and_makes_the_database(call, here):
    code, out, _ = call("init")
    assert code == 0
    assert out.splitlines() == [
        "reactune.toml: written",
        f"sqlite:///{here}/reactune.db: ready",
    ]
    assert stored(here, "SELECT count(*) FROM tip_scores") == [(0,)]


def test_init_never_overwrites_settings(call, here):
    file = here / "reactune.toml"
    file.write_text("[train]\nlora_rank = 4\n")
    code, out, _ = call("init")
    assert (code, file.read_text()) == (0, "[train]\nlora_rank = 4\n")
    assert "left as it is" in out
    assert (here / "reactune.db").is_file()


def test_init_may_be_repeated_and_loses_no_row(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(1)]))
    assert call("init")[0] == 0
    assert stored(here, "SELECT tip_id FROM tip_scores") == [("tip-1",)]


def test_init_writes_what_set_says_into_the_new_file(call, here):
    call("--config", "my.toml", "--set", "store.url=sqlite:///mine.db", "init")
    assert 'url = "sqlite:///mine.db"' in (here / "my.toml").read_text().splitlines()
    assert (here / "mine.db").is_file()


def test_the_settings_file_may_come_from_the_environment(call, here, monkeypatch):
    (here / "other.toml").write_text("[train]\nlora_rank = 4\n")
    monkeypatch.setenv("REACTUNE_CONFIG", "other.toml")
    assert "lora_rank = 4" in call("config")[1]


def test_an_error_is_one_line_and_exit_code_1(call):
    code, out, err = call("--set", "train.lora_rnk=3", "config")
    assert (code, out) == (1, "")
    assert err.startswith("reactune: ")
    assert "train.lora_rnk" in err
    assert err.count("\n") == 1


def test_verbose_shows_where_an_error_arose(call):
    code, _, err = call("--verbose", "--set", "train.lora_rnk=3", "config")
    assert code == 1
    assert err.startswith("Traceback")
    assert "ConfigError" in err


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("stage", "bake", "--run", "x"), ("ingest",), ("ingest", "no.csv")]
)
def test_a_call_that_makes_no_sense_ends_with_usage_and_exit_code_2(call, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: reactune")


def test_ingest_keeps_all_rows_with_exit_code_0(call, here):
    call("init")
    file = here / "rows.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.writelines(json.dumps(row(number)) + "\n" for number in range(5))
    code, out, _ = call("ingest", file)
    assert (code, out) == (0, "rows: 5 in, 5 kept, 0 rejected\n")
    assert stored(here, "SELECT count(*) FROM tip_scores") == [(5,)]


def test_ingest_reports_both_counts_and_lists_rejected_rows_without_their_text(call, here):
    call("init")
    bad = [row(2, dwell_ms=-1), row(3, reaction="loved"), row(4, tip_content="never say \0 this")]
    code, out, _ = call("ingest", write_rows(here / "rows.jsonl", [row(1), *bad]))
    assert code == 2
    assert out.splitlines()[0] == "rows: 4 in, 1 kept, 3 rejected"
    assert out.splitlines()[-1] == f"line and reason of each: {here}/rejects.jsonl"
    listed = (here / "rejects.jsonl").read_text()
    assert [json.loads(line)["line"] for line in listed.splitlines()] == [2, 3, 4]
    assert "never say" not in listed


def test_a_row_replaced_by_a_later_one_is_not_rejected(call, here):
    call("init")
    code, out, _ = call("ingest", write_rows(here / "rows.jsonl", [row(1), row(1, dwell_ms=5)]))
    assert code == 0
    assert out.splitlines() == [
        "rows: 2 in, 1 kept, 0 rejected",
        "1 of them replaced by a later row of the same tip_id",
    ]
    assert stored(here, "SELECT dwell_ms FROM tip_scores") == [(5,)]


def test_no_user_id_is_stored(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(1, user_id="anna.schmidt")]))
    for file in here.glob("reactune.db*"):
        assert b"anna.schmidt" not in file.read_bytes()


def test_ingest_without_a_key_is_refused(call, here, monkeypatch):
    call("init")
    monkeypatch.delenv("REACTUNE_KEY")
    code, _, err = call("ingest", write_rows(here / "rows.jsonl", [row(1)]))
    assert code == 1
    assert "REACTUNE_KEY" in err
    assert stored(here, "SELECT count(*) FROM tip_scores") == [(0,)]


def test_before_init_every_command_that_needs_the_database_says_so(call, here):
    file = write_rows(here / "rows.jsonl", [row(1)])
    for arguments in [("ingest", file), ("status",), ("review",), ("promote",), ("rollback",)]:
        code, _, err = call(*arguments)
        assert (code, "reactune init" in err) == (1, True), arguments
    assert not (here / "reactune.db").exists()


@pytest.mark.parametrize("name", ["review", "promote", "rollback"])
def test_nothing_can_be_decided_before_something_is_live(call, name):
    call("init")
    code, out, err = call(name)
    assert (code, out) == (1, "")
    assert "nothing is live" in err


@pytest.mark.parametrize("dialect", ["sqlite", "postgres", "duckdb", "bigquery"])
def test_explain_prints_the_rule_of_the_magic_zone_in_any_dialect(call, dialect):
    code, out, _ = call("explain", "--dialect", dialect)
    assert code == 0
    assert "BETWEEN 15000 AND 120000" in out
    assert "BETWEEN 0 AND 4999" in out


def test_explain_follows_the_settings_and_the_sources_own_dialect(call):
    moved = ("--set", "labels.positive_dwell_ms=[9000, 90000]")
    assert "BETWEEN 9000 AND 90000" in call(*moved, "explain")[1]
    elsewhere = ("--set", "source.url=bigquery://project/set", "--set", "source.table=reactions")
    assert "`reactions`" in call(*elsewhere, "explain")[1]


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


def test_status_reports_what_is_missing_for_a_run(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(number) for number in range(3)]))
    code, out, _ = call("status")
    assert code == 0
    assert "3 positives and 0 negatives" in out
    assert "500 + 500" in out
    assert "nothing is live yet" in out.splitlines()[0]


def test_a_library_that_is_not_installed_is_named_with_the_extra_that_has_it(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "ibis", None)  # importing it is now a ModuleNotFoundError
    code, out, err = call("explain")
    assert (code, out) == (1, "")
    assert err == "reactune: this command needs ibis; run `pip install 'reactune[train]'`\n"


@pytest.mark.parametrize(
    "command", [("run",), ("stage", "extract", "--run", "20260401-080000-0000"), ("deploy",)]
)
def test_what_trains_asks_for_its_libraries_before_it_does_anything(
    call, here, monkeypatch, command
):
    call("init")
    monkeypatch.setitem(sys.modules, "torch", None)
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


def test_a_command_ends_with_the_process_that_names_itself_its_parent(call, here):
    call("init")
    os.mkfifo(here / "rows.jsonl")
    code = (
        "import os, subprocess, sys\n"
        "command = [sys.executable, '-c', 'from reactune.cli import main; main()', 'ingest', "
        "'rows.jsonl']\n"
        "known = {**os.environ, 'REACTUNE_PARENT': str(os.getpid())}\n"
        "child = subprocess.Popen(command, env=known, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    with (here / "rows.jsonl").open("w"):  # open once the child is: from now on it waits for rows
        assert child.is_running()
        parent.kill()
        assert psutil.wait_procs([child], timeout=30)[1] == []
    parent.communicate()
