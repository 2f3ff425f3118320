"""What is done every day and what a reward is asked, on an installation with a trained version.

MLflow's server is a real one. Only parsed, in `test_consoles.py`: the line that starts it.
"""

import gzip
import json
import random

import pytest

from cli_fixtures import write_rows
from console_fixtures import commands_of, run_in_shell
from loop_fixtures import SECRET, copy_of_trained, reactions
from server_fixtures import tracking_server

pytestmark = pytest.mark.slow


def write_logs(folder):
    """An A/B test and a log of choices, as the page names them."""
    draw = random.Random(7)
    exposures = write_rows(
        folder / "exposures.jsonl",
        [
            {
                "unit_key": f"u{number}",
                "arm": ("champion", "challenger")[number % 2],
                "shown_at": f"2026-11-02T08:{number % 60:02}:00+00:00",
                "reaction": draw.choice(["done", "dismiss"]),
            }
            for number in range(2_000)
        ],
    )
    (folder / "exposures.jsonl.gz").write_bytes(gzip.compress(exposures.read_bytes()))
    write_rows(
        folder / "log.jsonl",
        [
            {"reward": draw.randrange(2), "propensity": 0.5, "new_chance": draw.choice([0.3, 0.7])}
            for _ in range(2_000)
        ],
    )


def test_what_is_done_every_day_can_be_done_on_one_day(tmp_path):
    copy_of_trained(tmp_path)
    write_logs(tmp_path)
    with tracking_server(tmp_path / "server") as (url, _):
        commands = [
            command.replace("http://mlflow.example:5000", url)
            for command in commands_of("operations.md")
            if not command.startswith("mlflow server")
        ]
        printed = run_in_shell(commands, tmp_path, REACTUNE_KEY=SECRET)
    assert f"ok       MLflow        {url}" in printed
    assert "wait: too few reactions to decide" in printed


def test_a_reward_scores_texts_and_is_measured_on_pairs(tmp_path):
    config = copy_of_trained(tmp_path)
    rows = reactions(24, first=7_000)
    shared = {"kind": "focus", "context": {"time_of_day": "night"}}
    texts = [{**shared, "text": row["tip_content"]} for row in rows]
    write_rows(tmp_path / "tips.jsonl", texts)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    write_rows(
        tmp_path / "pairs.jsonl",
        [{**shared, "chosen": a["text"], "rejected": b["text"]} for a, b in pairs],
    )
    run_in_shell(commands_of("reward.md"), config.folder, REACTUNE_KEY=SECRET)
    scored = (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(scored) == 24
    assert json.loads(scored[0]).keys() >= {"reward", "lower_bound"}
