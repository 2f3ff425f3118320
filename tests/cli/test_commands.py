"""The command line as a whole: help, errors, exit codes, and the process it runs in."""

import os
import resource
import subprocess
import sys

import numpy as np
import psutil
import pytest

from cli_fixtures import row, write_rows
from reactune.cli import commands
from reactune.cli.session import Session

HEAVY = ("torch", "mlflow", "ibis", "pyarrow", "fastapi", "sqlalchemy", "transformers", "pydantic")


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


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://tips.db", "write three slashes before the file: sqlite:///tips.db"),
        ("tips.db", "is not a database URL; write it as"),
        ("nosuch://host/tips", "names nosuch; the store is SQLite"),
        ("sqlite:////absent/tips.db", "cannot open the database"),
    ],
)
def test_an_init_that_fails_leaves_nothing_behind(call, here, url, message):
    for more in ((), ("--config", "new/reactune.toml")):
        code, _, err = call(*more, "--set", f"store.url={url}", "init")
        assert (code, message in err, err.count("\n")) == (1, True, 1)
        assert [path.name for path in here.iterdir()] == []
    assert call("init")[0] == 0
    before = (here / "reactune.toml").read_text()
    assert call("--set", f"store.url={url}", "init")[0] == 1
    assert (here / "reactune.toml").read_text() == before


def test_what_the_system_refuses_is_one_line_with_place_and_advice(call, here):
    (here / "taken").touch()
    code, _, err = call("--config", "taken/reactune.toml", "init")
    assert (code, "Traceback" in err, err.count("\n")) == (1, False, 1)
    assert "taken" in err


def test_a_current_folder_that_is_gone_is_one_line(call, here, monkeypatch):
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, err = call("status")
    assert (code, err) == (1, "reactune: the current folder is gone; enter one that is there\n")


def test_a_file_that_numpy_can_write_in_part_only_is_one_line(call, here, monkeypatch):
    def fill(*_):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
        try:
            np.zeros(2_000).tofile(here / "file")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "config", fill)
        code, _, err = call("status")
    assert (code, err.count("\n")) == (1, 1)
    assert "could not be written whole" in err
    assert "free some space" in err


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


def test_before_init_every_command_that_needs_the_database_says_so(call, here):
    file = write_rows(here / "rows.jsonl", [row(1)])
    for arguments in [("ingest", file), ("status",), ("review",), ("promote",), ("rollback",)]:
        code, _, err = call(*arguments)
        assert (code, "reactune init" in err) == (1, True), arguments
    assert not (here / "reactune.db").exists()


def test_a_library_that_is_not_installed_is_named_with_the_extra_that_has_it(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ibis", None)  # importing it is now a ModuleNotFoundError
        code, out, err = call("explain")
    assert (code, out) == (1, "")
    assert err == "reactune: this command needs ibis; run `pip install 'reactune[train]'`\n"


def test_a_command_ends_with_the_process_that_names_itself_its_parent(call, here):
    call("init")
    os.mkfifo(here / "ids")
    code = (
        "import os, subprocess, sys\n"
        "call = 'from reactune.cli import main; main()'\n"
        'shell = \'exec "$0" -c "$1" consent refuse --user - < ids\'\n'
        "known = {**os.environ, 'REACTUNE_PARENT': str(os.getpid())}\n"
        "command = ['sh', '-c', shell, sys.executable, call]\n"
        "child = subprocess.Popen(command, env=known, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    with (here / "ids").open("w"):  # opened once the child waits for ids, none of which comes
        assert child.is_running()
        parent.kill()
        assert psutil.wait_procs([child], timeout=30)[1] == []
    parent.communicate()
