"""A review at once and in steps, on a real store and a real registry."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from math import inf

import pytest

from canary_fixtures import comparison_of
from loop_fixtures import SECRET, copy_of_trained, expose, install
from reactune import deployment, review
from reactune.canary.rollout import ShadowReport
from reactune.cli import main
from reactune.errors import CanaryError, DataError
from reactune.records import REVIEW_STEPS, Rollout
from reactune.release import registry
from reactune.review import Snapshot, compare_arms, judge, read_snapshot, reason_to_skip, run_step
from reactune.store.database import reading
from reactune.store.labels import label_rule
from reactune.store.summaries import counted_at, days_since, latest_days, summaries_of
from registry_fixtures import aliases_of

NOW = datetime(2026, 12, 1, tzinfo=UTC)
LATER = datetime.now(UTC) + timedelta(days=1)  # when every window of the exposures has closed
ID = "20261123-101500-airflow"


@pytest.fixture
def on_trial(tmp_path):
    """An installation in which version 2 is on trial beside version 1, at 5 %."""
    return copy_of_trained(tmp_path)


def decisions(config):
    """Actor, verdict, reason and numbers of all decisions, oldest first."""
    query = "SELECT actor, verdict, reason, numbers_json FROM decisions ORDER BY decision_id"
    with closing(sqlite3.connect(config.folder / "reactune.db")) as connection:
        rows = connection.execute(query).fetchall()
    return [(*row[:3], json.loads(row[3])) for row in rows]


def open_rows(config):
    query = "SELECT count(*) FROM rollouts WHERE closed_at IS NULL"
    with closing(sqlite3.connect(config.folder / "reactune.db")) as connection:
        return connection.execute(query).fetchone()[0]


def aliases(config):
    return aliases_of(config.registry, config.tracking_uri)


def move_alias(config, alias, version):
    with registry._client(config.tracking_uri) as client:
        client.set_registered_model_alias(config.registry.model_name, alias, str(version))


def test_a_clearly_better_challenger_becomes_champion(on_trial):
    now = expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    before = deployment.current(on_trial)
    done = review.review(on_trial, now=now)
    assert done.verdict == "promote"
    assert (done.rollout.champion, done.rollout.challenger) == (2, None)
    assert (done.rollout.phase, done.rollout.share) == ("idle", 0.0)
    assert deployment.current(on_trial) == done.rollout
    assert aliases(on_trial) == {"champion": 2}
    assert "registry alias champion: 1 -> 2" in done.line
    actor, verdict, reason, numbers = decisions(on_trial)[-1]
    assert (actor, verdict) == ("review", "promote")
    assert reason.startswith("the challenger is better")
    assert numbers["units"] == numbers["tips"] == 2_000
    assert 0 < numbers["low"] < numbers["estimate"] < numbers["high"]
    assert numbers["challenger_rate"] == done.comparison.challenger_rate
    assert done.rollout.rollout_id != before.rollout_id
    assert open_rows(on_trial) == 1


def test_a_promotion_that_is_only_proposed_waits_for_the_command(on_trial):
    now = expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    asking = on_trial.model_copy(
        update={"canary": on_trial.canary.model_copy(update={"decides": "propose"})}
    )
    before = deployment.current(on_trial)
    for _ in range(2):
        done = review.review(asking, now=now)
        assert (done.verdict, deployment.current(on_trial)) == ("wait", before)
        assert "promote is proposed: the challenger is better" in done.line
    actor, verdict, reason, _ = decisions(on_trial)[-1]
    assert (actor, verdict) == ("review", "wait")
    assert reason.endswith("`reactune promote` does it")
    assert review.promote(asking, now=now).rollout.champion == 2


def test_a_clearly_worse_challenger_is_withdrawn(on_trial):
    now = expose(on_trial, 2_000, champion=0.8, challenger=0.2)
    done = review.review(on_trial, now=now)
    assert done.verdict == "roll back"
    assert (done.rollout.champion, done.rollout.challenger) == (1, None)
    assert aliases(on_trial) == {"champion": 1}
    actor, verdict, reason, numbers = decisions(on_trial)[-1]
    assert (actor, verdict) == ("review", "roll back")
    assert reason.startswith("the challenger is worse")
    assert numbers["high"] < 0
    assert len(deployment.versions(on_trial)) == 2


def test_rates_in_the_line_are_those_of_the_rows(on_trial):
    now = expose(on_trial, 300, champion=0.5, challenger=0.5)
    query = (
        "SELECT arm, avg(reaction = 'done') FROM tip_scores WHERE rollout_id IS NOT NULL "
        "GROUP BY arm"
    )
    with closing(sqlite3.connect(on_trial.folder / "reactune.db")) as connection:
        rates = dict(connection.execute(query).fetchall())
    line = review.review(on_trial, now=now).line
    assert f"champion {rates['champion']:.1%}, challenger {rates['challenger']:.1%}" in line


def test_with_little_data_a_review_waits_and_changes_nothing(on_trial):
    before = deployment.current(on_trial)
    now = expose(on_trial, 20, champion=0.5, challenger=0.5)
    done = review.review(on_trial, now=now)
    assert done.verdict == "wait"
    assert "too few reactions to decide (20 units)" in done.line
    assert done.rollout == deployment.current(on_trial) == before
    actor, verdict, _, numbers = decisions(on_trial)[-1]
    assert (actor, verdict, numbers["units"]) == ("review", "wait", 20)
    assert numbers["low"] is numbers["high"] is None


def test_tips_whose_window_is_open_do_not_count_yet(on_trial):
    now = expose(on_trial, 20, champion=0.5, challenger=0.5)
    early = now - timedelta(hours=1)
    assert "(20 units)" in review.review(on_trial, now=now).line
    # One tip a second, and each counts 180 seconds after it was shown.
    assert "(0 units)" in review.review(on_trial, now=early).line


def test_the_share_grows_along_the_ramp_without_harm(on_trial):
    shares, first = [], 0
    for _ in range(4):
        now = expose(on_trial, 60, champion=0.5, challenger=0.5, first=first)
        first += 60
        done = review.review(on_trial, now=now)
        assert done.verdict == "wait"
        shares.append((done.rollout.phase, done.rollout.share))
        # The same rows again: no unit has the new share yet.
        again = review.review(on_trial, now=now)
        assert again.rollout == done.rollout
        assert "share" not in again.line
    assert shares == [("ramp", 0.10), ("ramp", 0.25), ("ramp", 0.50), ("ramp", 0.50)]
    numbers = decisions(on_trial)[-1][3]
    assert numbers["units_at_share"] == {"0.05": 60, "0.1": 60, "0.25": 60, "0.5": 60}
    assert aliases(on_trial) == {"champion": 1, "challenger": 2}


def test_the_age_of_a_rollout_is_counted_from_its_first_tip(tmp_path):
    config = copy_of_trained(tmp_path, canary={"min_days": 2})
    now = expose(config, 2_000, champion=0.2, challenger=0.8)
    with closing(sqlite3.connect(config.folder / "reactune.db")) as connection, connection:
        # Tips have the app's clock, the row that of the deployment.
        connection.execute("UPDATE rollouts SET opened_at = '2040-01-01 00:00:00.000000'")
    line = review.review(config, now=now).line
    assert "the challenger is better" in line
    assert "promoted when the rollout is 2 days old" in line
    assert review.review(config, now=now + timedelta(days=2)).verdict == "promote"


def test_a_second_review_after_the_verdict_changes_nothing(on_trial):
    now = expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    after = review.review(on_trial, now=now).rollout
    recorded = decisions(on_trial)
    again = review.review(on_trial, now=now)
    assert again.verdict == "wait"
    assert again.line == "version 2 is champion, none is on trial"
    assert again.rollout == after
    assert decisions(on_trial) == recorded
    assert open_rows(on_trial) == 1


def test_aliases_that_were_moved_by_hand_are_repaired(on_trial):
    move_alias(on_trial, "champion", 2)
    move_alias(on_trial, "challenger", 1)
    line = review.review(on_trial, now=NOW).line
    assert "registry alias champion: 2 -> 1" in line
    assert "registry alias challenger: 1 -> 2" in line
    assert aliases(on_trial) == {"champion": 1, "challenger": 2}
    assert "alias" not in review.review(on_trial, now=NOW).line
    review.roll_back(on_trial, now=NOW)
    move_alias(on_trial, "challenger", 2)
    assert "registry alias challenger: 2 -> None" in review.review(on_trial, now=NOW).line
    assert aliases(on_trial) == {"champion": 1}


def test_a_challenger_can_be_promoted_by_hand(on_trial):
    done = review.promote(on_trial, now=NOW)
    assert done.line.startswith("version 2 is champion now")
    assert deployment.current(on_trial).champion == 2
    assert aliases(on_trial) == {"champion": 2}
    assert decisions(on_trial)[-1][:3] == ("hand", "promote", "by hand")


def test_a_challenger_can_be_rolled_back_by_hand(on_trial):
    done = review.roll_back(on_trial, now=NOW)
    assert "version 1 stays champion" in done.line
    assert deployment.current(on_trial).challenger is None
    assert aliases(on_trial) == {"champion": 1}
    assert decisions(on_trial)[-1][:3] == ("hand", "roll back", "by hand")
    for act in (review.promote, review.roll_back):
        with pytest.raises(CanaryError, match="has no challenger"):
            act(on_trial, now=NOW)


def test_before_anything_is_live_a_review_names_the_command(tmp_path):
    config = install(tmp_path)
    for act in (review.review, review.promote, review.roll_back):
        with pytest.raises(CanaryError, match="nothing is live yet; `reactune deploy --base`"):
            act(config, now=NOW)


def test_the_command_line_reviews_and_rolls_back(on_trial, monkeypatch, capsys):
    monkeypatch.chdir(on_trial.folder)
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    for command, start in (
        ("review", "wait: too few reactions to decide (0 units)"),
        ("rollback", "the challenger is withdrawn, version 1 stays champion"),
        ("review", "version 1 is champion, none is on trial"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([command])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(start)


def test_a_withdrawn_version_can_be_put_on_trial_again(on_trial, monkeypatch, capsys):
    review.roll_back(on_trial, now=NOW)
    monkeypatch.chdir(on_trial.folder)
    with pytest.raises(SystemExit) as caught:
        main(["deploy", "--version", "2"])
    assert caught.value.code == 0
    assert "version 2 answers 5% of the tips beside 1" in capsys.readouterr().out
    assert aliases(on_trial) == {"champion": 1, "challenger": 2}


@pytest.mark.slow
def test_deploying_the_base_puts_no_version_on_trial(on_trial, tmp_path, monkeypatch, capsys):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    review.roll_back(on_trial, now=NOW)
    for config in (on_trial, install(fresh)):
        monkeypatch.chdir(config.folder)
        for _ in range(2):
            with pytest.raises(SystemExit) as caught:
                main(["deploy", "--base"])
            assert caught.value.code == 0
            assert capsys.readouterr().out == "version 1 is champion\n"
            assert aliases(config) == {"champion": 1}
            assert deployment.current(config).challenger is None
    with pytest.raises(SystemExit) as caught:
        main(["deploy", "--base", "--version", "2"])
    assert caught.value.code == 2


def steps(config, names=REVIEW_STEPS, *, review_id=ID):
    """Do some steps; those that had something to do, and what was lines."""
    lines = []
    done = [n for n in names if run_step(config, n, review_id, now=LATER, say=lines.append)]
    return done, lines


def test_the_steps_do_what_a_whole_review_does(on_trial, tmp_path_factory):
    other = copy_of_trained(tmp_path_factory.mktemp("other"))
    expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    expose(other, 2_000, champion=0.2, challenger=0.8)
    done, lines = steps(on_trial)
    whole = review.review(other, now=LATER)
    assert done == ["compare", "decide", "promote"]
    assert deployment.current(on_trial).champion == whole.rollout.champion == 2
    assert aliases(on_trial) == aliases(other) == {"champion": 2}
    assert decisions(on_trial)[-1] == decisions(other)[-1]
    assert whole.line.startswith(lines[1].removeprefix("decide    "))
    assert lines[2].startswith("promote   version 2 is champion, none is on trial; registry alias")
    assert lines[3].startswith("rollback  not done: promote: the challenger is better")
    assert lines[4].startswith("wait      not done: promote: the challenger is better")


def test_the_steps_may_be_done_by_workers_that_share_no_disk(tmp_path, s3_url):
    one, two = (
        copy_of_trained(tmp_path, run={"root": s3_url}, model={"cache_dir": str(tmp_path / name)})
        for name in ("one", "two")
    )
    expose(one, 2_000, champion=0.2, challenger=0.8)
    assert steps(one, ["compare"])[0] == ["compare"]
    assert steps(two, ["decide"])[0] == ["decide"]
    assert steps(one, ["promote", "rollback"])[0] == ["promote"]
    assert steps(two)[0] == ["compare", "decide", "promote"]
    assert deployment.current(two).champion == 2
    assert [row[:2] for row in decisions(one)].count(("review", "promote")) == 1


def test_a_worse_challenger_is_rolled_back_by_the_step_of_that_name_alone(on_trial):
    expose(on_trial, 2_000, champion=0.8, challenger=0.2)
    assert steps(on_trial)[0] == ["compare", "decide", "rollback"]
    assert (deployment.current(on_trial).champion, deployment.current(on_trial).challenger) == (
        1,
        None,
    )
    assert decisions(on_trial)[-1][:2] == ("review", "roll back")


def test_a_step_raises_the_share_once_however_often_it_is_repeated(on_trial):
    expose(on_trial, 60, champion=0.5, challenger=0.5)
    assert steps(on_trial)[0] == ["compare", "decide", "wait"]
    assert deployment.current(on_trial).share == 0.10
    recorded = decisions(on_trial)
    assert steps(on_trial)[0] == ["compare", "decide", "wait"]
    assert deployment.current(on_trial).share == 0.10
    assert decisions(on_trial) == recorded
    assert steps(on_trial, review_id="20261124-101500-airflow")[0][-1] == "wait"
    assert len(decisions(on_trial)) == len(recorded) + 1


@pytest.mark.parametrize("rates", [(0.2, 0.8), (0.8, 0.2), (0.5, 0.5)])
def test_a_step_killed_after_it_acted_does_not_act_again(on_trial, rates):
    expose(on_trial, 2_000, champion=rates[0], challenger=rates[1])
    done, _ = steps(on_trial)
    after, recorded = deployment.current(on_trial), decisions(on_trial)
    manifest = on_trial.run_root / "reviews" / ID / done[-1] / "manifest.json"
    manifest.unlink()
    assert steps(on_trial)[0] == done
    assert manifest.is_file()
    assert (deployment.current(on_trial), decisions(on_trial)) == (after, recorded)


def test_a_rollback_by_hand_after_the_comparison_stands(on_trial):
    expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    steps(on_trial, ("compare", "decide"))
    review.roll_back(on_trial, now=LATER)
    recorded = decisions(on_trial)
    done, lines = steps(on_trial, ("promote", "rollback", "wait"))
    assert done == ["promote"]
    assert lines[0] == "promote   version 1 is champion, none is on trial"
    assert deployment.current(on_trial).champion == 1
    assert decisions(on_trial) == recorded


def test_without_a_challenger_the_steps_only_repair_aliases(on_trial):
    expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    steps(on_trial)
    move_alias(on_trial, "champion", 1)
    done, lines = steps(on_trial, review_id="20261124-101500-airflow")
    assert done == []
    waiting = "waiting: version 2 is champion, none is on trial; registry alias champion: 1 -> 2"
    assert lines[0] == f"compare   {waiting}"
    assert [line.partition("not done: ")[2] for line in lines[1:]] == [waiting] * 4
    assert aliases(on_trial) == {"champion": 2}


def test_a_step_whose_step_before_is_missing_is_refused(on_trial):
    with pytest.raises(DataError, match="no run '20261123-101500-airflow'"):
        steps(on_trial, ["decide"])
    steps(on_trial, ["compare"])
    with pytest.raises(DataError, match=r"stage promote lacks .*decision\.json"):
        steps(on_trial, ["promote"])


def test_a_step_of_two_reviews_may_not_share_a_name_that_does_not_sort_by_time(on_trial):
    with pytest.raises(DataError, match="so that names sort by time"):
        steps(on_trial, ["compare"], review_id="monday")


def test_the_snapshot_and_decision_of_a_review_are_in_its_folder(on_trial):
    expose(on_trial, 60, champion=0.5, challenger=0.5)
    steps(on_trial)
    folder = on_trial.run_root / "reviews" / ID
    seen = json.loads((folder / "compare" / "look.json").read_text())
    assert seen["comparison"]["units"] == 60
    assert (seen["rollout"]["champion"], seen["rollout"]["challenger"]) == (1, 2)
    decided = json.loads((folder / "decide" / "decision.json").read_text())
    assert decided["numbers"] == decisions(on_trial)[-1][3]


def test_the_command_line_skips_what_was_not_decided(on_trial, monkeypatch, capsys):
    monkeypatch.chdir(on_trial.folder)
    codes = []
    for step in REVIEW_STEPS:
        with pytest.raises(SystemExit) as caught:
            main(["review", step, "--id", ID, "--waiting-exit-code", "99"])
        codes.append(caught.value.code)
    assert codes == [0, 0, 99, 99, 0]
    assert "decide    wait: too few reactions to decide (0 units)" in capsys.readouterr().out
    for arguments in (["review", "compare"], ["review", "--id", ID]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


ON_TRIAL = Rollout(
    rollout_id="r1", champion=1, challenger=2, phase="canary", share=0.05, salt="s",
    unit="user_day", planned_units=20_000, opened_at=NOW, share_since=NOW,
)  # fmt: skip
# As `compare/look.json` was written by version 0.1.
STORED = """{
  "rollout": {"rollout_id": "r1", "champion": 1, "challenger": 2, "phase": "canary", "share": 0.05,
    "salt": "s", "unit": "user_day", "planned_units": 20000,
    "opened_at": "2026-12-01 00:00:00+00:00", "share_since": "2026-12-01 00:00:00+00:00"},
  "comparison": {"units": 2000, "tips": 2000, "challenger_units": 1000, "challenger_tips": 1000,
    "champion_rate": 0.3, "challenger_rate": 0.3, "estimate": 0.0, "low": -Infinity,
    "high": Infinity, "progress": 0.5, "is_ready": false, "is_hopeless": false,
    "guardrails": [{"name": "snoozes", "champion_rate": 0.1, "challenger_rate": 0.2,
      "evidence": 1.5, "alarm": 7.0}],
    "mismatch": 0.0, "moved_away": 0, "moved_in": 0, "fallback_share": 0.0,
    "units_at_share": {"0.5": 2000}},
  "age_days": 2.5,
  "silence": {"answers": 9, "failed": 1, "refused": 0, "slow": 0, "misread": 0},
  "promised": null
}"""


def test_the_snapshot_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare/look.json").write_text(STORED)
    snapshot = read_snapshot(tmp_path)
    assert snapshot.rollout == ON_TRIAL
    assert (snapshot.comparison.low, snapshot.comparison.is_futile) == (-inf, False)
    assert snapshot.comparison.guardrails[0].log_e_value == 1.5
    assert snapshot.comparison.units_at_share == {0.5: 2_000}
    assert (snapshot.age_days, snapshot.shadow.failed, snapshot.promised) == (2.5, 1, None)


def test_a_snapshot_is_written_under_its_stored_names(on_trial):
    folder = on_trial.folder / "review/compare"
    result = compare_arms(on_trial, folder.parent, folder, LATER)
    assert (result.outcome, result.counts) == ("done", {"units": 0, "tips": 0})
    written = json.loads((folder / "look.json").read_text())
    stored = json.loads(STORED)
    assert written.keys() == stored.keys()
    assert written["comparison"].keys() == stored["comparison"].keys()
    assert read_snapshot(folder.parent).rollout == deployment.current(on_trial)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"comparison": None}, "version 1 is champion, none is on trial"),
        ({}, "champion 30.0%, challenger 30.0% of tips"),
        ({"shadow": ShadowReport(3, 0, 0, 0, 0)}, "version 2 is in the shadow phase"),
        (
            {"comparison": comparison_of(estimate=-0.021), "promised": 0.035},
            "champion 30.0%, challenger 30.0% of tips; holdback: version 1 was promoted at "
            "+3.5 points and is now at +2.1",
        ),
    ],
    ids=["alone", "canary", "shadow", "holdback"],
)
def test_the_line_of_a_snapshot_fits_the_phase(values, line):
    assert Snapshot(ON_TRIAL, **{"comparison": comparison_of(), **values}).line() == line


def test_a_snapshot_without_a_challenger_cannot_be_judged(tmp_path):
    snapshot = Snapshot(ON_TRIAL, comparison=None)
    with pytest.raises(CanaryError, match="none is on trial: there is nothing to decide"):
        judge(install(tmp_path), snapshot)


def test_before_the_comparison_no_step_is_skipped(tmp_path):
    assert [reason_to_skip(tmp_path, step) for step in REVIEW_STEPS] == [None] * 5


def test_a_review_writes_what_the_pages_show(on_trial):
    now = expose(on_trial, 2_000, champion=0.4, challenger=0.5)
    # By chance of the assignment a review may end this rollout, and begin one with a larger share.
    reviewed = deployment.current(on_trial)
    done = review.review(on_trial, now=now)
    with deployment.database(on_trial) as engine, reading(engine) as connection:
        (summary,) = summaries_of(connection, [reviewed.rollout_id])
        latest = latest_days(connection, label_rule(on_trial.labels))
        days = days_since(connection, date.min, latest)
        assert counted_at(connection) == now
    figures = summary.figures
    assert (summary.stage, summary.finished_at) == ("review", now)
    assert 2 < len(figures["at"]) == len(figures["low"]) == len(figures["estimate"]) <= 200
    assert figures["estimate"][-1] == pytest.approx(done.comparison.estimate)
    assert figures["low"][-1] == pytest.approx(done.comparison.low)
    assert figures["low"][0] is None
    assert sum(each.tips for each in days if each.version) >= 2_000


def test_a_review_as_json_has_no_number_that_json_does_not_know(on_trial, capsys):
    expose(on_trial, 20, champion=0.5, challenger=0.5)
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(on_trial.folder / "reactune.toml"), "review", "--json"])
    said = json.loads(
        capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )
    assert ended.value.code == 0
    assert (said["verdict"], said["rollout"]["challenger"]) == ("wait", 2)
    assert said["comparison"]["low"] is None
