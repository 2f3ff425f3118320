"""Commands that set up an installation: what they write, and what they leave alone."""

import subprocess
import sys
import tomllib

import pytest

from cli_fixtures import row, stored, write_rows


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


def test_init_ends_with_one_line_where_the_database_cannot_be_made(call, here):
    code, out, err = call("--set", "store.url=mysql://u:s3cret@h/db", "init")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "store" in err
    assert "s3cret" not in err


def test_config_prints_what_is_in_force_and_marks_what_is_no_default(call):
    code, out, _ = call("--set", "serve.port=9000", "--set", "train.method=kto", "config")
    assert code == 0
    tables = tomllib.loads(out)
    assert (tables["serve"]["port"], tables["train"]["method"]) == (9000, "kto")
    marked = [line for line in out.splitlines() if "# default: " in line]
    assert marked == ['method = "kto" # default: "auto"', "port = 9000 # default: 8765"]


def test_config_hides_passwords(call):
    url = "postgresql://h/db?user=u&password=s3cret"
    _, out, _ = call("--set", f"store.url={url}", "--set", f"registry.tracking_uri={url}", "config")
    assert out.count("postgresql://h/db?user=u&password=***") == 2
    assert "s3cret" not in out


def test_a_file_that_names_a_removed_setting_is_read_with_one_line_of_warning(call, here):
    (here / "reactune.toml").write_text("[gate]\nmax_pairs = 1500\n[train]\nlora_rank = 4\n")
    ran = subprocess.run(
        [sys.executable, "-c", "from reactune.cli import main; main()", "init"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr == (
        "WARNING: reactune.toml: settings without effect, delete them: gate.max_pairs = 1500 "
        "(in force: no limit)\n"
    )
    assert ran.stdout.splitlines()[0] == "reactune.toml: there already, left as it is"


def test_doctor_ends_with_exit_code_1_where_something_is_missing(call, monkeypatch):
    monkeypatch.delenv("REACTUNE_KEY")
    ollama = ("--set", "serve.runtime=ollama", "--set", "serve.ollama_url=http://127.0.0.1:1")
    code, out, _ = call(*ollama, "doctor")
    assert code == 1
    states = {line.split()[1]: line.split()[0] for line in out.splitlines()}
    assert states["key"] == states["database"] == states["model"] == "missing"
    assert states["Python"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--cycles", "-1"), "--cycles"),
        (("--cycles", "many"), "--cycles"),
        (("--seed", "one"), "--seed"),
    ],
)
def test_demo_refuses_numbers_that_are_none_before_it_makes_a_folder(call, here, arguments, named):
    code, _, err = call("demo", *arguments)
    assert (code, named in err) == (2, True)
    assert list(here.iterdir()) == []
