from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest

from reactune.service.api_keys import make_key
from reactune.web.access import TIPS_AT_ONCE, Bucket
from serving_fixtures import (
    NOON,
    Hanging,
    set_challenger,
)

TIP = {"user": "u1", "kind": "focus", "context": {}}


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_once_there_is_a_key_every_request_needs_one_of_the_right_scope(served):
    tokens = {
        scope: make_key(served.engine, scope, [scope], now=NOON)
        for scope in ("app", "operator", "read")
    }
    set_challenger(served.engine)
    client = served()

    def statuses(method, path, **more):
        found = {"none": client.request(method, path, **more).status_code}
        for scope, token in tokens.items():
            answer = client.request(method, path, headers=bearer(token), **more)
            found[scope] = answer.status_code
        return found

    refused = {"none": 401, "operator": 403, "read": 403}
    assert statuses("POST", "/v1/tips", json=TIP) == {**refused, "app": 200}
    assert statuses("POST", "/v1/chat/completions", json={}) == {**refused, "app": 422}
    assert statuses("GET", "/v1/route?user=u") == {
        "none": 401, "app": 200, "operator": 403, "read": 200,
    }  # fmt: skip
    assert statuses("GET", "/metrics") == {"none": 401, "app": 403, "operator": 200, "read": 200}
    assert statuses("POST", "/v1/rollouts/current/stop") == {
        "none": 401, "app": 403, "operator": 200, "read": 403,
    }  # fmt: skip
    assert client.get("/healthz").status_code == 200
    assert client.get("/v1/route?user=u").headers["www-authenticate"] == "Bearer"


def test_a_service_that_listens_beyond_this_machine_needs_keys_though_none_was_made(served):
    assert served(host="0.0.0.0").post("/v1/tips", json=TIP).status_code == 401
    assert served(host="0.0.0.0", auth="off").post("/v1/tips", json=TIP).status_code == 200
    assert served(auth="required").post("/v1/tips", json=TIP).status_code == 401


def test_who_asks_too_often_is_told_when_to_come_back(served):
    client = served(requests_per_second=0.5)
    answers = [client.get("/v1/route?user=u") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].headers["retry-after"] == "2"
    assert client.get("/healthz").status_code == 200


def test_a_bucket_fills_at_its_rate_and_never_more_than_two_seconds_of_it():
    bucket = Bucket(20.0, 100.0)
    assert [bucket.take(100.0, rate=10) for _ in range(20)] == [0.0] * 20
    assert bucket.take(100.0, rate=10) == pytest.approx(0.1)
    assert bucket.take(100.1, rate=10) == 0.0
    assert bucket.take(50.0, rate=10) > 0
    assert [bucket.take(1_000.0, rate=10) for _ in range(21)][19:] == [0.0, pytest.approx(0.1)]


def test_when_too_many_wait_for_tips_the_rest_is_told_to_come_back(served):
    client = served(max_tips_waiting=1)
    hanging = Hanging()
    served.servers[-1].answers[1] = hanging
    with ThreadPoolExecutor(TIPS_AT_ONCE + 4) as pool:
        asked = [pool.submit(client.post, "/v1/tips", json=TIP) for _ in range(TIPS_AT_ONCE + 4)]
        refused = next(iter(as_completed(asked, timeout=15))).result()
        hanging.let_go.set()
        statuses = sorted(each.result().status_code for each in asked)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert statuses == [200] * (TIPS_AT_ONCE + 1) + [503] * 3
