"""The tutorial, command by command in one shell, with a model of random weights and its readers."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import reactune
from loop_fixtures import write_settings
from places import REPOSITORY, TESTS
from server_fixtures import free_port

PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
SETTINGS = {
    # Random weights end an answer at one token of 260; one that is cut is not learned from.
    "serve": {"max_tokens": 96, "threads": 1, "parallel": 4, "timeout_seconds": 120},
    # How a model of random weights ranks is chance, in which loss it ends is not.
    "gate": {"tolerance": 1.0, "lower_loss_needs_gain": False},
    "export": {"min_greedy_agreement": 0.0, "max_logprob_gap": 1.0, "min_learned_kept": 0.5},
}
TOWN = "reactune.demo.audience:Town"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def commands():
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@pytest.mark.slow
def test_the_commands_of_the_tutorial_lead_from_reactions_to_a_promoted_version(tmp_path):
    port = free_port()
    folder = tmp_path / "tips"
    folder.mkdir()
    write_settings(folder, **{**SETTINGS, "serve": {**SETTINGS["serve"], "port": port}})
    (program,) = blocks("python")

    def here(text):
        return text.replace("8765", str(port)).replace(TOWN, "loop_fixtures:Letters")

    (folder / "users.py").write_text(here(program), encoding="utf-8")
    script = [
        f"{here(each)} --audience loop_fixtures:Letters" if "reactune demo" in each else here(each)
        for each in commands()
    ]
    paths = (str(TESTS), str(Path(reactune.__file__).parents[1]))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    environment.pop("REACTUNE_CONFIG", None)
    shell = ["bash", "-euxo", "pipefail", "-c", "\n".join(script)]
    log = tmp_path / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            shell, cwd=tmp_path, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        code = running.wait(3_000)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGTERM)
    said = log.read_text(encoding="utf-8")
    assert code == 0, said
    assert "version 2 answers" in said
    assert "wait: " in said
    assert "<h1>Rollout" in (folder / "rollout.html").read_text(encoding="utf-8")
    with closing(sqlite3.connect(folder / "reactune.db")) as connection:
        ((champion, challenger),) = connection.execute(
            "SELECT champion, challenger FROM rollouts WHERE closed_at IS NULL"
        ).fetchall()
        ((shown, reacted),) = connection.execute(
            "SELECT count(shown_at), count(reaction) FROM tip_scores WHERE rollout_id IS NOT NULL"
            " AND context_json LIKE '%am%' AND created_at > '2026-06'"
        ).fetchall()
    assert (champion, challenger) == (2, None)
    assert shown == reacted
