"""Consent, tombstones and changes of keys, on SQLite and PostgreSQL."""

import hmac
import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from people_fixtures import ANNA, KEY, NOW, OLD_KEY, RING, START, write_tip
from reactune.erasure.requests import request_erasure
from reactune.privacy.consent import (
    admit,
    allow_training,
    key_ids,
    lock_for_writing,
    refuse_training,
    user_statuses,
)
from reactune.privacy.hashing import HashingKeys, hashed_ids, mark_of, user_key
from reactune.service.events import TipCreated, TipReaction, TipShown, write_events
from reactune.store.database import create_store, reading, writing
from reactune.store.schema import consents, early_reactions, tip_scores
from serving_fixtures import exposure_of

BOTH, BEFORE = HashingKeys(KEY, (OLD_KEY,)), HashingKeys(OLD_KEY)
DAY = timedelta(days=1)


def row(tip_id, *, user=ANNA, ring=RING, created_at=START, **values):
    name = hashed_ids(ring, user)[0]
    return {
        "tip_id": tip_id,
        "user_key": name.user_key,
        "key_id": name.key_id,
        "kind": "focus",
        "context_json": "{}",
        "tip_content": "Take a walk",
        "created_at": created_at,
        **values,
    }


def write_as_before(engine, tip_id, form):
    """A row of an earlier version, which hashed an id as it came."""
    hashed = hmac.new(KEY.secret, form.encode(), "sha256").hexdigest()
    values = row(tip_id) | {"user_key": hashed}
    with writing(engine) as connection:
        connection.execute(tip_scores.insert(), values)


def refuse_as_before(engine, form):
    hashed = hmac.new(KEY.secret, form.encode(), "sha256").hexdigest()
    mark = mark_of(KEY, hashed)
    values = {"mark": mark, "key_id": KEY.key_id, "training_allowed": False, "decided_at": NOW}
    with writing(engine) as connection:
        connection.execute(consents.insert(), values)


def write(engine, tip_id, *, user=ANNA, ring=RING, **values):
    with writing(engine) as connection:
        return write_tip(connection, ring, user, row(tip_id, user=user, ring=ring, **values))


def stored(engine):
    with reading(engine) as connection:
        rows = connection.execute(sa.select(tip_scores).order_by("tip_id")).mappings()
        return {found["tip_id"]: dict(found) for found in rows}


def erase(engine, *users, ring=RING, now=NOW):
    return request_erasure(engine, ring, users, actor="hand", reason="asked", now=now)


def status(engine, user=ANNA, ring=RING):
    with reading(engine) as connection:
        return user_statuses(connection, ring).of_id(user)


def test_a_user_without_a_decision_may_be_learned_from(engine):
    write(engine, "t1")
    assert stored(engine)["t1"]["training_allowed"]
    assert status(engine).training_allowed
    assert not status(engine).refuses(START)


def test_tips_of_a_user_who_refuses_training_are_stored_as_refused(engine):
    write(engine, "t1")
    refuse_training(engine, RING, ANNA, now=NOW)
    write(engine, "t2")
    write(engine, "t3", user="ben")
    allow_training(engine, RING, ANNA, now=NOW + DAY)
    write(engine, "t4")
    allowed = {tip_id: found["training_allowed"] for tip_id, found in stored(engine).items()}
    assert allowed == {"t1": True, "t2": False, "t3": True, "t4": True}


def test_the_newest_decision_stands_however_often_it_is_made(engine):
    for day, decide in enumerate((refuse_training, refuse_training, allow_training)):
        decide(engine, RING, ANNA, now=NOW + day * DAY)
    assert status(engine).training_allowed
    assert status(engine).decided_at == NOW + 2 * DAY


def test_earlier_rows_of_an_erased_user_do_not_come_back(engine):
    write(engine, "t1")
    erase(engine, ANNA)
    with writing(engine) as connection:
        rows = [(hashed_ids(RING, user), row(f"of {user}", user=user)) for user in (ANNA, "ben")]
        assert [each["tip_id"] for each in admit(connection, rows)] == ["of ben"]
    assert write(engine, "t1", created_at=NOW) == "erased"
    assert stored(engine) == {}


def test_an_erased_user_who_returns_is_not_learned_from_until_they_allow_it(engine):
    erase(engine, ANNA)
    write(engine, "t1", created_at=NOW + DAY)
    allow_training(engine, RING, ANNA, now=NOW + 2 * DAY)
    write(engine, "t2", created_at=NOW + 3 * DAY)
    allowed = {tip_id: found["training_allowed"] for tip_id, found in stored(engine).items()}
    assert allowed == {"t1": False, "t2": True}
    assert status(engine).refuses(NOW)


def test_no_name_of_an_erased_person_stands_in_the_database(engine, tmp_path):
    write(engine, "t1", context_json=f'{{"free_text": "{ANNA}"}}')
    erase(engine, ANNA, ring=BOTH)
    names = {ANNA, *(each.user_key for each in hashed_ids(BOTH, ANNA))}
    with reading(engine) as connection:
        for table in tip_scores.metadata.sorted_tables:
            if table.name != "erasures":  # whose targets are forgotten once all is done
                said = str(connection.execute(sa.select(table)).all())
                assert not any(name in said for name in names), table.name


def test_after_a_change_of_keys_a_tombstone_of_the_old_one_still_holds(engine):
    write(engine, "t1", ring=BEFORE)
    erase(engine, ANNA, ring=BEFORE)
    assert write(engine, "t1", ring=BOTH) == "erased"
    # From now on they are known under the new key, too, and the old one may go.
    with writing(engine) as connection:
        admit(connection, [(hashed_ids(BOTH, ANNA), row("t2", created_at=NOW + DAY))])
    assert status(engine, ring=RING).erased_at == NOW
    assert not status(engine, ring=RING).training_allowed


def test_after_a_change_of_keys_a_refusal_still_holds(engine):
    refuse_training(engine, BEFORE, ANNA, now=NOW)
    assert not status(engine, ring=BOTH).training_allowed
    write(engine, "t1", ring=BOTH)
    assert not stored(engine)["t1"]["training_allowed"]
    assert status(engine, ring=RING).decided_at == NOW


def test_a_person_seen_under_the_new_key_takes_their_old_rows_along(engine):
    write(engine, "t1", ring=BEFORE)
    write(engine, "t2", user="ben", ring=BEFORE)
    write(engine, "t3", ring=BOTH)
    keys = {tip_id: (r["user_key"], r["key_id"]) for tip_id, r in stored(engine).items()}
    assert keys["t1"] == keys["t3"] == (user_key(KEY, ANNA), KEY.key_id)
    assert keys["t2"] == (user_key(OLD_KEY, "ben"), OLD_KEY.key_id)
    with reading(engine) as connection:
        assert key_ids(connection) == {KEY.key_id: 2, OLD_KEY.key_id: 1}


def test_somebody_hashed_under_an_earlier_spelling_is_found_and_carried_over(engine):
    # What the releases before hashed: the header read as Latin-1, and the id as it was typed.
    header, typed = "zo\u00c3\u00ab-7", "zoe\u0308-7"
    for tip_id, form in (("t1", header), ("t2", typed)):
        write_as_before(engine, tip_id, form)
    refuse_as_before(engine, typed)
    assert not status(engine, "zo\u00eb-7").training_allowed
    write(engine, "t3", user="zo\u00eb-7")
    keys = {tip_id: found["user_key"] for tip_id, found in stored(engine).items()}
    assert set(keys.values()) == {user_key(KEY, "zo\u00eb-7")}
    assert not stored(engine)["t3"]["training_allowed"]
    with reading(engine) as connection:
        of_today = user_statuses(connection, RING).of_user_key(user_key(KEY, "zo\u00eb-7"))
    assert not of_today.training_allowed


@pytest.mark.parametrize("form", ["u-7   ", "u-7\r", "\ufeffu-7", "\\x752d37"])
def test_an_erasure_finds_the_padding_that_an_earlier_version_hashed(engine, form):
    write_as_before(engine, "t1", form)
    write(engine, "t2", user="ben")
    assert erase(engine, "u-7").numbers["unknown"] == []
    assert list(stored(engine)) == ["t2"]


def test_a_decision_takes_rows_under_an_earlier_spelling_along(engine):
    write_as_before(engine, "t1", "u-7   ")
    assert refuse_training(engine, RING, "u-7", now=NOW)
    assert stored(engine)["t1"]["user_key"] == user_key(KEY, "u-7")


def test_who_has_no_row_is_erased_and_refused_all_the_same_and_counted(engine):
    write(engine, "t1")
    assert not refuse_training(engine, RING, "carl", now=NOW)
    assert erase(engine, ANNA, "dora", "eve", now=NOW).numbers["unknown"] == [2, 3]
    assert erase(engine, ANNA, now=NOW).numbers["unknown"] == []  # the one before is not finished
    assert write(engine, "t2", user="dora") == "erased"
    write(engine, "t3", user="carl")
    assert not stored(engine)["t3"]["training_allowed"]


def test_erasure_hashes_the_id_with_every_key(engine):
    write(engine, "t1", ring=BEFORE)
    write(engine, "t2", user="ben", ring=BEFORE)
    asked = erase(engine, ANNA, ring=BOTH)
    assert list(stored(engine)) == ["t2"]
    assert asked.numbers["keys_not_given"] == []


def test_a_key_that_is_not_given_is_named(engine):
    write(engine, "t1", user="ben", ring=BEFORE)
    assert erase(engine, ANNA).numbers["keys_not_given"] == [OLD_KEY.key_id]


@pytest.mark.postgres
def test_an_erasure_waits_for_tips_that_are_being_written_and_takes_them_too(fresh_postgres_url):
    # On SQLite one writes at a time anyway.
    engine = create_store(fresh_postgres_url)
    done = threading.Event()

    def erase_meanwhile():
        erase(engine, ANNA)
        done.set()

    erasing = threading.Thread(target=erase_meanwhile)
    with writing(engine) as connection:
        lock_for_writing(connection)
        erasing.start()
        assert not done.wait(0.5)
        write_tip(connection, RING, ANNA, row("t1"))
    erasing.join()
    assert stored(engine) == {}
    engine.dispose()


def test_a_reaction_to_a_tip_that_was_erased_is_not_kept_for_it(engine):
    write(engine, "t1")
    with writing(engine) as connection:
        write_events(connection, [TipShown("early", NOW)], keys=RING.all)
    asked = erase(engine, ANNA)
    with writing(engine) as connection:
        reports = [
            TipShown("t1", NOW), TipReaction("t1", "done", 1, NOW), TipShown("never given", NOW)
        ]  # fmt: skip
        assert write_events(connection, reports, keys=RING.all) == ["erased", "erased", "kept"]
        waiting = connection.execute(sa.select(early_reactions.c.tip_id)).scalars().all()
    assert sorted(waiting) == ["early", "never given"]
    assert asked.tip_ids == {"t1"}


def test_one_transaction_stores_tips_of_users_who_refuse_and_of_others(engine):
    refuse_training(engine, RING, ANNA, now=NOW)
    created = [
        TipCreated(exposure_of(**row(tip_id, user=user)), hashed_ids(RING, user))
        for tip_id, user in (("t1", ANNA), ("t2", "ben"), ("t3", ANNA))
    ]
    with writing(engine) as connection:
        assert write_events(connection, created, keys=RING.all) == ["recorded"] * 3
    allowed = {tip_id: found["training_allowed"] for tip_id, found in stored(engine).items()}
    assert allowed == {"t1": False, "t2": True, "t3": False}
