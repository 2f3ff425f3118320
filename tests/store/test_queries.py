import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reactune.errors import CanaryError, DataError
from reactune.records import ModelVersion, Reason, Rollout
from reactune.store.database import writing
from reactune.store.queries import (
    add_decision,
    add_model_version,
    all_model_versions,
    close_rollout,
    current_rollout,
    hold_rollout,
    model_version,
    open_rollout,
    update_rollout,
    upsert_scores,
)
from reactune.store.schema import decisions, rollouts, tip_scores

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
BASE = ModelVersion(
    version=1,
    name="tip-generator:v1",
    run_id="base",
    gguf=Path("/models/v1.gguf"),
    sha256="ab" * 32,
    prompt_folder=Path("/models/prompt"),
    base="smollm2-135m-instruct",
    quantisation="q8_0",
)
TUNED = replace(
    BASE, version=2, name="tip-generator:v2", run_id="r2", adapter=Path("/runs/r2/adapter")
)
CANARY = Rollout(
    rollout_id="first",
    champion=1,
    challenger=2,
    phase="canary",
    share=0.05,
    salt="salt",
    unit="user_day",
    planned_units=5_000,
    opened_at=NOON,
    share_since=NOON,
)
IDLE = replace(CANARY, rollout_id="idle", challenger=None, phase="idle", share=0.0)
WHY = Reason("review", "no harm at 5 %", {"low": -0.01, "units": 250}, NOON)


def score(tip_id="t1", **columns):
    return {
        "tip_id": tip_id,
        "user_key": "u",
        "key_id": "k",
        "kind": "headline",
        "context_json": "{}",
        "tip_content": "Take a walk",
        "created_at": NOON,
    } | columns


@pytest.fixture
def models(engine):
    with writing(engine) as connection:
        add_model_version(connection, BASE, NOON)
        add_model_version(connection, TUNED, NOON)
    return engine


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    time=st.datetimes(datetime(1970, 1, 3), datetime(2099, 1, 1)),
    offset=st.integers(-14 * 60, 14 * 60),
)
def test_a_time_comes_back_as_the_same_instant_in_utc(engine, time, offset):
    time = time.replace(tzinfo=timezone(timedelta(minutes=offset)))
    with engine.connect() as connection:
        upsert_scores(connection, [score(shown_at=time)])
        found = connection.scalar(sa.select(tip_scores.c.shown_at))
        is_found = connection.scalar(sa.select(tip_scores.c.tip_id).filter_by(shown_at=time))
        connection.rollback()
    assert (found, found.tzinfo, is_found) == (time, UTC, "t1")


def test_a_time_without_offset_is_refused(engine):
    with engine.connect() as connection, pytest.raises(DataError, match="without an offset"):
        upsert_scores(connection, [score(shown_at=datetime(2026, 3, 4))])


def test_an_upsert_changes_only_the_columns_it_names(engine):
    served = {"arm": "challenger", "propensity": 0.05, "model_version": 2, "rollout_id": "first"}
    with writing(engine) as connection:
        upsert_scores(connection, [score(**served, training_allowed=False)])
        upsert_scores(connection, [score(tip_content="Sit down", reaction="done", dwell_ms=20_000)])
        row = connection.execute(sa.select(tip_scores)).mappings().one()
    expected = score(**served, training_allowed=False, tip_content="Sit down", source="llm")
    assert {**row} == dict.fromkeys(row) | expected | {
        "reaction": "done",
        "dwell_ms": 20_000,
        "cut": False,
    }


def test_of_two_rows_with_one_tip_id_the_later_stands(engine):
    with writing(engine) as connection:
        upsert_scores(connection, [score(tip_content=text) for text in ("one", "two", "three")])
        assert connection.scalars(sa.select(tip_scores.c.tip_content)).all() == ["three"]


def test_rows_that_name_different_columns_are_refused(engine):
    with (
        writing(engine) as connection,
        pytest.raises(DataError, match="different columns"),
    ):
        upsert_scores(connection, [score("t1"), score("t2", reaction="done")])


def test_upserting_nothing_is_fine(engine):
    with writing(engine) as connection:
        upsert_scores(connection, [])
        assert connection.scalar(sa.select(sa.func.count()).select_from(tip_scores)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "\N{OWL}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}\U0010fffd",
        "\N{RIGHT-TO-LEFT EMBEDDING}\N{HEBREW LETTER SHIN}\N{ARABIC LETTER MEEM}",
        "x" * 1_000_000,
        "a\r\n\tb'\"%s:x\\",
    ],
    ids=["emoji", "right to left", "long", "quoting"],
)
def test_text_comes_back_as_it_was(engine, text):
    with writing(engine) as connection:
        upsert_scores(connection, [score(tip_content=text)])
    with engine.connect() as connection:
        assert connection.scalar(sa.select(tip_scores.c.tip_content)) == text


@pytest.mark.parametrize("wrong", [{"reaction": "love"}, {"dwell_ms": -1}, {"propensity": 0.0}])
def test_the_database_itself_refuses_impossible_scores(engine, wrong):
    with pytest.raises(sa.exc.IntegrityError), writing(engine) as connection:
        upsert_scores(connection, [score(**wrong)])


def test_a_model_version_comes_back_as_it_was_registered(models):
    with models.connect() as connection:
        assert all_model_versions(connection) == (BASE, TUNED)
        assert model_version(connection, 2) == TUNED


def test_registering_a_version_twice_changes_nothing(models):
    with writing(models) as connection:
        add_model_version(connection, TUNED, NOON + timedelta(days=1))
    with models.connect() as connection:
        assert all_model_versions(connection) == (BASE, TUNED)


@pytest.mark.parametrize("other", [replace(TUNED, sha256="00"), replace(TUNED, version=3)])
def test_a_version_is_never_overwritten(models, other):
    with writing(models) as connection, pytest.raises(DataError, match="another model"):
        add_model_version(connection, other, NOON)


def test_an_unknown_version_is_named(models):
    with models.connect() as connection, pytest.raises(DataError, match="version 7 is not"):
        model_version(connection, 7)


def test_before_the_first_rollout_nothing_is_live(engine):
    with engine.connect() as connection:
        assert current_rollout(connection) is None


def test_a_rollout_takes_the_place_of_an_idle_one(models):
    later = replace(CANARY, opened_at=NOON + timedelta(hours=1))
    with writing(models) as connection:
        open_rollout(connection, IDLE)
        open_rollout(connection, later)
    with models.connect() as connection:
        assert current_rollout(connection) == later
        ended = connection.execute(sa.select(rollouts).filter_by(rollout_id="idle")).one()
    assert (ended.phase, ended.closed_at, ended.verdict) == ("closed", later.opened_at, None)


def test_a_running_challenger_is_not_pushed_aside(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        with pytest.raises(CanaryError, match="rollout first is still running"):
            open_rollout(connection, replace(CANARY, rollout_id="second"))
        assert current_rollout(connection) == CANARY


def test_a_rollout_needs_registered_models(models):
    with writing(models) as connection, pytest.raises(DataError, match="version 9 is not"):
        open_rollout(connection, replace(CANARY, challenger=9))


def test_the_database_itself_allows_one_open_rollout(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
    with models.connect() as connection:
        row = {**connection.execute(sa.select(rollouts)).mappings().one()}
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(rollouts.insert(), row | {"rollout_id": "second"})


def test_a_ramp_moves_phase_and_share_and_says_why(models):
    moved = replace(CANARY, phase="ramp", share=0.1, share_since=NOON + timedelta(days=1))
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        update_rollout(connection, replace(moved, salt="another"), why=WHY)
    with models.connect() as connection:
        assert current_rollout(connection) == moved
        row = connection.execute(sa.select(decisions)).one()
    assert row == (1, "first", NOON, "review", "wait", WHY.text, '{"low":-0.01,"units":250}')


def test_an_ended_rollout_keeps_its_verdict_and_the_successor_is_live(models):
    successor = replace(IDLE, rollout_id="next", champion=2)
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        close_rollout(connection, "first", "promote", why=WHY, successor=successor)
    with models.connect() as connection:
        assert current_rollout(connection) == successor
        ended = connection.execute(sa.select(rollouts).filter_by(rollout_id="first")).one()
        assert connection.scalars(sa.select(decisions.c.verdict)).all() == ["promote"]
    assert (ended.phase, ended.closed_at, ended.verdict) == ("closed", NOON, "promote")


def test_a_closed_rollout_is_neither_moved_nor_closed_again(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
        close_rollout(connection, "first", "promote", why=WHY, successor=IDLE)
        with pytest.raises(CanaryError, match="first is not open any more"):
            close_rollout(
                connection, "first", "promote", why=WHY, successor=replace(IDLE, rollout_id="x")
            )
        with pytest.raises(CanaryError, match="first is not open any more"):
            update_rollout(connection, CANARY, why=WHY)
        assert current_rollout(connection) == IDLE


def test_a_change_and_its_record_are_written_together_or_not_at_all(models):
    with writing(models) as connection:
        open_rollout(connection, CANARY)
    with pytest.raises(DataError, match="version 9"), writing(models) as connection:
        close_rollout(connection, "first", "promote", why=WHY, successor=replace(IDLE, champion=9))
    with models.connect() as connection:
        assert current_rollout(connection) == CANARY
        assert connection.execute(sa.select(decisions)).all() == []


def test_a_decision_is_about_a_rollout_that_exists(models):
    with pytest.raises(sa.exc.IntegrityError), writing(models) as connection:
        add_decision(connection, "first", "wait", why=WHY)


def test_reviews_at_once_do_not_lose_a_step(models):
    with writing(models) as connection:
        open_rollout(connection, replace(CANARY, share=0.0))

    def ramp():
        for _ in range(5):
            with writing(models) as connection:
                live = hold_rollout(connection)
                update_rollout(connection, replace(live, share=live.share + 0.01), why=WHY)

    reviews = [threading.Thread(target=ramp) for _ in range(4)]
    for review in reviews:
        review.start()
    for review in reviews:
        review.join()
    with models.connect() as connection:
        assert current_rollout(connection).share == pytest.approx(0.20)
        assert len(connection.execute(sa.select(decisions)).all()) == 20
