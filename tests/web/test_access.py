import asyncio
import json
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from reactune.config.sections import ServeConfig
from reactune.errors import AwayError, CanaryError, DataError, PrivacyError, ReleaseError
from reactune.service.api_keys import make_key, recognise
from reactune.service.events import BusyError
from reactune.service.tips import UnknownTipError
from reactune.web import access
from reactune.web.access import (
    PUBLIC,
    TIPS_AT_ONCE,
    Access,
    BodyLimit,
    Bucket,
    FullError,
    KeyRegistry,
    TipSlots,
    refuse_error,
)
from server_fixtures import wait_until
from serving_fixtures import NOON, Hanging, set_challenger

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


def test_the_schemes_name_may_be_in_small_letters_and_no_other_is_taken(served):
    token = make_key(served.engine, "app", ["app"], now=NOON)
    client = served()

    def status(header):
        return client.get("/v1/models", headers={"authorization": header}).status_code

    taken = [f"Bearer {token}", f"bearer {token}", f"BEARER  {token} "]
    assert [status(each) for each in taken] == [200] * 3
    assert [status(each) for each in (token, f"Basic {token}", "Bearer", "", " ")] == [401] * 5


def test_a_refusal_without_a_key_is_in_openais_form_where_its_clients_call(served):
    client = served(auth="required")
    for path in ("/v1/chat/completions", "/v1/models", "/v1/embeddings"):
        answer = client.post(path, json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "401")
    assert client.post("/v1/tips", json=TIP).json()["error"].startswith("give a valid key")


def test_head_is_answered_as_get_is_without_a_body(served):
    token = make_key(served.engine, "reader", ["read"], now=NOON)
    client = served()
    assert client.head("/healthz").status_code == 200
    assert client.head("/login").headers["content-type"].startswith("text/html")
    assert client.head("/metrics").status_code == 401
    assert client.head("/metrics", headers=bearer(token)).status_code == 200
    assert client.head("/v1/tips", headers=bearer(token)).status_code == 403


def test_another_method_is_refused_with_those_there_are(served):
    answer = served().get("/v1/tips")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "/openapi.json" in answer.json()["error"]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        ({"content": b"[]"}, "the body is not a JSON object"),
        ({"content": b"", "headers": {}}, "the body is empty"),
        ({"content": b"{"}, "the body is not JSON"),
        ({"content": b'{"user": "\xe9"}'}, "the body cannot be read; send JSON in UTF-8"),
        ({"content": b"{}", "headers": {"content-type": "text/plain"}},
         "the body is not read as JSON; send Content-Type: application/json"),
        ({"data": {"user": "u"}, "headers": {}},
         "the body is not read as JSON; send Content-Type: application/json"),
        ({"json": {**TIP, "names": ["Ann", 5]}}, "names[1]: Input should be a valid string"),
        ({"json": {**TIP, "context": {"my-secret": []} | {"x": {"my-secret": []}}}}, "context: "),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_told_what_it_should_be(served, sent, reason):
    headers = {} if "json" in sent else {"content-type": "application/json"}
    answer = served().post("/v1/tips", **{"headers": headers, **sent})
    assert answer.json()["error"].startswith(reason)
    assert "my-secret" not in answer.text


def test_a_service_that_listens_beyond_this_machine_needs_keys_though_none_was_made(served):
    assert served(host="0.0.0.0").post("/v1/tips", json=TIP).status_code == 401
    assert served(host="0.0.0.0", auth="off").post("/v1/tips", json=TIP).status_code == 200
    assert served(auth="required").post("/v1/tips", json=TIP).status_code == 401


def test_above_the_rate_the_refusal_says_when_to_try_again(served):
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


def test_when_too_many_tips_wait_further_requests_are_refused_for_now(served):
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


def scope_of(path="/v1/tips", method="POST", token=""):
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    return {"type": "http", "path": path, "method": method, "headers": headers}


def call(app, scope, *chunks):
    """What an ASGI app sends for a request whose body comes in these pieces."""
    pieces = [
        {"type": "http.request", "body": chunk, "more_body": place < len(chunks)}
        for place, chunk in enumerate(chunks, start=1)
    ]
    sent = []

    async def receive():
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


async def echo(scope, receive, send):
    """An app that answers with the body it was given."""
    message = await receive()
    assert not message.get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


@given(chunks=st.lists(st.binary(max_size=6), min_size=1, max_size=6))
def test_a_body_is_passed_on_whole_or_refused_by_its_length(chunks):
    whole = b"".join(chunks)
    start, body = call(BodyLimit(echo, max_bytes=10), scope_of(), *chunks)
    if len(whole) <= 10:
        assert (start["status"], body["body"]) == (200, whole)
    else:
        assert start["status"] == 413
        assert json.loads(body["body"]) == {"error": "the body is larger than 10 bytes"}


@pytest.mark.parametrize("encoding", ["gzip", "br", " DEFLATE ", "identity, gzip"])
def test_a_compressed_body_is_refused_unread(encoding):
    scope = scope_of("/v1/chat/completions")
    scope["headers"] = [(b"content-encoding", encoding.encode())]
    start, body = call(BodyLimit(echo), scope, b"x")
    assert start["status"] == 415
    assert "without Content-Encoding" in json.loads(body["body"])["error"]["message"]
    scope["headers"] = [(b"content-encoding", b"Identity")]
    assert call(BodyLimit(echo), scope, b"x")[0]["status"] == 200


def test_a_client_that_goes_away_while_it_sends_gets_no_answer():
    unfinished = {"type": "http.request", "body": b"x", "more_body": True}
    messages = [unfinished, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        raise AssertionError("nothing is sent")

    asyncio.run(BodyLimit(echo)(scope_of(), receive, send))
    assert messages == []


def test_each_key_has_a_rate_of_its_own_and_workers_share_it(store):
    tokens = [make_key(store, name, ["app"], now=NOON) for name in ("one", "two")]
    keys = KeyRegistry(store, ServeConfig(requests_per_second=4, workers=2))
    keys.refresh()
    now = [100.0]
    access = Access(echo, keys=keys, clock=lambda: now[0])

    def status(token):
        return call(access, scope_of(token=token), b"")[0]["status"]

    # Two requests a second for this worker, and two seconds' worth at once.
    assert [status(tokens[0]) for _ in range(5)] == [200] * 4 + [429]
    assert status(tokens[1]) == 200
    now[0] += 0.5
    assert [status(tokens[0]) for _ in range(2)] == [200, 429]


def test_a_refused_request_costs_its_sender_nothing_of_the_rate(store):
    token = make_key(store, "reader", ["read"], now=NOON)
    keys = KeyRegistry(store, ServeConfig(requests_per_second=0.1))
    keys.refresh()
    access = Access(echo, keys=keys)
    for _ in range(5):
        assert call(access, scope_of(token=token), b"")[0]["status"] == 403
        assert call(access, scope_of(token="rt_wrong"), b"")[0]["status"] == 401
    assert call(access, scope_of("/metrics", "GET", token), b"")[0]["status"] == 200


@pytest.mark.parametrize("path", PUBLIC)
def test_public_paths_need_neither_key_nor_rate(store, path):
    keys = KeyRegistry(store, ServeConfig(auth="required", requests_per_second=0.1))
    access = Access(echo, keys=keys)
    assert {call(access, scope_of(path, "GET"), b"")[0]["status"] for _ in range(5)} == {200}


@pytest.mark.parametrize(
    ("auth", "host", "with_key", "is_required"),
    [
        ("auto", "127.0.0.1", False, False),
        ("auto", "127.0.0.1", True, True),
        ("auto", "::1", False, False),
        ("auto", "192.168.1.2", False, True),
        ("off", "0.0.0.0", True, False),
        ("required", "localhost", False, True),
    ],
)
def test_whether_a_key_is_required(store, auth, host, with_key, is_required):
    if with_key:
        make_key(store, "app", ["app"], now=NOON)
    keys = KeyRegistry(store, ServeConfig(auth=auth, host=host))
    keys.refresh()
    assert keys.is_required == is_required


def test_keys_are_read_before_the_first_request_and_kept_while_the_database_is_away(
    store, monkeypatch, caplog
):
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.02)
    first = make_key(store, "one", ["app"], now=NOON)
    keys = KeyRegistry(store, ServeConfig())
    with keys.kept_fresh():
        assert recognise(first, keys.keys).name == "one"
        make_key(store, "two", ["app"], now=NOON)
        wait_until(lambda: len(keys.keys) == 2, seconds=10)
        with store.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE api_keys RENAME TO gone")
        wait_until(lambda: "API keys: " in caplog.text, seconds=10)
        assert len(keys.keys) == 2
    assert caplog.text.count("API keys: ") == 1


def test_tips_beyond_the_slots_wait_and_beyond_the_queue_they_are_refused():
    async def live():
        slots = TipSlots(waiting=1, at_once=2)
        entered, leave = [], asyncio.Event()

        async def one(name):
            async with slots:
                entered.append(name)
                await leave.wait()

        tasks = [asyncio.create_task(one(name)) for name in "abc"]
        await asyncio.sleep(0)
        with pytest.raises(FullError, match="too many tips are being written; try again"):
            async with slots:
                pass
        assert entered == ["a", "b"]
        tasks[2].cancel()  # its client went away: the place in the queue is free again
        await asyncio.sleep(0)
        waiting = asyncio.create_task(one("d"))
        await asyncio.sleep(0)
        leave.set()
        await asyncio.gather(*tasks[:2], waiting)
        return entered, slots.taken

    assert asyncio.run(live()) == (["a", "b", "d"], 0)


class SentTo:
    """What a handler of errors is given of a request."""

    def __init__(self, path):
        self.scope = {"path": path}


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UnknownTipError("no tip"), 404, "no tip"),
        (DataError("give a kind"), 422, "give a kind"),
        (PrivacyError("no key"), 422, "no key"),
        (CanaryError("nothing is live"), 503, "nothing is live"),
        (ReleaseError("no answer"), 503, "no answer"),
        (BusyError("too much"), 503, "too much"),
        (FullError("full"), 503, "full"),
        (AwayError("of the host"), 503, "the database does not answer; try again in a moment"),
        (IntegrityError("my-secret", {}, Exception()), 503,
         "the database does not answer; try again in a moment"),
    ],
)  # fmt: skip
def test_every_error_has_a_status_and_one_form(error, status, reason, caplog):
    answer = asyncio.run(refuse_error(SentTo("/v1/tips"), error))
    assert (answer.status_code, json.loads(answer.body)) == (status, {"error": reason})
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
    chat = asyncio.run(refuse_error(SentTo("/v1/chat/completions"), error))
    assert json.loads(chat.body)["error"] == {
        "message": reason, "type": "reactune_error", "param": None, "code": str(status),
    }  # fmt: skip
    assert "my-secret" not in caplog.text
