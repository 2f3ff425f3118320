import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from reactune.canary.rollout import (
    Holdback,
    bootstrap_champion,
    open_rollout,
    promote,
    record_wait,
    roll_back,
    set_share,
)
from reactune.config.sections import CanaryConfig
from reactune.errors import CanaryError
from reactune.records import ModelVersion, Reason
from reactune.store.database import writing
from reactune.store.queries import add_model_version, current_rollout
from reactune.store.schema import decisions, rollouts

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SETTINGS = CanaryConfig()
BASE = ModelVersion(
    version=1, name="tip-generator:v1", run_id="base", gguf=Path("/m/1.gguf"), sha256="ab" * 32,
    prompt_folder=Path("/m/prompt"), base="smollm2-135m-instruct", quantisation="q8_0",
)  # fmt: skip
WHY = Reason("review", "because", {"low": 0.01, "high": None}, NOON)


@pytest.fixture
def models(engine):
    with writing(engine) as connection:
        for number in (1, 2, 3):
            model = replace(BASE, version=number, name=f"tip-generator:v{number}")
            add_model_version(connection, model, NOON)
    return engine


@pytest.fixture
def canary(models):
    """Version 2 on trial beside version 1."""
    bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    open_rollout(models, 2, settings=SETTINGS, salt="pepper", now=NOON)
    return models


def live(engine):
    with engine.connect() as connection:
        return current_rollout(connection)


def recorded(engine):
    with engine.connect() as connection:
        query = sa.select(decisions).order_by(decisions.c.decision_id)
        return connection.execute(query).all()


def verdicts(engine):
    return [row.verdict for row in recorded(engine)]


def closed_rollouts(engine):
    with engine.connect() as connection:
        query = sa.select(rollouts).where(rollouts.c.closed_at.is_not(None))
        return connection.execute(query).all()


def test_the_first_champion_is_alone(models):
    first = bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    assert live(models) == first
    assert (first.champion, first.challenger, first.phase, first.share) == (1, None, "idle", 0)


def test_bootstrapping_again_changes_nothing(models):
    first = bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    again = bootstrap_champion(models, 1, settings=SETTINGS, now=NOON + timedelta(hours=1))
    assert again == first == live(models)
    assert verdicts(models) == ["promote"]


def test_a_second_first_champion_is_refused(models):
    bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    with pytest.raises(CanaryError, match="version 1 is champion already"):
        bootstrap_champion(models, 2, settings=SETTINGS, now=NOON)


def test_an_opened_rollout_is_what_the_settings_say(canary):
    opened = live(canary)
    assert (opened.champion, opened.challenger, opened.phase) == (1, 2, "canary")
    assert (opened.share, opened.unit, opened.planned_units) == (0.05, "user_day", 20_000)
    assert (opened.salt, opened.opened_at, opened.share_since) == ("pepper", NOON, NOON)
    assert recorded(canary)[-1].rollout_id == opened.rollout_id


def test_reopening_for_the_same_challenger_changes_nothing(canary):
    before = live(canary)
    again = open_rollout(canary, 2, settings=SETTINGS, salt="other", now=NOON + timedelta(1))
    assert again == before == live(canary)


def test_a_rollout_for_another_challenger_waits_for_the_open_one(canary):
    before = live(canary)
    with pytest.raises(CanaryError, match="challenger 2"):
        open_rollout(canary, 3, settings=SETTINGS, salt="other", now=NOON)
    assert live(canary) == before


def test_without_a_champion_no_rollout_opens(models):
    with pytest.raises(CanaryError, match="nothing is live yet"):
        open_rollout(models, 2, settings=SETTINGS, salt="s", now=NOON)


@pytest.mark.parametrize(
    ("challenger", "message"), [(9, "version 9 is not registered"), (1, "is the champion")]
)
def test_an_unfit_challenger_is_refused_and_leaves_no_trace(models, challenger, message):
    first = bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    with pytest.raises(CanaryError, match=message):
        open_rollout(models, challenger, settings=SETTINGS, salt="s", now=NOON)
    assert live(models) == first
    assert len(recorded(models)) == 1


def test_an_unknown_first_champion_is_refused(models):
    with pytest.raises(CanaryError, match="version 9 is not registered"):
        bootstrap_champion(models, 9, settings=SETTINGS, now=NOON)
    assert live(models) is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_rollout_to_nobody_or_everybody_is_refused(models, share):
    bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    settings = CanaryConfig(share=share, ramp=())
    with pytest.raises(CanaryError, match="one arm stays empty"):
        open_rollout(models, 2, settings=settings, salt="s", now=NOON)


def test_promotion_makes_the_challenger_champion_and_keeps_the_numbers(canary):
    opened = live(canary)
    later = NOON + timedelta(days=3)
    after = promote(canary, opened, replace(WHY, now=later))
    assert live(canary) == after
    assert (after.champion, after.challenger, after.phase, after.share) == (2, None, "idle", 0)
    ended = closed_rollouts(canary)[-1]
    assert (ended.rollout_id, ended.verdict, ended.phase) == (
        opened.rollout_id, "promote", "closed",
    )  # fmt: skip
    assert ended.closed_at == later
    reason = recorded(canary)[-1]
    assert (reason.rollout_id, reason.actor, reason.verdict, reason.reason) == (
        opened.rollout_id, "review", "promote", "because",
    )  # fmt: skip
    assert json.loads(reason.numbers_json) == {"low": 0.01, "high": None}


def test_rolling_back_keeps_the_champion(canary):
    after = roll_back(canary, live(canary), WHY)
    assert (after.champion, after.challenger, after.phase) == (1, None, "idle")
    assert live(canary) == after
    assert closed_rollouts(canary)[-1].verdict == "roll back"


def test_after_a_verdict_the_next_challenger_may_come_even_in_the_same_second(canary):
    roll_back(canary, live(canary), WHY)
    opened = open_rollout(canary, 3, settings=SETTINGS, salt="paprika", now=NOON)
    assert (opened.champion, opened.challenger) == (1, 3)
    promote(canary, opened, WHY)
    again = open_rollout(canary, 2, settings=SETTINGS, salt="cumin", now=NOON)
    assert (again.champion, again.challenger) == (3, 2)


@pytest.mark.parametrize("late", [promote, roll_back])
def test_a_second_verdict_on_the_same_rollout_changes_nothing(canary, late):
    opened = live(canary)
    after = promote(canary, opened, WHY)
    count = len(recorded(canary))
    assert late(canary, opened, replace(WHY, now=NOON + timedelta(hours=1))) == after
    assert live(canary) == after
    assert len(recorded(canary)) == count


def test_of_many_reviewers_at_once_one_acts_and_all_see_the_same(canary):
    opened = live(canary)
    seen = []
    start = threading.Barrier(6)

    def review(act):
        start.wait()
        seen.append(act(canary, opened, WHY))

    threads = [threading.Thread(target=review, args=[act]) for act in (promote, roll_back) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [live(canary)] * 6
    assert len(recorded(canary)) == 3


def test_a_larger_share_starts_the_ramp_and_says_since_when(canary):
    later = NOON + timedelta(days=1)
    grown = set_share(canary, live(canary), 0.1, why=replace(WHY, now=later))
    assert live(canary) == grown
    assert (grown.phase, grown.share, grown.share_since) == ("ramp", 0.1, later)
    assert (grown.salt, grown.opened_at) == ("pepper", NOON)
    assert recorded(canary)[-1].verdict == "wait"


def test_two_reviewers_raise_the_share_once(canary):
    opened = live(canary)
    grown = set_share(canary, opened, 0.1, why=WHY)
    assert set_share(canary, opened, 0.1, why=replace(WHY, now=NOON + timedelta(hours=1))) == grown
    assert live(canary) == grown
    assert len(recorded(canary)) == 3


@pytest.mark.parametrize("share", [0.05, 0.01, 0.0, 1.0, float("nan")])
def test_a_share_that_does_not_grow_or_leaves_no_champion_is_refused(canary, share):
    before = live(canary)
    with pytest.raises(CanaryError, match=f"share = {share}"):
        set_share(canary, before, share, why=WHY)
    assert live(canary) == before


def test_a_share_is_not_raised_after_the_verdict(canary):
    opened = live(canary)
    after = roll_back(canary, opened, WHY)
    assert set_share(canary, opened, 0.1, why=WHY) == after
    assert live(canary).share == 0


def test_without_a_challenger_there_is_nothing_to_decide(models):
    first = bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    for act in (promote, roll_back):
        with pytest.raises(CanaryError, match="has no challenger"):
            act(models, first, WHY)
    with pytest.raises(CanaryError, match="has no challenger"):
        set_share(models, first, 0.1, why=WHY)


def test_a_review_that_waits_leaves_its_numbers(canary):
    before = live(canary)
    record_wait(canary, before, Reason("review", "undecided", {"units": 7}, NOON))
    assert live(canary) == before
    last = recorded(canary)[-1]
    assert (last.verdict, last.reason, last.actor) == ("wait", "undecided", "review")
    assert json.loads(last.numbers_json) == {"units": 7}


def test_unit_planned_size_and_first_share_are_fixed_when_a_rollout_opens(canary):
    opened = live(canary)
    later = CanaryConfig(unit="tip", planned_units=900, share=0.3)
    assert open_rollout(canary, 2, settings=later, salt="other", now=NOON) == opened
    grown = set_share(canary, opened, 0.1, why=WHY)
    assert (grown.unit, grown.planned_units, grown.salt) == ("user_day", 20_000, "pepper")


def test_with_shadow_answers_a_rollout_opens_without_users_and_then_takes_its_first_share(models):
    bootstrap_champion(models, 1, settings=SETTINGS, now=NOON)
    settings = CanaryConfig(shadow_answers=10)
    opened = open_rollout(models, 2, settings=settings, salt="s", now=NOON)
    assert (opened.phase, opened.share) == ("shadow", 0.0)
    first = set_share(models, opened, 0.05, why=WHY)
    assert (first.phase, first.share) == ("canary", 0.05)
    assert set_share(models, first, 0.1, why=WHY).phase == "ramp"


def test_a_wait_on_an_ended_rollout_is_not_recorded(canary):
    opened = live(canary)
    after = roll_back(canary, opened, WHY)
    count = len(recorded(canary))
    assert record_wait(canary, opened, WHY) == after
    assert len(recorded(canary)) == count


def test_a_holdback_keeps_the_former_champion_as_challenger(canary):
    later = replace(WHY, now=NOON + timedelta(days=9))
    kept = promote(canary, live(canary), later, holdback=Holdback(0.1, "new salt"))
    assert (kept.champion, kept.challenger, kept.phase) == (2, 1, "holdback")
    assert (kept.share, kept.salt, kept.opened_at) == (0.1, "new salt", later.now)
    after = roll_back(canary, kept, later)
    assert (after.champion, after.challenger, after.phase) == (2, None, "idle")


def test_a_refused_share_names_the_value_and_the_way_out(canary):
    with pytest.raises(CanaryError, match=r"share = 0\.05: name one above 0\.05 and below 1"):
        set_share(canary, live(canary), 0.05, why=WHY)
    with pytest.raises(CanaryError, match=r"canary\.share = 1\.0: one arm stays empty; set it"):
        open_rollout(canary, 3, settings=CanaryConfig(share=1.0, ramp=()), salt="s", now=NOON)
