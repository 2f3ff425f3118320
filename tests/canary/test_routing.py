import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from growthbook.core import gbhash
from hypothesis import given
from hypothesis import strategies as st

from places import SHARED
from reactune.canary.routing import (
    BUCKETS,
    bucket,
    bucket_after,
    bucket_ranges,
    equal_weights,
    fnv1a32,
    propensity,
    route,
    unit_key,
)
from reactune.privacy.hashing import HashingKey, user_key

CASES = SHARED / "data/routing/growthbook_cases.json"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHARES = st.integers(0, BUCKETS).map(lambda n: n / BUCKETS)


@pytest.mark.parametrize(
    ("seed", "value", "published"),
    [
        ("seed", "a", 0.0505),
        ("seed", "b", 0.2696),
        ("foo", "ab", 0.2575),
        ("foo", "def", 0.2019),
        ("89123klj", "8952klfjas09ujkasdf", 0.124),
        ("90850943850283058242805", "123", 0.7516),
        ("()**(%$##$%#$#", '___)((*":&', 0.0128),
    ],
)
def test_the_hash_is_the_one_growthbook_publishes(seed, value, published):
    assert bucket(value, salt=seed) / BUCKETS == published


def test_every_public_vector_of_the_hash_section_holds():
    if not CASES.is_file():
        pytest.skip("the public vectors are not at hand")
    vectors = json.loads(CASES.read_text())["hash"]
    checked = 0
    for seed, value, version, published in vectors:
        if version == 2:
            assert bucket(value, salt=seed) / BUCKETS == published
            checked += 1
        elif version == 1:
            assert fnv1a32(value + seed) % 1000 / 1000 == published
            checked += 1
    assert checked == 14


@given(st.text(), st.text())
def test_any_text_hashes_as_in_growthbooks_own_sdk(salt, value):
    assert bucket(value, salt=salt) / BUCKETS == gbhash(salt, value, 2)


@given(st.text(), st.text(), SHARES, SHARES)
def test_raising_the_share_never_takes_a_unit_from_the_challenger(unit, salt, one, other):
    low, high = sorted((one, other))
    if route(unit, salt=salt, share=low) == "challenger":
        assert route(unit, salt=salt, share=high) == "challenger"


@given(st.text(), st.text())
def test_share_zero_is_all_champion_and_share_one_all_challenger(unit, salt):
    assert route(unit, salt=salt, share=0) == "champion"
    assert route(unit, salt=salt, share=1) == "challenger"


@given(SHARES)
def test_the_logged_propensities_are_the_chances_and_sum_to_one(share):
    assert propensity("challenger", share) == pytest.approx(share)
    assert propensity("challenger", share) + propensity("champion", share) == pytest.approx(1)


def test_a_share_between_two_buckets_is_logged_as_it_is_routed():
    hits = sum(n < propensity("challenger", 1 / 3) * BUCKETS for n in range(BUCKETS))
    assert hits == 3333


def test_units_spread_over_the_arms_in_the_share_asked_for():
    hits = sum(route(f"user-{n}", salt="s", share=0.05) == "challenger" for n in range(40_000))
    assert abs(hits / 40_000 - 0.05) < 4 * (0.05 * 0.95 / 40_000) ** 0.5


def test_two_salts_draw_independently():
    both = sum(
        route(f"u{n}", salt="first", share=0.05)
        == route(f"u{n}", salt="second", share=0.05)
        == "challenger"
        for n in range(100_000)
    )
    assert abs(both / 100_000 - 0.0025) < 4 * (0.0025 / 100_000) ** 0.5


def test_two_days_of_one_user_draw_independently():
    days = [f"{'ab' * 32}:2026-{m:02}-{d:02}" for m in range(1, 13) for d in range(1, 29)]
    hits = sum(
        route(day, salt=f"salt{n}", share=0.5) == "challenger" for n in range(30) for day in days
    )
    assert abs(hits / (30 * len(days)) - 0.5) < 4 * (0.25 / (30 * len(days))) ** 0.5


def test_a_user_stays_on_the_same_arm_all_utc_day():
    early = NOON.replace(hour=0)
    late = (NOON.replace(hour=23, minute=59)).astimezone(timezone(timedelta(hours=9)))
    keys = {
        unit_key("user_day", tip_id=t, user_key="u", at=at) for t, at in (("1", early), ("2", late))
    }
    assert keys == {"2026-03-01:u"}


def test_a_new_day_is_a_new_unit_and_a_tip_is_its_own():
    tomorrow = NOON + timedelta(days=1)
    assert unit_key("user_day", tip_id="t", user_key="u", at=tomorrow) == "2026-03-02:u"
    assert unit_key("tip", tip_id="t", user_key="u", at=NOON) == "t"


def vectors_of(section):
    if not CASES.is_file():
        pytest.skip("the public vectors are not at hand")
    return json.loads(CASES.read_text())[section]


def test_every_public_vector_of_the_ranges_holds():
    vectors = vectors_of("getBucketRange")
    for name, (count, coverage, weights), published in vectors:
        # Weights that do not fit their number are the SDKs' to repair before they ask.
        fitting = weights if weights and len(weights) == count else equal_weights(count)
        ranges = bucket_ranges(fitting, coverage=coverage)
        assert [list(each) for each in ranges] == [pytest.approx(each) for each in published], name
    assert len(vectors) == 13


def test_every_public_vector_of_the_equal_weights_holds():
    for count, published in vectors_of("getEqualWeights"):
        assert list(equal_weights(count)) == pytest.approx(published)


@given(st.text(), st.text(), SHARES)
def test_the_arm_is_the_choice_from_the_ranges_of_challenger_and_champion(unit, salt, share):
    place = (bucket(unit, salt=salt) + 0.5) / BUCKETS
    ranges = zip(("challenger", "champion"), bucket_ranges((share, 1 - share)), strict=True)
    arms = [arm for arm, (low, high) in ranges if low <= place < high]
    assert arms == [route(unit, salt=salt, share=share)]


@given(st.text(), st.text())
def test_hashing_after_the_salt_is_hashing_both(salt, value):
    assert bucket_after(fnv1a32(salt), value) == bucket(value, salt=salt)


def test_a_user_as_unit_stays_on_one_arm_for_good():
    keys = {
        unit_key("user", tip_id=str(n), user_key="u", at=NOON + timedelta(days=n)) for n in range(9)
    }
    assert keys == {"u"}


def test_a_unit_names_its_user_by_sixteen_digits():
    person = user_key(HashingKey(b"k" * 32), "ann@example.org")
    assert unit_key("user_day", tip_id="t", user_key=person, at=NOON) == f"2026-03-01:{person[:16]}"
    assert unit_key("user", tip_id="t", user_key=person, at=NOON) == person[:16]
