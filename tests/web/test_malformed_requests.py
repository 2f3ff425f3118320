"""Malformed requests to a real service: no 5xx, no traceback, and nothing acknowledged is lost."""

import json
from contextlib import contextmanager
from itertools import count, product

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service_processes import TIP, served
from serving_fixtures import rows_of

MALFORMED = 10_000  # requests of the slow tests
CONTROL = bytes([*range(32), 127])  # which no HTTP client lets into a header
ONCE = {
    "database": None, "deadline": None, "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip
# Whose path may hold any text, so that none is forbidden.
ANY_TEXT = ("POST /v1/tips/{tip_id}/shown", "GET /v1/models/{model}")
BODIES = (
    ("POST", "/v1/tips", {"user": "u", "kind": "focus", "context": {"a": 1}, "names": ["Ann"]}),
    ("POST", "/v1/reactions", {"tip_id": "t", "reaction": "done", "dwell_ms": 5}),
    ("POST", "/v1/chat/completions", {"model": "reactune", "stream": False,
     "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
    ("PUT", "/v1/users/u/training", {"allowed": True}),
    ("POST", "/login", {"key": "x"}),
    ("POST", "/rollout/stop", {"reason": "x"}),
    ("POST", "/people", {"user": "x"}),
)  # fmt: skip
PLACES = (
    "/v1/tips/{}/shown", "/v1/users/{}", "/v1/users/{}/training", "/v1/route?user={}", "/runs/{}",
    "/rollout/{}", "/v1/{}", "/reactions?{}", "/models?page={}", "/assets/{}",
)  # fmt: skip
TYPES = (
    "application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
    "application/json; charset=utf-16", "nonsense", "",
)  # fmt: skip
# Texts that JSON can spell and that make trouble further in; and text that is no JSON.
ODD = (
    '"\\ud83d"', '"\\u0000"', "NaN", "1e999", "-Infinity", "9" * 5_000, "1" + "0" * 400, "0.1",
    "null", "[]", "{}", "[" * 3_000, '{"a":' * 500, "tru", '"', "", "-0", '"' + "x" * 70_000 + '"',
    '{"__proto__": 1}', '"\\u202e"', "1.7976931348623157e308", "true", '{"": ""}',
)  # fmt: skip


@st.composite
def requests(draw):
    """Method, URL, headers and bytes of a request that a client with a fault may send."""
    headers = {"content-type": draw(st.sampled_from(TYPES))}
    if draw(st.booleans()):
        name = st.sampled_from(["x-reactune-user", "x-reactune-kind", "authorization", "host",
                                "accept", "cookie", "content-encoding", "origin"])  # fmt: skip
        value = st.binary(max_size=40).map(lambda raw: raw.translate(None, CONTROL).strip())
        headers[draw(name)] = draw(value)
    if draw(st.integers(0, 3)) == 0:
        text = "".join(f"%{byte:02X}" for byte in draw(st.binary(max_size=30)))
        method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]))
        return method, draw(st.sampled_from(PLACES)).replace("{}", text), headers, b"{}"
    method, path, body = draw(st.sampled_from(BODIES))
    return method, path, headers, draw(bodies(body))


@st.composite
def bodies(draw, body):
    """A right body with one value replaced, dropped or doubled; or any bytes."""
    way = draw(st.integers(0, 5))
    if way == 0:
        return draw(st.binary(max_size=200))
    name = draw(st.sampled_from([*body, "other"]))
    odd = draw(st.sampled_from(ODD) | st.text(max_size=20).map(json.dumps))
    parts = [f"{json.dumps(each)}: {json.dumps(value)}" for each, value in body.items()]
    parts = [part for part in parts if way == 1 or not part.startswith(f'"{name}"')]
    text = "{" + ", ".join([*parts, *([] if way == 2 else [f'"{name}": {odd}'])]) + "}"
    raw = text.encode("utf-8", "surrogatepass")
    if way == 3:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(min_size=1, max_size=4)) + raw[at:]
    return b"\xef\xbb\xbf" + raw if way == 4 else raw


@contextmanager
def watched(url, folder):
    """A served store and `check(response)`; at the end, what was acknowledged is there."""
    acknowledged, numbers = {}, count()
    with (
        served(url, folder) as (engine, address, process),
        httpx.Client(base_url=address, trust_env=False, timeout=60) as client,
    ):

        def check(response, asked):
            assert response.status_code < 500, (asked, response.status_code, response.text)
            assert "Traceback" not in response.text, asked
            assert process.poll() is None, asked
            number = next(numbers)
            if number % 20 == 0:
                # A right request among them is answered as ever.
                tip = client.post("/v1/tips", json={**TIP, "user": f"steady user {number}"})
                assert tip.status_code == 200, (asked, tip.text)
                tip_id = tip.json()["tip_id"]
                reaction = {"tip_id": tip_id, "reaction": "done", "dwell_ms": number}
                assert client.post("/v1/reactions", json=reaction).status_code == 204
                acknowledged[tip_id] = number

        yield client, address, check
        rows = {row["tip_id"]: row["dwell_ms"] for row in rows_of(engine)}
        assert acknowledged
        assert {tip_id: rows.get(tip_id) for tip_id in acknowledged} == acknowledged
    for log in folder.glob("log-*"):
        text = log.read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in text, text[-3_000:]


def send_malformed(url, folder, examples):
    """So many requests of `requests`, one after the other."""
    with watched(url, folder) as (client, _, check):

        @settings(max_examples=examples, **ONCE)
        @given(requests())
        def send(asked):
            method, path, headers, body = asked
            check(client.request(method, path, headers=headers, content=body), asked)

        send()


def test_a_malformed_request_is_refused_and_costs_nothing_else(sqlite_url, tmp_path):
    send_malformed(sqlite_url, tmp_path, 150)


def test_a_host_or_an_origin_that_is_none_is_no_fault_of_the_service(sqlite_url, tmp_path):
    paths = ("/", "/login", "/people", "/rollout/stop", "/v1/none", "/runs/", "/readyz")
    names, values = ("host", "origin"), (b"]D", b"[", b"http://[", b"a:b:c", b"\xc4")
    with watched(sqlite_url, tmp_path) as (client, _, check):
        for asked in product(("GET", "POST"), paths, names, values):
            method, path, name, value = asked
            check(client.request(method, path, headers={name: value}), asked)


@pytest.mark.slow
def test_thousands_of_malformed_requests_are_refused_and_cost_nothing_else(sqlite_url, tmp_path):
    send_malformed(sqlite_url, tmp_path, MALFORMED)


@pytest.mark.slow
@pytest.mark.postgres
def test_postgresql_refuses_no_request_that_sqlite_takes(fresh_postgres_url, tmp_path):
    send_malformed(fresh_postgres_url, tmp_path, MALFORMED // 5)


@pytest.mark.slow
def test_what_the_description_allows_and_what_it_forbids_gives_no_5xx(sqlite_url, tmp_path):
    import schemathesis
    from schemathesis import GenerationMode

    with watched(sqlite_url, tmp_path) as (_, address, check):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        operations = [each.ok() for each in schema.get_all_operations()]
        assert len(operations) > 10
        for operation in operations:
            inputs = bool(operation.body or operation.query or operation.path_parameters)
            for mode in (
                (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
                if inputs
                else [GenerationMode.POSITIVE]
            ):
                if operation.label in ANY_TEXT and mode == GenerationMode.NEGATIVE:
                    continue

                @settings(max_examples=MALFORMED // 20 if inputs else 5, **ONCE)
                @given(operation.as_strategy(generation_mode=mode))
                def send(case):
                    check(case.call(base_url=address), case)

                send()
