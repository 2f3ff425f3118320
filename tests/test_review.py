"""What reactions make of a challenger: reviewed on a real store and a real registry."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from loop_fixtures import SECRET, copy_of_trained, expose, install
from reactune import deployment, review
from reactune.cli import main
from reactune.errors import CanaryError
from reactune.release import registry
from registry_fixtures import aliases_of

NOW = datetime(2026, 12, 1, tzinfo=UTC)


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


def test_a_challenger_that_people_like_clearly_better_becomes_champion(on_trial):
    now = expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    before = deployment.current(on_trial)
    found = review.review(on_trial, now=now)
    assert found.verdict == "promote"
    assert (found.rollout.champion, found.rollout.challenger) == (2, None)
    assert (found.rollout.phase, found.rollout.share) == ("idle", 0.0)
    assert deployment.current(on_trial) == found.rollout
    assert aliases(on_trial) == {"champion": 2}
    assert "registry alias champion: 1 -> 2" in found.line
    actor, verdict, reason, numbers = decisions(on_trial)[-1]
    assert (actor, verdict) == ("review", "promote")
    assert reason.startswith("the challenger is better")
    assert numbers["units"] == numbers["tips"] == 2_000
    assert 0 < numbers["low"] < numbers["estimate"] < numbers["high"]
    assert numbers["challenger_rate"] == found.comparison.challenger_rate
    assert found.rollout.rollout_id != before.rollout_id
    assert open_rows(on_trial) == 1


def test_a_promotion_that_is_only_proposed_waits_for_the_command(on_trial):
    now = expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    asking = on_trial.model_copy(
        update={"canary": on_trial.canary.model_copy(update={"decides": "propose"})}
    )
    before = deployment.current(on_trial)
    for _ in range(2):
        found = review.review(asking, now=now)
        assert (found.verdict, deployment.current(on_trial)) == ("wait", before)
        assert "promote is proposed: the challenger is better" in found.line
    actor, verdict, reason, _ = decisions(on_trial)[-1]
    assert (actor, verdict) == ("review", "wait")
    assert reason.endswith("`reactune promote` does it")
    assert review.promote(asking, now=now).rollout.champion == 2


def test_a_challenger_that_people_like_clearly_less_is_withdrawn(on_trial):
    now = expose(on_trial, 2_000, champion=0.8, challenger=0.2)
    found = review.review(on_trial, now=now)
    assert found.verdict == "roll back"
    assert (found.rollout.champion, found.rollout.challenger) == (1, None)
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
    found = review.review(on_trial, now=now)
    assert found.verdict == "wait"
    assert "too few reactions to decide (20 units)" in found.line
    assert found.rollout == deployment.current(on_trial) == before
    actor, verdict, _, numbers = decisions(on_trial)[-1]
    assert (actor, verdict, numbers["units"]) == ("review", "wait", 20)
    assert numbers["low"] is numbers["high"] is None


def test_tips_whose_window_is_open_do_not_count_yet(on_trial):
    now = expose(on_trial, 20, champion=0.5, challenger=0.5)
    early = now - timedelta(hours=1)
    assert "(20 units)" in review.review(on_trial, now=now).line
    # One tip a second, and each counts 180 seconds after it was shown.
    assert "(0 units)" in review.review(on_trial, now=early).line


def test_the_share_grows_along_the_ramp_while_nothing_speaks_against_it(on_trial):
    shares, first = [], 0
    for _ in range(4):
        now = expose(on_trial, 60, champion=0.5, challenger=0.5, first=first)
        first += 60
        found = review.review(on_trial, now=now)
        assert found.verdict == "wait"
        shares.append((found.rollout.phase, found.rollout.share))
        # The same rows again: the new share has seen nobody yet.
        again = review.review(on_trial, now=now)
        assert again.rollout == found.rollout
        assert "share" not in again.line
    assert shares == [("ramp", 0.10), ("ramp", 0.25), ("ramp", 0.50), ("ramp", 0.50)]
    numbers = decisions(on_trial)[-1][3]
    assert numbers["units_at_share"] == {"0.05": 60, "0.1": 60, "0.25": 60, "0.5": 60}
    assert aliases(on_trial) == {"champion": 1, "challenger": 2}


def test_the_age_of_a_rollout_is_counted_from_its_first_tip(tmp_path):
    config = copy_of_trained(tmp_path, canary={"min_days": 2})
    now = expose(config, 2_000, champion=0.2, challenger=0.8)
    with closing(sqlite3.connect(config.folder / "reactune.db")) as connection, connection:
        # Tips bear the app's clock, the row that of whoever deployed.
        connection.execute("UPDATE rollouts SET opened_at = '2040-01-01 00:00:00.000000'")
    line = review.review(config, now=now).line
    assert "the challenger is better" in line
    assert "promoted when the rollout is 2 days old" in line
    assert review.review(config, now=now + timedelta(days=2)).verdict == "promote"


def test_a_second_review_after_the_verdict_changes_nothing(on_trial):
    now = expose(on_trial, 2_000, champion=0.2, challenger=0.8)
    after = review.review(on_trial, now=now).rollout
    told = decisions(on_trial)
    again = review.review(on_trial, now=now)
    assert again.verdict == "wait"
    assert again.line == "version 2 is champion, none is on trial"
    assert again.rollout == after
    assert decisions(on_trial) == told
    assert open_rows(on_trial) == 1


def test_aliases_that_somebody_moved_by_hand_are_put_right(on_trial):
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


def test_somebody_may_promote_by_hand(on_trial):
    found = review.promote(on_trial, now=NOW)
    assert found.line.startswith("version 2 is champion now")
    assert deployment.current(on_trial).champion == 2
    assert aliases(on_trial) == {"champion": 2}
    assert decisions(on_trial)[-1][:3] == ("hand", "promote", "by hand")


def test_somebody_may_roll_back_by_hand(on_trial):
    found = review.roll_back(on_trial, now=NOW)
    assert "version 1 stays champion" in found.line
    assert deployment.current(on_trial).challenger is None
    assert aliases(on_trial) == {"champion": 1}
    assert decisions(on_trial)[-1][:3] == ("hand", "roll back", "by hand")
    for act in (review.promote, review.roll_back):
        with pytest.raises(CanaryError, match="has no challenger"):
            act(on_trial, now=NOW)


def test_before_anything_is_live_a_review_says_what_to_do(tmp_path):
    config = install(tmp_path)
    for act in (review.review, review.promote, review.roll_back):
        with pytest.raises(CanaryError, match="nothing is live yet; `reactune deploy --base`"):
            act(config, now=NOW)


def test_the_command_line_reviews_and_rolls_back(on_trial, monkeypatch, capsys):
    monkeypatch.chdir(on_trial.folder)
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    for command, said in (
        ("review", "wait: too few reactions to decide (0 units)"),
        ("rollback", "the challenger is withdrawn, version 1 stays champion"),
        ("review", "version 1 is champion, none is on trial"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([command])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(said)


def test_a_version_that_was_withdrawn_may_be_put_on_trial_again(on_trial, monkeypatch, capsys):
    review.roll_back(on_trial, now=NOW)
    monkeypatch.chdir(on_trial.folder)
    with pytest.raises(SystemExit) as caught:
        main(["deploy", "--version", "2"])
    assert caught.value.code == 0
    assert "version 2 answers 5% of the tips beside 1" in capsys.readouterr().out
    assert aliases(on_trial) == {"champion": 1, "challenger": 2}


def test_the_base_answers_where_nothing_does_and_nothing_is_put_on_trial_by_it(
    on_trial, tmp_path, monkeypatch, capsys
):
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
