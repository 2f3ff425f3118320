import asyncio
import sqlite3
from contextlib import closing
from dataclasses import asdict, fields, replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reactune.errors import AwayError, DataError
from reactune.records import Exposure
from reactune.service import events
from reactune.service.events import (
    BusyError,
    Recorder,
    ShadowAnswer,
    TipCreated,
    TipReaction,
    TipShown,
    write_events,
)
from reactune.store.database import writing
from reactune.store.schema import early_reactions, silent_answers, tip_scores
from server_fixtures import wait_until
from serving_fixtures import NOON, exposure_of, roll_back, rows_of, set_challenger, set_champion

# Written by other events than the creation of a tip, or by the user's consent.
LATER_COLUMNS = {"shown_at", "reaction", "dwell_ms", "reacted_at", "training_allowed"}
MINUTE = timedelta(minutes=1)


def created(tip_id, **values):
    return TipCreated(exposure_of(tip_id=tip_id, **values))


def write(engine, *batch):
    with writing(engine) as connection:
        return write_events(connection, batch)


def early_rows(engine):
    with engine.connect() as connection:
        rows = connection.execute(sa.select(early_reactions).order_by("tip_id")).mappings()
        return {row["tip_id"]: dict(row) for row in rows}


def test_an_exposure_has_every_column_that_is_known_when_a_tip_is_created():
    names = {field.name for field in fields(Exposure)}
    assert names == {column.name for column in tip_scores.columns} - LATER_COLUMNS


def test_an_exposure_is_stored_as_it_is(store):
    exposure = exposure_of(
        tip_id="t1", arm="challenger", propensity=0.25, fallback="timeout", guard="empty,passed",
        sampling_json='{"seed":1}', answer_ms=17,
    )  # fmt: skip
    assert write(store, TipCreated(exposure)) == ["recorded"]
    (row,) = rows_of(store)
    assert {name: row[name] for name in asdict(exposure)} == asdict(exposure)
    assert {name: row[name] for name in LATER_COLUMNS} == {
        "shown_at": None, "reaction": None, "dwell_ms": None, "reacted_at": None,
        "training_allowed": True,
    }  # fmt: skip


def test_a_batch_may_hold_a_tip_and_its_reports(store):
    statuses = write(
        store,
        TipReaction("t1", "done", 20_000, NOON + MINUTE),
        created("t1"),
        TipShown("t1", NOON),
        TipShown("unknown", NOON),
    )
    assert statuses == ["recorded", "recorded", "recorded", "kept"]
    (row,) = rows_of(store)
    assert (row["shown_at"], row["reaction"], row["dwell_ms"]) == (NOON, "done", 20_000)
    assert early_rows(store).keys() == {"unknown"}


def test_an_empty_batch_writes_nothing(store):
    assert write(store) == []


def test_kept_reports_of_one_tip_share_one_row_and_the_latest_reaction_wins(store):
    write(store, TipReaction("t1", "dismiss", 900, NOON))
    write(store, TipShown("t1", NOON + MINUTE), TipReaction("t1", "done", 1_000, NOON + MINUTE))
    row = early_rows(store)["t1"]
    assert (row["reaction"], row["dwell_ms"]) == ("done", 1_000)
    assert (row["arrived_at"], row["shown_at"], row["reacted_at"]) == (
        NOON, NOON + MINUTE, NOON + MINUTE,
    )  # fmt: skip
    assert write(store, created("t1")) == ["recorded"]
    assert rows_of(store)[0]["reaction"] == "done"
    assert early_rows(store) == {}


def test_kept_reactions_are_not_searched_for_a_tip_whose_id_the_service_chose(store):
    write(store, TipReaction("t1", "done", 900, NOON))
    write(store, TipCreated(exposure_of(tip_id="t1"), has_app_id=False))
    assert rows_of(store)[0]["reaction"] is None
    assert early_rows(store).keys() == {"t1"}


ACTS = st.sampled_from(
    [
        lambda minute: TipShown("t1", NOON + minute * MINUTE),
        lambda minute: TipReaction("t1", "done", 20_000, NOON + minute * MINUTE),
        lambda minute: TipReaction("t1", "dismiss", 5, NOON + minute * MINUTE),
        lambda minute: TipReaction("t1", "snooze", 7, NOON + minute * MINUTE),
    ]
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(acts=st.lists(ACTS, min_size=1, max_size=6), tip_at=st.integers(0, 6))
def test_wherever_the_tip_arrives_among_its_reports_the_row_is_the_same(store, acts, tip_at):
    reports = [act(minute) for minute, act in enumerate(acts, start=1)]
    with store.begin() as connection:
        connection.execute(tip_scores.delete())
        connection.execute(early_reactions.delete())
    before = min(tip_at, len(reports))
    for event in (*reports[:before], created("t1"), *reports[before:]):
        write(store, event)
    (row,) = rows_of(store)
    shown = [report.at for report in reports if isinstance(report, TipShown)]
    reactions = [report for report in reports if isinstance(report, TipReaction)]
    assert row["shown_at"] == (shown[0] if shown else None)
    if not reactions:
        assert row["reaction"] is None
        return
    last = reactions[-1]
    repeats = 0
    for report in reversed(reactions):
        if (report.reaction, report.dwell_ms) != (last.reaction, last.dwell_ms):
            break
        repeats += 1
    assert (row["reaction"], row["dwell_ms"]) == (last.reaction, last.dwell_ms)
    assert row["reacted_at"] == reactions[-repeats].at
    assert early_rows(store) == {}


def shadow_answer(rollout_id, answer_id="a1"):
    return ShadowAnswer(
        answer_id, rollout_id, "passed", answer_ms=12, prompt_tokens=40, tokens_read=40, at=NOON
    )


def test_shadow_answers_are_stored_only_while_their_rollout_is_open(store):
    set_champion(store)
    opened = set_challenger(store)
    assert write(store, shadow_answer(opened.rollout_id)) == ["recorded"]
    with store.connect() as connection:
        rows = connection.execute(sa.select(silent_answers)).mappings().all()
    assert [dict(row) for row in rows] == [asdict(shadow_answer(opened.rollout_id))]
    roll_back(store, opened)
    assert write(store, shadow_answer(opened.rollout_id, "a2")) == ["erased"]


def test_events_that_wait_share_one_transaction(store):
    recorder = Recorder(store)
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        first = recorder.submit(created("t0"))
        wait_until(lambda: recorder.waiting == 0)
        rest = [recorder.submit(created(f"t{number}")) for number in range(1, 40)]
        assert recorder.waiting == 39
        other.execute("ROLLBACK")
    assert [future.result(20) for future in (first, *rest)] == ["recorded"] * 40
    assert recorder.transactions == 2
    recorder.close()
    assert len(rows_of(store)) == 40


def test_an_event_that_violates_a_constraint_fails_alone(store):
    recorder = Recorder(store)
    recorder.submit(created("t1")).result(20)
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        blocker = recorder.submit(created("t2"))
        wait_until(lambda: recorder.waiting == 0)
        futures = [recorder.submit(created(tip_id)) for tip_id in ("t3", "t1", "t4")]
        other.execute("ROLLBACK")
    assert blocker.result(20) == "recorded"
    assert futures[0].result(20) == futures[2].result(20) == "recorded"
    with pytest.raises(sa.exc.IntegrityError):
        futures[1].result(20)
    recorder.close()
    assert {row["tip_id"] for row in rows_of(store)} == {"t1", "t2", "t3", "t4"}


def test_an_event_that_no_column_can_hold_fails_alone(store):
    recorder = Recorder(store)
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        recorder.submit(created("t1"))
        wait_until(lambda: recorder.waiting == 0)
        events = [created("t2"), created("t3", tip_content="half \ud83d"), created("t4")]
        futures = [recorder.submit(event) for event in events]
        other.execute("ROLLBACK")
    with pytest.raises(DataError, match="cannot hold one of the values"):
        futures[1].result(20)
    assert futures[0].result(20) == futures[2].result(20) == "recorded"
    assert recorder.submit(created("t5")).result(20) == "recorded"
    recorder.close()
    assert {row["tip_id"] for row in rows_of(store)} == {"t1", "t2", "t4", "t5"}


def test_a_failed_transaction_fails_every_event_of_it_and_the_next_one_succeeds(store, caplog):
    recorder = Recorder(store)
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE tip_scores RENAME TO gone")
    with pytest.raises(AwayError, match="no such table"):
        recorder.submit(created("t1")).result(20)
    assert "1 events were not written: OperationalError" in caplog.text
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO tip_scores")
    assert recorder.submit(created("t1")).result(20) == "recorded"
    recorder.close()


def test_too_many_waiting_events_are_refused(store, monkeypatch):
    monkeypatch.setattr(events, "MAX_WAITING", 2)
    recorder = Recorder(store)
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        futures = [recorder.submit(created("t0"))]
        wait_until(lambda: recorder.waiting == 0)
        futures += [recorder.submit(created(f"t{number}")) for number in (1, 2)]
        with pytest.raises(BusyError, match="does not keep up; try again in a moment"):
            recorder.submit(created("t3"))
        other.execute("ROLLBACK")
    assert [future.result(20) for future in futures] == ["recorded"] * 3
    recorder.close()


def test_after_the_timeout_the_caller_goes_on_and_the_event_is_written_later(store):
    recorder = Recorder(store)
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AwayError, match="not answered in time; check it"):
            asyncio.run(recorder.write(created("t1"), timeout_seconds=0.05))
        other.execute("ROLLBACK")
    recorder.close()
    assert [row["tip_id"] for row in rows_of(store)] == ["t1"]


def test_a_timeout_that_is_long_enough_returns_the_status(store):
    recorder = Recorder(store)
    assert asyncio.run(recorder.write(created("t1"), timeout_seconds=20)) == "recorded"
    assert asyncio.run(recorder.write(TipShown("t2", NOON), timeout_seconds=None)) == "kept"
    recorder.close()


def test_closing_returns_when_every_accepted_event_is_on_disk(store):
    recorder = Recorder(store)
    for number in range(50):
        recorder.submit(created(f"t{number}"))
    recorder.close()
    assert len(rows_of(store)) == 50


def test_a_cancelled_event_neither_fails_nor_stops_the_others(store):
    recorder = Recorder(store)
    with closing(sqlite3.connect(store.url.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        recorder.submit(created("t0"))
        wait_until(lambda: recorder.waiting == 0)
        cancelled, kept = recorder.submit(created("t1")), recorder.submit(created("t2"))
        assert cancelled.cancel()
        other.execute("ROLLBACK")
    assert kept.result(20) == "recorded"
    recorder.close()


def test_a_second_tip_of_the_same_id_never_overwrites_the_first(store):
    write(store, created("t1", tip_content="First."))
    with pytest.raises(sa.exc.IntegrityError):
        write(store, replace(created("t1", tip_content="Second."), has_app_id=False))
    assert [row["tip_content"] for row in rows_of(store)] == ["First."]
