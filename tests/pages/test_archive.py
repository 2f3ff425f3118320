"""`reactune report` and `watch`: the pages as one file, and in a terminal; no text of a tip."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from page_fixtures import HOSTILE, NOW, fill, world
from reactune.canary import rollout as rollouts
from reactune.cli import main
from reactune.errors import DataError
from reactune.pages import archive
from reactune.pages.report import write
from reactune.records import Reason
from reactune.store.database import reading
from reactune.store.queries import current_rollout


@pytest.fixture
def full(sqlite_url, chat):
    with world(sqlite_url, chat) as made:
        fill(made)
        yield made


def reports(made):
    with reading(made.engine) as connection:
        return {
            "run": archive.run_report(connection, "20261117-080000-0000"),
            "rollout": archive.rollout_report(connection, made.config, now=NOW),
            "period": archive.period_report(connection, made.config, days=30, now=NOW),
        }


@pytest.mark.parametrize("name", ["run", "rollout", "period"])
def test_a_report_is_one_file_that_needs_nothing_else(full, tmp_path, name):
    file = tmp_path / "report.html"
    write(reports(full)[name], file, now=NOW)
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert re.findall(r"<(?:script|img|link|iframe|form)\b", text) == []
    assert re.findall(r'(?:src|href)="[^"]*"', text) == []
    assert "url(" not in text
    assert "<svg" in text
    assert HOSTILE not in text
    assert "Tip number" not in text


def test_a_report_of_a_rollout_answers_the_question(full):
    said = reports(full)["rollout"]
    assert said.words.answer == "Not known yet: it may be better or worse."
    assert "version 2 against version 1" in said.lead.lower()


def test_a_report_of_days_has_the_runs_and_erasures_of_these_days_alone(full):
    with reading(full.engine) as connection:
        few = archive.period_report(connection, full.config, days=3, now=NOW)
    tables = {t.name: t for section in few.sections for t in section.all_tables()}
    assert [str(row[0]) for row in tables["runs"].rows] == ["20261126-080000-0000"]
    assert len(tables["erasures"].rows) == 1


def test_what_is_not_there_is_named(full, sqlite_url, chat, tmp_path):
    with reading(full.engine) as connection, pytest.raises(DataError, match=r"no run 'x'.*latest"):
        archive.run_report(connection, "x")
    empty = f"sqlite:///{tmp_path / 'empty.db'}"
    with (
        world(empty, chat) as made,
        reading(made.engine) as connection,
        pytest.raises(DataError, match="no model was on trial yet"),
    ):
        archive.rollout_report(connection, made.config, now=NOW)


def test_the_command_writes_the_file(full, sqlite_url, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--set", f"store.url={sqlite_url}", "report"]
    for more, title in (
        ([], "The last 30 days"),
        (["--rollout"], "Rollout "),
        (["--run", "20261117-080000-0000"], "Run 20261117-080000-0000"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*options, *more, "--out", "r.html"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(title)
        assert title in (tmp_path / "r.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main([*options, "--rollout", "--run", "x"])
    assert ended.value.code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_asks_this_command(shell, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    assert ended.value.code == 0
    assert "_REACTUNE_COMPLETE" in capsys.readouterr().out


def test_watch_prints_the_overview_once_where_there_is_no_terminal(full, sqlite_url, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--set", f"store.url={sqlite_url}", "watch"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Is the new model better?" in said
    assert "Not known yet: it may be better or worse." in said
    assert "2 erasures not done everywhere" in said


def test_watch_follows_the_database_in_a_terminal_until_it_is_interrupted(full, sqlite_url):
    """A real terminal: what is shown changes with the database, and Ctrl-C ends it."""
    screen, terminal = pty.openpty()
    command = ["-c", "from reactune.cli import main; main()", "--set", f"store.url={sqlite_url}"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
    with subprocess.Popen(
        [sys.executable, *command, "watch", "--every", "0.5"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
        # Whoever runs these tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(terminal)
        shown = read_until(screen, "version 2")
        with reading(full.engine) as connection:
            live = current_rollout(connection)
        rollouts.roll_back(full.engine, live, Reason("hand", "enough seen", {}, NOW))
        shown = read_until(screen, "was not better")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert "Enough seen." in shown
    os.close(screen)


def read_until(screen, text):
    """What a terminal shows until this text is there; fails if it never is."""
    shown, deadline = "", time.monotonic() + 60
    while text not in shown or "Live" not in shown.rpartition(text)[2]:
        assert time.monotonic() < deadline, shown[-2_000:]
        if select.select([screen], [], [], 0.5)[0]:
            shown += os.read(screen, 65_536).decode(errors="replace")
    return shown
