"""Hashing keys from the environment, and a user's hashed id under each."""

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
    load_hashing_key,
    load_hashing_keys,
    mark_of,
    marks_of,
    short_key,
    user_key,
)

KEY = HashingKey(b"k" * 32)
NEW, OLD = "n" * 32, "o" * 32
SETTINGS = PrivacyConfig(old_key_envs=("REACTUNE_KEY_2025",))


def test_the_current_key_and_the_older_ones_are_read_from_the_environment():
    ring = load_hashing_keys(SETTINGS, {"REACTUNE_KEY": NEW, "REACTUNE_KEY_2025": OLD})
    assert ring == HashingKeys(HashingKey(NEW.encode()), (HashingKey(OLD.encode()),))
    assert ring.key_ids == {HashingKey(NEW.encode()).key_id, HashingKey(OLD.encode()).key_id}


@pytest.mark.parametrize("value", ["", "short"])
def test_a_missing_older_key_is_an_error(value):
    with pytest.raises(PrivacyError, match="old_key_envs names REACTUNE_KEY_2025"):
        load_hashing_keys(SETTINGS, {"REACTUNE_KEY": NEW, "REACTUNE_KEY_2025": value})
    assert given_key_ids(SETTINGS, {"REACTUNE_KEY": NEW}) == {HashingKey(NEW.encode()).key_id}


def test_a_key_that_is_both_current_and_old_counts_once():
    ring = HashingKeys(HashingKey(NEW.encode()), (HashingKey(NEW.encode()),))
    assert len(hashed_ids(ring, "anna")) == 1


def test_a_user_has_one_hashed_id_under_each_key_and_a_mark_that_leads_to_neither():
    ring = HashingKeys(HashingKey(NEW.encode()), (HashingKey(OLD.encode()),))
    now, before = hashed_ids(ring, "anna")
    assert now.user_key == hmac.new(NEW.encode(), b"anna", hashlib.sha256).hexdigest()
    assert before.user_key == hmac.new(OLD.encode(), b"anna", hashlib.sha256).hexdigest()
    assert len({now.user_key, now.mark, before.user_key, before.mark}) == 4
    expected = hmac.new(NEW.encode(), f"reactune mark {now.user_key}".encode(), hashlib.sha256)
    assert now.mark == mark_of(ring.current, now.user_key) == expected.hexdigest()
    assert before.mark in marks_of(ring, before.user_key)


def test_keys_are_not_in_the_text_of_the_object():
    ring = HashingKeys(HashingKey(NEW.encode()), (HashingKey(OLD.encode()),))
    assert NEW not in repr(ring)
    assert OLD not in repr(ring)


def test_user_keys_are_equal_for_equal_ids_only_and_depend_on_the_key():
    assert len({user_key(KEY, "u1"), user_key(KEY, "u2"), user_key(KEY, "U1")}) == 3
    assert user_key(KEY, "u1") != user_key(HashingKey(b"j" * 32), "u1")
    # RFC 4231, test case 2, through the same construction.
    assert user_key(HashingKey(b"Jefe"), "what do ya want for nothing?") == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@pytest.mark.parametrize(
    ("value", "what"),
    [("", "is empty or not set"), (" ", "is empty or not set"), ("short", "holds 5 characters")],
)
def test_a_missing_or_short_key_is_refused_with_the_variable_named(value, what):
    with pytest.raises(PrivacyError, match=f"REACTUNE_KEY {what}, 32 are needed"):
        load_hashing_key(PrivacyConfig(), {"REACTUNE_KEY": value})


def test_a_key_id_is_the_beginning_of_a_keyed_hash():
    expected = hmac.new(b"k" * 32, b"reactune key id", hashlib.sha256).hexdigest()
    assert KEY.key_id == expected[:8]


@pytest.mark.parametrize("value", [" " * 40, f"short{' ' * 40}"])
def test_white_space_is_no_key(value):
    with pytest.raises(PrivacyError, match=r"32 are needed .* white space at its ends not counted"):
        load_hashing_key(PrivacyConfig(), {"REACTUNE_KEY": value})
    assert given_key_ids(PrivacyConfig(), {"REACTUNE_KEY": value}) == frozenset()


def test_a_key_may_be_any_bytes():
    raw = bytes(range(128, 168))
    environ = {"REACTUNE_KEY": raw.decode(errors="surrogateescape")}
    assert load_hashing_key(PrivacyConfig(), environ) == HashingKey(raw)
    assert given_key_ids(PrivacyConfig(), environ) == {HashingKey(raw).key_id}


def test_a_key_is_trimmed_and_rows_hashed_with_what_stood_there_are_still_found():
    environ = {"REACTUNE_KEY": f"{NEW}\n"}
    ring = load_hashing_keys(PrivacyConfig(), environ)
    untrimmed = HashingKey(f"{NEW}\n".encode())
    assert ring == HashingKeys(HashingKey(NEW.encode()), (untrimmed,))
    assert ring.key_ids == given_key_ids(PrivacyConfig(), environ)
    assert load_hashing_key(PrivacyConfig(), environ) == ring.current


def test_every_spelling_of_an_id_has_one_hash_and_the_first_is_that_of_today():
    ring = HashingKeys(HashingKey(NEW.encode()), (HashingKey(OLD.encode()),))
    spellings = ("zo\u00eb", "zoe\u0308", " zo\u00eb\n", "zo\u00eb".encode())
    assert len({user_key(KEY, each) for each in spellings}) == 1
    assert len({hashed_ids(ring, each)[0] for each in spellings}) == 1
    header = hmac.new(OLD.encode(), b"zo\xc3\x83\xc2\xab", hashlib.sha256).hexdigest()
    assert header in {each.user_key for each in hashed_ids(ring, "zo\u00eb")}


def test_a_short_key_is_the_beginning_of_the_hashed_id():
    assert user_key(KEY, "u1").startswith(short_key(user_key(KEY, "u1")))
    assert len(short_key(user_key(KEY, "u1"))) == 16


@pytest.mark.parametrize("missing", ["REACTUNE_KEY", "REACTUNE_KEY_2025"])
def test_the_error_of_a_missing_key_says_how_long_it_is_and_what_to_do(missing):
    given_keys = {"REACTUNE_KEY": NEW, "REACTUNE_KEY_2025": OLD} | {missing: "abc"}
    with pytest.raises(PrivacyError) as caught:
        load_hashing_keys(SETTINGS, given_keys)
    message = str(caught.value)
    assert missing in message
    assert "holds 3 characters, 32 are needed" in message
    assert "openssl rand" in message or "give that older key" in message
    assert "abc" not in message


def test_only_keys_that_are_long_enough_are_given():
    both = {"REACTUNE_KEY": NEW, "REACTUNE_KEY_2025": OLD}
    assert given_key_ids(SETTINGS, both) == load_hashing_keys(SETTINGS, both).key_ids
    assert given_key_ids(SETTINGS, {}) == frozenset()


def test_the_order_of_hashed_ids_is_that_of_the_keys():
    keys = HashingKeys(KEY, (HashingKey(NEW.encode()), HashingKey(OLD.encode())))
    ids = hashed_ids(keys, "u1")
    assert [each.key_id for each in ids] == [key.key_id for key in keys.all]
    for place, each in enumerate(ids):
        assert marks_of(keys, each.user_key)[place] == each.mark
