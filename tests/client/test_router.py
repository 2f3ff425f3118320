import threading
import time
from contextlib import closing
from datetime import timedelta

import pytest

from reactune import Router
from reactune.canary.routing import propensity, route, unit_key
from reactune.errors import CanaryError, DataError
from reactune.privacy.hashing import user_key
from reactune.store.database import reading
from reactune.store.queries import current_rollout
from server_fixtures import wait_until
from serving_fixtures import KEY, NOON, promote, roll_back, set_challenger, set_champion


def test_the_router_decides_as_the_service_does(engine, store_url):
    set_champion(engine)
    opened = set_challenger(engine, share=0.3)
    seen = set()
    with Router.from_store(store_url, key=KEY) as router:
        for number in range(200):
            decision = router.decide(f"user {number}", at=NOON + timedelta(hours=number))
            unit = unit_key(
                "user_day",
                tip_id="",
                user_key=user_key(KEY, f"user {number}"),
                at=NOON + timedelta(hours=number),
            )
            arm = route(unit, salt=opened.salt, share=0.3)
            assert decision.exposure() == {
                "arm": arm,
                "model_version": {"champion": 1, "challenger": 2}[arm],
                "rollout_id": opened.rollout_id,
                "unit_key": unit,
                "propensity": propensity(arm, 0.3),
            }
            seen.add(arm)
    assert seen == {"champion", "challenger"}


def test_a_rollback_reaches_the_router_by_itself(engine, store_url):
    set_champion(engine)
    opened = set_challenger(engine, share=0.5)
    users = [f"user {number}" for number in range(50)]
    with Router.from_store(store_url, key=KEY, refresh_seconds=0.02) as router:
        assert "challenger" in {router.decide(user, at=NOON).arm for user in users}
        successor = roll_back(engine, opened)
        wait_until(lambda: router.decide("u", at=NOON).rollout_id == successor.rollout_id)
        decisions = [router.decide(user, at=NOON) for user in users]
    assert {(each.arm, each.model_version, each.propensity) for each in decisions} == {
        ("champion", 1, 1.0)
    }


def test_a_promotion_makes_the_challenger_everybodys_champion(engine, store_url):
    set_champion(engine)
    opened = set_challenger(engine)
    promote(engine, opened)
    with Router.from_store(store_url, key=KEY) as router:
        assert {router.decide(f"{n}").model_version for n in range(50)} == {2}


def test_while_the_rollout_cannot_be_read_decisions_go_on_and_then_leave_the_comparison(
    engine, store_url, caplog
):
    set_champion(engine)
    opened = set_challenger(engine, share=0.999)
    lost = threading.Event()

    def read():
        if lost.is_set():
            raise DataError("gone")
        with reading(engine) as connection:
            return current_rollout(connection)

    with closing(Router(read, KEY, refresh_seconds=0.01, stale_seconds=0.3)) as router:
        assert router.decide("u", at=NOON).rollout_id == opened.rollout_id
        lost.set()
        wait_until(lambda: "gone" in caplog.text)
        wait_until(lambda: router.decide("u", at=NOON).rollout_id is None)
        assert router.decide("u", at=NOON).model_version == 1
        lost.clear()
        wait_until(lambda: router.decide("u", at=NOON).rollout_id == opened.rollout_id)
    assert caplog.text.count("gone") == 1


def test_before_anything_is_live_there_is_no_router(engine, store_url):
    with pytest.raises(CanaryError, match="nothing is live yet"):
        Router.from_store(store_url, key=KEY)


def test_under_unit_tip_a_decision_needs_the_tip(engine, store_url):
    set_champion(engine)
    set_challenger(engine, unit="tip")
    with Router.from_store(store_url, key=KEY) as router:
        with pytest.raises(DataError, match="give decide"):
            router.decide("u")
        arms = {router.decide("u", tip_id=f"t{n}").arm for n in range(50)}
    assert arms == {"champion", "challenger"}


def test_openfeature_tells_arm_version_and_exposure(engine, store_url):
    api = pytest.importorskip("openfeature.api")
    from openfeature.evaluation_context import EvaluationContext

    from reactune.client.openfeature import ReactuneProvider

    set_champion(engine)
    opened = set_challenger(engine, unit="user")
    router = Router.from_store(store_url, key=KEY)
    api.set_provider(ReactuneProvider(router))
    flags = api.get_client()
    try:
        for number in range(20):
            of = EvaluationContext(targeting_key=f"user {number}")
            decision = router.decide(f"user {number}")
            details = flags.get_string_details("tip-generator", "none", of)
            assert (details.value, details.variant) == (decision.arm, decision.arm)
            assert details.flag_metadata["propensity"] == decision.propensity
            assert details.flag_metadata["rollout_id"] == opened.rollout_id
            version = flags.get_integer_value("tip-generator", 0, of)
            assert version == decision.model_version
            is_challenger = flags.get_boolean_value("tip-generator", False, of)
            assert is_challenger == (decision.arm == "challenger")
        assert flags.get_string_value("tip-generator", "none") == "none"
        assert flags.get_string_value("other", "none", of) == "none"
        assert flags.get_float_value("tip-generator", -1.0, of) == -1.0
    finally:
        api.shutdown()
    assert not router._repeater.thread.is_alive()


def test_a_user_who_comes_again_is_decided_as_the_first_time(engine, store_url):
    set_champion(engine)
    set_challenger(engine)
    with Router.from_store(store_url, key=KEY) as router:
        for number in range(100):
            first = router.decide(f"{number}")
            unit = f"{time.strftime('%Y-%m-%d', time.gmtime())}:{user_key(KEY, f'{number}')[:16]}"
            assert router.decide(f"{number}") == first
            assert first.unit_key == unit
            assert first.arm == route(unit, salt="salt of the test", share=0.5)
