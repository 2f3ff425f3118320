"""Keys that change, and what one person is called under each."""

import hashlib
import hmac

import pytest

from reactune.config.sections import PrivacyConfig
from reactune.errors import PrivacyError
from reactune.privacy.hashing import (
    HashingKey,
    HashingKeys,
    given_key_ids,
    hashed_ids,
    load_hashing_keys,
    mark_of,
    marks_of,
)

NEW, OLD = "n" * 32, "o" * 32
SETTINGS = PrivacyConfig(old_key_envs=("REACTUNE_KEY_2025",))


def test_the_ring_holds_the_current_key_and_the_older_ones():
    ring = load_hashing_keys(SETTINGS, {"REACTUNE_KEY": NEW, "REACTUNE_KEY_2025": OLD})
    assert ring == HashingKeys(HashingKey(NEW.encode()), (HashingKey(OLD.encode()),))
    assert ring.key_ids == {HashingKey(NEW.encode()).key_id, HashingKey(OLD.encode()).key_id}


@pytest.mark.parametrize("value", ["", "short"])
def test_an_older_key_that_is_named_and_not_given_is_an_error(value):
    with pytest.raises(PrivacyError, match="old_key_envs names REACTUNE_KEY_2025"):
        load_hashing_keys(SETTINGS, {"REACTUNE_KEY": NEW, "REACTUNE_KEY_2025": value})
    assert given_key_ids(SETTINGS, {"REACTUNE_KEY": NEW}) == {HashingKey(NEW.encode()).key_id}


def test_a_key_that_is_both_current_and_old_counts_once():
    ring = HashingKeys(HashingKey(NEW.encode()), (HashingKey(NEW.encode()),))
    assert len(hashed_ids(ring, "anna")) == 1


def test_a_person_has_one_name_under_each_key_and_a_mark_that_leads_to_neither():
    ring = HashingKeys(HashingKey(NEW.encode()), (HashingKey(OLD.encode()),))
    now, before = hashed_ids(ring, "anna")
    assert now.user_key == hmac.new(NEW.encode(), b"anna", hashlib.sha256).hexdigest()
    assert before.user_key == hmac.new(OLD.encode(), b"anna", hashlib.sha256).hexdigest()
    assert len({now.user_key, now.mark, before.user_key, before.mark}) == 4
    expected = hmac.new(NEW.encode(), f"reactune mark {now.user_key}".encode(), hashlib.sha256)
    assert now.mark == mark_of(ring.current, now.user_key) == expected.hexdigest()
    assert before.mark in marks_of(ring, before.user_key)


def test_no_key_is_shown():
    ring = HashingKeys(HashingKey(NEW.encode()), (HashingKey(OLD.encode()),))
    assert NEW not in repr(ring)
    assert OLD not in repr(ring)
