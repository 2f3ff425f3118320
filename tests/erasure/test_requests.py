"""Requests of erasures: the database loses the rows at once, and the journal names what is left."""

import json
import re
from datetime import timedelta

import pytest
import sqlalchemy as sa

from people_fixtures import ANNA, KEY, NOW, OLD_KEY, RING, write_tip
from reactune.erasure import requests
from reactune.erasure.requests import ErasedTexts, RunMatch, texts_in
from reactune.privacy.consent import user_statuses
from reactune.privacy.fingerprints import fingerprint_of, fingerprints_of
from reactune.privacy.hashing import HashingKeys, hashed_ids
from reactune.store.database import create_store, reading, writing
from reactune.store.schema import early_reactions, erased_prints, erasures, tip_scores

DAY = timedelta(days=1)
BOTH = HashingKeys(KEY, (OLD_KEY,))
BEN = "ben@example.org"


@pytest.fixture
def engine(sqlite_url):
    """What differs between databases is tested with consent and erase."""
    engine = create_store(sqlite_url)
    yield engine
    engine.dispose()


def write(engine, user, tip_id, *, ring=RING, created_at=NOW - DAY, context="{}", tip="Walk."):
    name = hashed_ids(ring, user)[0]
    row = {
        "tip_id": tip_id,
        "user_key": name.user_key,
        "key_id": name.key_id,
        "kind": "focus",
        "context_json": context,
        "tip_content": tip,
        "created_at": created_at,
    }
    with writing(engine) as connection:
        write_tip(connection, ring, user, row)


def request(engine, *users, ring=RING, now=NOW):
    return requests.request_erasure(engine, ring, users, actor="hand", reason="asked", now=now)


def expire(engine, older_than):
    return requests.request_expiry(engine, older_than=older_than, actor="service", now=NOW)


def tip_ids(engine):
    with reading(engine) as connection:
        return sorted(connection.execute(sa.select(tip_scores.c.tip_id)).scalars())


def journal(engine):
    with reading(engine) as connection:
        return requests.all_erasures(connection)


def stored_fingerprints(engine):
    with reading(engine) as connection:
        rows = connection.execute(sa.select(erased_prints.c.mark, erased_prints.c.print))
        return {tuple(row) for row in rows}


def test_a_request_erases_the_rows_of_its_users_alone(engine):
    for tip_id, user in (("a1", ANNA), ("a2", ANNA), ("b1", BEN)):
        write(engine, user, tip_id)
    erasure = request(engine, ANNA)
    assert tip_ids(engine) == ["b1"]
    assert erasure.numbers == {
        "people": 1, "unknown": [], "rows_removed": 2, "rows_blanked": 0, "keys_not_given": [],
    }  # fmt: skip
    assert erasure.tip_ids == {"a1", "a2"}
    (of_today,) = hashed_ids(RING, ANNA)
    assert next(iter(erasure.marks)) == of_today.user_key
    assert set(erasure.marks.values()) == {of_today.mark}
    assert (erasure.scope, erasure.actor, erasure.reason) == ("people", "hand", "asked")
    assert (erasure.asked_at, erasure.steps, erasure.finished_at) == (NOW, ("rows",), None)


def test_a_request_is_named_by_its_time_and_is_in_the_journal(engine):
    first, second = request(engine, ANNA), request(engine, BEN, now=NOW + DAY)
    assert re.fullmatch(r"20260601-080000-[0-9a-f]{8}", first.erasure_id)
    assert journal(engine) == (first, second)
    with reading(engine) as connection:
        assert requests.open_erasures(connection) == (first, second)
    assert requests.erasures_of(engine, [second.erasure_id]) == [second]


def test_a_user_who_is_named_twice_is_one_user(engine):
    assert request(engine, ANNA, ANNA, BEN).numbers["people"] == 2


def test_rows_under_an_older_key_are_erased_under_the_mark_of_the_current_one(engine):
    write(engine, ANNA, "a1", ring=HashingKeys(OLD_KEY))
    erasure = request(engine, ANNA, ring=BOTH)
    assert tip_ids(engine) == []
    now, before = hashed_ids(BOTH, ANNA)
    assert {now.user_key, before.user_key} <= erasure.marks.keys()
    assert set(erasure.marks.values()) == {now.mark}
    assert {mark for mark, _ in stored_fingerprints(engine)} == {now.mark}


def test_a_key_that_is_not_given_is_named(engine):
    write(engine, ANNA, "a1", ring=HashingKeys(OLD_KEY))
    assert request(engine, ANNA).numbers["keys_not_given"] == [OLD_KEY.key_id]
    assert tip_ids(engine) == ["a1"]


def test_reactions_that_wait_for_an_erased_tip_are_erased_with_it(engine):
    write(engine, ANNA, "a1")
    with writing(engine) as connection:
        for tip_id in ("a1", "other"):
            connection.execute(
                early_reactions.insert(),
                {"tip_id": tip_id, "reaction": "done", "dwell_ms": 1, "reacted_at": NOW,
                 "arrived_at": NOW},
            )  # fmt: skip
    request(engine, ANNA)
    with reading(engine) as connection:
        left = connection.execute(sa.select(early_reactions.c.tip_id)).scalars().all()
    assert left == ["other"]


def test_fingerprints_of_ids_tips_and_contexts_are_kept_and_no_text(engine):
    tip = "Dear Anna, read page two aloud before dinner."
    words = "wants to finish the third chapter of a long book"
    write(engine, ANNA, "a1", tip=tip, context=json.dumps({"v": 1, "context": {"text": words}}))
    request(engine, ANNA)
    mark = hashed_ids(RING, ANNA)[0].mark
    expected = {fingerprint_of(KEY, "a1"), *fingerprints_of(KEY, tip), *fingerprints_of(KEY, words)}
    assert stored_fingerprints(engine) == {(mark, each) for each in expected}


def test_a_repeated_request_adds_no_fingerprint_and_erases_later_rows(engine):
    write(engine, ANNA, "a1")
    request(engine, ANNA)
    before = stored_fingerprints(engine)
    write(engine, ANNA, "a2", created_at=NOW + DAY)
    again = request(engine, ANNA, now=NOW + 2 * DAY)
    assert again.numbers["rows_removed"] == 1
    assert stored_fingerprints(engine) - before == {
        (hashed_ids(RING, ANNA)[0].mark, fingerprint_of(KEY, "a2"))
    }


def test_an_erased_user_is_not_learned_from_and_rows_up_to_then_do_not_come_back(engine):
    request(engine, ANNA)
    with reading(engine) as connection:
        status = user_statuses(connection, RING).of_id(ANNA)
    assert not status.training_allowed
    assert status.refuses(NOW)
    assert status.refuses(None)
    assert not status.refuses(NOW + timedelta(microseconds=1))


def test_more_users_than_one_query_takes_are_erased(engine):
    users = [f"user-{number}" for number in range(1_001)]
    write(engine, users[-1], "last")
    write(engine, BEN, "b1")
    assert request(engine, *users).numbers["rows_removed"] == 1
    assert tip_ids(engine) == ["b1"]


def test_expired_are_rows_from_before_the_moment(engine):
    for days in (1, 2, 3):
        write(engine, ANNA, f"{days} days", created_at=NOW - days * DAY)
    erasure = expire(engine, NOW - 2 * DAY)
    assert tip_ids(engine) == ["1 days", "2 days"]
    assert (erasure.scope, erasure.reason) == ("expired", "older than 2026-05-30")
    assert (erasure.older_than, erasure.numbers["rows_removed"]) == (NOW - 2 * DAY, 1)
    assert (erasure.marks, erasure.tip_ids) == ({}, frozenset())


def test_without_a_moment_no_row_expires(engine):
    write(engine, ANNA, "old", created_at=NOW - 9_000 * DAY)
    erasure = expire(engine, None)
    assert tip_ids(engine) == ["old"]
    assert (erasure.reason, erasure.numbers["rows_removed"]) == ("models without use", 0)


def test_expired_users_may_come_back_and_be_learned_from(engine):
    write(engine, ANNA, "old", created_at=NOW - 9 * DAY)
    expire(engine, NOW - DAY)
    with reading(engine) as connection:
        assert user_statuses(connection, RING).of_id(ANNA).training_allowed
    assert stored_fingerprints(engine) == set()


def test_steps_and_the_end_are_recorded(engine):
    erasure, other = request(engine, ANNA), request(engine, BEN)
    with writing(engine) as connection:
        requests.record_step(connection, [erasure], "runs")
    (now,) = requests.erasures_of(engine, [erasure.erasure_id])
    assert now.steps == ("rows", "runs")
    with writing(engine) as connection:
        requests.record_step(connection, [now], "registry")
        requests.close(connection, [now], now=NOW + DAY)
        assert requests.open_erasures(connection) == (other,)
    (closed,) = requests.erasures_of(engine, [erasure.erasure_id])
    assert (closed.steps, closed.finished_at) == (("rows", "runs", "registry"), NOW + DAY)


def test_after_its_targets_are_erased_the_journal_names_no_user(engine):
    write(engine, ANNA, "tip-of-anna")
    erasure = request(engine, ANNA)
    with writing(engine) as connection:
        requests.erase_targets(connection, [erasure])
        text = str(connection.execute(sa.select(erasures)).mappings().all())
    (now,) = requests.erasures_of(engine, [erasure.erasure_id])
    assert (now.marks, now.tip_ids) == ({}, frozenset())
    for each in (ANNA, "tip-of-anna", *erasure.marks, *erasure.marks.values()):
        assert each not in text


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        (RunMatch(7, learned=True), RunMatch(0, learned=False), RunMatch(7, learned=True)),
        (RunMatch(0, learned=False), RunMatch(3, learned=True), RunMatch(3, learned=True)),
        (RunMatch(3, learned=False), RunMatch(3, learned=False), RunMatch(3, learned=False)),
    ],
)
def test_a_run_keeps_its_largest_match_when_it_is_recorded_again(engine, before, after, kept):
    erasure = request(engine, ANNA)
    with writing(engine) as connection:
        requests.record_run(connection, erasure.erasure_id, "other", RunMatch(1, learned=False))
        for match in (before, after):
            requests.record_run(connection, erasure.erasure_id, "run", match)
    (now,) = requests.erasures_of(engine, [erasure.erasure_id])
    assert now.runs == {"other": RunMatch(1, learned=False), "run": kept}


def test_the_text_of_an_erasure_names_no_user(engine):
    write(engine, ANNA, "secret-tip")
    erasure = request(engine, ANNA)
    for each in ("secret-tip", *erasure.marks, *erasure.marks.values()):
        assert each not in repr(erasure)


def test_names_and_values_of_a_context_are_texts():
    context = '{"v":1,"context":{"open_tasks":["one",{"two":3}],"free_text":"four"}}'
    assert set(texts_in(context)) == {
        "v", "context", "open_tasks", "one", "two", "free_text", "four",
    }  # fmt: skip


@pytest.mark.parametrize("context", ["no JSON", "", "[" * 100_000])
def test_a_context_that_is_no_json_is_one_text(context):
    assert list(texts_in(context)) == [context]


def test_texts_to_erase_hold_the_tip_id_as_well():
    texts = ErasedTexts()
    texts.add("t1", "Walk.", '{"a": "b"}')
    assert (texts.tip_ids, texts.texts) == ({"t1"}, {"t1", "Walk.", "a", "b"})
    assert "Walk" not in repr(texts)
