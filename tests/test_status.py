"""The lines of `reactune status` at each point of the loop."""

from datetime import date, timedelta

import pytest

from loop_fixtures import SECRET, START, copy_of_trained, expose, install, reactions, take_in
from reactune import pipeline, review
from reactune.cli import main
from reactune.data.labels.scores import DayCount
from reactune.runs.folders import all_runs, new_run
from reactune.status import forecast_line, status

TODAY = START + timedelta(hours=12)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)


def facts(config, now=TODAY):
    """The lines by their first word."""
    return {line[:10].strip(): line[10:] for line in status(config, now=now)}


def test_before_anything_happened_it_names_the_first_commands(tmp_path):
    assert facts(install(tmp_path)) == {
        "live": "nothing is live yet; `reactune deploy --base` makes the base model champion",
        "examples": "0 positives and 0 negatives before duplicates and caps; a training needs "
        "40 + 40 after them",
        "forecast": "no labelled tips lately: at this rate never",
        "last run": "none yet; `reactune run` starts one",
    }


def test_without_a_database_it_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["status"])
    assert caught.value.code == 1
    assert "`reactune init`" in capsys.readouterr().err


def test_while_waiting_it_names_the_day_on_which_there_is_enough(tmp_path):
    config = install(tmp_path)
    for day in range(3):
        take_in(config, reactions(10, first=100 * day, day=day))
    now = START + timedelta(days=2, hours=12)
    found = facts(config, now)
    assert found["examples"].startswith("15 positives and 15 negatives")
    # 5 of each a day in three days; 25 of each are missing: five days more.
    assert found["forecast"] == "enough on 2026-03-09 at the rate of the last two weeks"
    pipeline.run(config, say=lambda line: None)
    (run,) = all_runs(config.run_root)
    assert facts(config, now)["last run"] == (
        f"{run.name}: dataset: waiting: 15 of 40 positives, 15 of 40 negatives"
    )


def test_it_forecasts_with_the_share_that_duplicates_left_last_time(tmp_path):
    config = install(tmp_path)
    rows = reactions(20)
    # Half of the tips repeat the text of another.
    rows += [{**row, "tip_id": f"again-{row['tip_id']}"} for row in rows]
    take_in(config, rows)
    before = facts(config)["forecast"]
    assert before == "enough on 2026-03-03 at the rate of the last two weeks"
    pipeline.run(config, say=lambda line: None)
    # 20 of each a day leave 10; 30 of each are missing: three days more.
    assert facts(config)["forecast"] == "enough on 2026-03-05 at the rate of the last two weeks"


def test_with_one_label_missing_it_promises_nothing(tmp_path):
    config = install(tmp_path)
    take_in(config, reactions(30, liked=True))
    found = facts(config)
    assert found["examples"].startswith("30 positives and 0 negatives")
    assert found["forecast"] == "no labelled tips lately: at this rate never"


def test_on_trial_and_afterwards_it_names_the_live_versions(tmp_path):
    config = copy_of_trained(tmp_path)
    found = facts(config)
    assert found["live"].startswith(
        "champion tip-generator:v1, challenger tip-generator:v2 with a reward at 5% "
        "(canary since 20"
    )
    (run,) = all_runs(config.run_root)
    assert found["last run"] == f"{run.name}: deploy: version 2 answers 5% of tips, 1 the rest"
    assert found["forecast"].startswith("enough for a training")
    assert found["verdict"] == "no tip of it counts yet"
    now = expose(config, 60, champion=0.5, challenger=0.5)
    assert "units; a verdict likely by 20" in facts(config, now)["verdict"]
    review.review(config, now=now)
    assert f"at 10% (ramp since {now:%Y-%m-%d %H:%M} UTC)" in facts(config)["live"]
    review.promote(config, now=now)
    assert facts(config)["live"] == "champion tip-generator:v2 with a reward"
    assert "verdict" not in facts(config)


def test_a_run_that_was_interrupted_is_named_with_what_is_done(tmp_path):
    config = copy_of_trained(tmp_path)
    (run,) = all_runs(config.run_root)
    for stage in ("evaluate", "export", "register", "deploy"):
        (run / stage / "manifest.json").unlink()
    assert facts(config)["last run"] == (
        f"{run.name}: interrupted, done: extract, dataset, reward, train; `reactune run` resumes it"
    )
    later = new_run(config.run_root, {}, run_id="20300101-000000-0000")
    assert facts(config)["last run"].startswith(f"{later.name}: interrupted, done: nothing;")


def day_of(day, positives, negatives):
    return DayCount(TODAY.date() + timedelta(days=day), positives, negatives)


def test_the_forecast_counts_on_the_share_that_duplicates_leave():
    days = [day_of(-n, 10, 10) for n in range(14)]
    have, need = (140, 140), (200, 200)
    lines = [forecast_line(days, have, need, kept, TODAY) for kept in (1.0, 0.5)]
    days_on = [date.fromisoformat(line.split()[3]) for line in lines]
    # 60 of each are missing at ten a day; with half of them 130 at five a day.
    assert [(day - TODAY.date()).days for day in days_on] == [6, 26]


def test_the_forecast_needs_both_labels():
    days = [day_of(-n, 10, 0) for n in range(1, 15)]
    line = forecast_line(days, (140, 0), (40, 40), 1.0, TODAY)
    assert line == "forecast  no labelled tips lately: at this rate never"


def test_the_forecast_is_today_with_enough_examples():
    line = forecast_line([day_of(-1, 50, 50)], (50, 50), (40, 40), 1.0, TODAY)
    assert line.startswith("forecast  enough for a training")
