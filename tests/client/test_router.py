import json
import os
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

import reactune
from reactune import Router
from reactune.canary.routing import propensity, route, unit_key
from reactune.client import router as router_module
from reactune.client.router import rollout_of
from reactune.errors import CanaryError, DataError, PrivacyError
from reactune.privacy.hashing import user_key
from reactune.records import Rollout
from reactune.service.api_keys import make_key
from reactune.service.state import close_service
from reactune.store.database import create_store, reading
from reactune.store.queries import current_rollout
from reactune.web.api import create_app
from server_fixtures import free_port, wait_until
from serving_fixtures import (
    KEY,
    NOON,
    listening,
    promote,
    roll_back,
    service_of,
    set_challenger,
    set_champion,
)


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


def test_openfeature_returns_arm_version_and_exposure(engine, store_url):
    api = pytest.importorskip("openfeature.api")
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.exception import ErrorCode

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
        unknown = EvaluationContext(targeting_key="undefined")
        details = flags.get_string_details("tip-generator", "none", unknown)
        assert (details.value, details.error_code) == ("none", ErrorCode.TARGETING_KEY_MISSING)
        assert flags.get_float_value("tip-generator", -1.0, of) == -1.0
    finally:
        api.shutdown()
    assert not router._repeater.thread.is_alive()


def test_the_second_decision_on_a_user_is_the_first_one_again(engine, store_url):
    set_champion(engine)
    set_challenger(engine)
    with Router.from_store(store_url, key=KEY) as router:
        for number in range(100):
            first = router.decide(f"{number}")
            unit = f"{time.strftime('%Y-%m-%d', time.gmtime())}:{user_key(KEY, f'{number}')[:16]}"
            assert router.decide(f"{number}") == first
            assert first.unit_key == unit
            assert first.arm == route(unit, salt="salt of the test", share=0.5)


@pytest.fixture
def served_rollout(sqlite_url, chat, server):
    """A service over SQLite with an open rollout: its address, engine and rollout."""
    engine = create_store(sqlite_url)
    set_champion(engine)
    opened = set_challenger(engine, share=0.4)
    service = service_of(engine, chat, server)
    with listening(create_app(service)) as address:
        yield address, engine, opened
    close_service(service)
    engine.dispose()


def test_from_service_decides_as_the_service_routes(served_rollout):
    address, _, opened = served_rollout
    with Router.from_service(address, key=KEY) as router:
        for number in range(20):
            user = f"user {number}"
            decision = router.decide(user, at=NOON)
            answer = httpx.get(f"{address}/v1/route", params={"user": user}, trust_env=False).json()
            assert decision.exposure() == {
                name: answer[name]
                for name in ("arm", "model_version", "rollout_id", "unit_key", "propensity")
            }
            assert decision.rollout_id == opened.rollout_id


def test_from_service_follows_a_rollback(served_rollout):
    address, engine, opened = served_rollout
    with Router.from_service(address, key=KEY, refresh_seconds=0.05) as router:
        successor = roll_back(engine, opened)
        wait_until(lambda: router.decide("u").rollout_id == successor.rollout_id)
        assert router.decide("u").propensity == 1.0


FORKS = """
import os, sys, time
from reactune import Router
from reactune.privacy.hashing import HashingKey

def changed(before):
    end = time.monotonic() + 20
    while (now := router.decide("u").rollout_id) in (before, None) and time.monotonic() < end:
        time.sleep(0.02)
    return now

def fork(work):
    if child := os.fork():
        return child
    work()
    sys.stdout.flush()
    os._exit(0)

build, place, key = sys.argv[1:]
router = getattr(Router, build)(
    place, key=HashingKey(key.encode()), refresh_seconds=0.05, stale_seconds=1.0
)
first = router.decide("u").rollout_id
os.waitpid(fork(router.close), 0)  # one that only cleans up, as at the end of a pool
time.sleep(1.2)  # more than a plan may be old, in a child that nobody asks
def child():
    print(router.decide("u").rollout_id, flush=True)
    print(changed(first))
worker = fork(child)
os.waitpid(worker, 0)
print(changed(first))
"""


def after_a_fork(build, place, engine, opened):
    """What the child decides first, what it and its parent decide after a rollback."""
    environment = {**os.environ, "PYTHONPATH": str(Path(reactune.__file__).parents[1])}
    call = [sys.executable, "-c", FORKS, build, place, KEY.secret.decode()]
    with subprocess.Popen(call, stdout=subprocess.PIPE, env=environment, text=True) as process:
        first = process.stdout.readline().rstrip("\n")
        successor = roll_back(engine, opened)
        then = process.stdout.read().splitlines()
    assert process.returncode == 0
    return first, then, successor.rollout_id


def test_a_forked_worker_reads_the_rollout_itself_and_leaves_its_parents_connection(
    engine, store_url
):
    set_champion(engine)
    opened = set_challenger(engine, share=0.4)
    first, then, successor = after_a_fork("from_store", store_url, engine, opened)
    assert (first, then) == (opened.rollout_id, [successor, successor])


def test_a_forked_worker_asks_the_service_itself(served_rollout):
    address, engine, opened = served_rollout
    first, then, successor = after_a_fork("from_service", address, engine, opened)
    assert (first, then) == (opened.rollout_id, [successor, successor])


def test_from_service_needs_a_key_of_the_service_once_there_is_one(served_rollout):
    address, engine, _ = served_rollout
    token = make_key(engine, "reader", ["read"], now=NOON)
    wait_until(lambda: httpx.get(f"{address}/v1/route?user=u").status_code == 401)
    with pytest.raises(DataError, match=r"the rollout cannot be read .*HTTPStatusError.*API key"):
        Router.from_service(address, key=KEY)
    with Router.from_service(address, key=KEY, api_key=token) as router:
        assert router.decide("u").model_version in (1, 2)


def test_from_service_names_the_address_where_nothing_answers():
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(DataError, match=rf"{address}: the rollout cannot be read \(ConnectError"):
        Router.from_service(address, key=KEY)


@pytest.mark.parametrize("build", [Router.from_store, Router.from_service])
def test_without_a_hashing_key_there_is_no_router(served_rollout, build, monkeypatch):
    monkeypatch.delenv("REACTUNE_KEY", raising=False)
    address, engine, _ = served_rollout
    url = address if build == Router.from_service else f"sqlite:///{engine.url.database}"
    with pytest.raises(PrivacyError, match="REACTUNE_KEY"):
        build(url)


def rollout(**changes):
    values = {
        "rollout_id": "r1", "champion": 1, "challenger": 2, "phase": "canary", "share": 0.5,
        "salt": "salt", "unit": "user", "planned_units": 100, "opened_at": NOON,
        "share_since": NOON,
    }  # fmt: skip
    return Rollout(**values | changes)


def as_answer(value):
    return {**asdict(value), "opened_at": NOON.isoformat(), "share_since": NOON.isoformat()}


def test_a_rollout_survives_the_way_through_json_and_new_fields_are_ignored():
    answer = json.loads(json.dumps({**as_answer(rollout()), "of a later version": 1}))
    assert rollout_of(answer) == rollout()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"share": 1.5}, ValueError),
        ({"share": -0.1}, ValueError),
        ({"opened_at": "yesterday"}, ValueError),
        ({"opened_at": None}, TypeError),
    ],
)
def test_an_answer_that_holds_no_rollout_is_refused(changes, error):
    with pytest.raises(error):
        rollout_of({**as_answer(rollout()), **changes})
    with pytest.raises(KeyError):
        rollout_of({})


def test_a_closed_rollout_sends_everybody_to_the_champion():
    closed = rollout(challenger=None, phase="closed", share=0.5)
    with Router(lambda: closed, KEY) as router:
        decisions = {router.decide(f"user {number}")[:2] for number in range(100)}
        assert router.decide("u").propensity == 1.0
    assert decisions == {("champion", 1)}


def test_under_unit_user_a_decision_does_not_depend_on_the_day():
    with Router(rollout, KEY) as router:
        days = {router.decide("u", at=NOON + timedelta(days=day)) for day in range(30)}
        assert days == {router.decide("u")}


def test_the_share_of_the_decisions_is_the_propensity():
    with Router(lambda: rollout(share=0.3), KEY) as router:
        arms = [router.decide(f"user {number}").arm for number in range(2_000)]
    # Binomial with n = 2,000 and p = 0.3: five standard deviations are 0.051.
    assert arms.count("challenger") / 2_000 == pytest.approx(0.3, abs=0.052)


def test_the_cache_forgets_users_without_changing_their_decisions(monkeypatch):
    monkeypatch.setattr(router_module, "CACHED_USERS", 10)
    with Router(lambda: rollout(unit="user_day"), KEY) as router:
        first = {number: router.decide(f"{number}") for number in range(100)}
        assert {number: router.decide(f"{number}") for number in range(100)} == first
        assert len(router._day.recent) + len(router._day.older) <= 20


def test_a_new_salt_draws_all_users_again():
    salts = ["one"]
    with Router(lambda: rollout(unit="user_day", salt=salts[0]), KEY, refresh_seconds=60) as router:
        before = [router.decide(f"{number}").arm for number in range(100)]
        salts[0] = "two"
        router._refresh()
        after = [router.decide(f"{number}").arm for number in range(100)]
    assert before != after


def test_a_router_that_cannot_start_closes_its_connection():
    closed = []

    def read():
        raise DataError("gone")

    with pytest.raises(DataError):
        Router(read, KEY, close=lambda: closed.append(True))
    assert closed == [True]
