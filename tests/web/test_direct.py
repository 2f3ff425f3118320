"""The short way of hot paths answers as FastAPI's route does, and leaves the rest to it."""

import json

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from reactune.web.direct import Direct, HotPath
from reactune.web.openai_chat import ChatBody
from reactune.web.schemas import ReactionBody, TipBody
from serving_fixtures import rows_of

# FastAPI reads both as JSON; only the first goes the short way.
SHORT, LONG = "application/json", "application/json; charset=utf-8"
TIP_ID = "a" * 32
REACTION = {"tip_id": TIP_ID, "reaction": "done", "dwell_ms": 20_000}
TIP = {"user": "u1", "kind": "focus", "context": {"free_text": "Zoë, 3 €"}, "tip_id": TIP_ID}
CHAT = {"messages": [{"role": "user", "content": "What now?"}], "user": "u1"}
UNKNOWN = {**REACTION, "tip_id": "b" * 32}


async def passed_on(scope, receive, send):
    message = await receive()
    answer = JSONResponse({"passed on": message["body"].decode(errors="replace")})
    await answer(scope, receive, send)


async def named(body):
    return JSONResponse({"answered": body.tip_id})


@pytest.fixture(scope="module")
def direct():
    hot = HotPath("/hot", ReactionBody, lambda body, headers: named(body))
    return TestClient(Direct(passed_on, paths={hot.path: hot}))


def test_a_valid_request_goes_the_short_way(direct):
    answer = direct.post("/hot", content=json.dumps(REACTION), headers={"content-type": SHORT})
    assert answer.json() == {"answered": TIP_ID}


@pytest.mark.parametrize(
    ("method", "path", "kind", "body"),
    [
        ("POST", "/other", SHORT, json.dumps(REACTION)),
        ("PUT", "/hot", SHORT, json.dumps(REACTION)),
        ("POST", "/hot", LONG, json.dumps(REACTION)),
        ("POST", "/hot", "text/html", json.dumps(REACTION)),
        ("POST", "/hot", SHORT, json.dumps({**REACTION, "more": 1})),
        ("POST", "/hot", SHORT, "{"),
        ("POST", "/hot", SHORT, ""),
        ("POST", "/hot", SHORT, b"\xff"),
    ],
)
def test_any_other_request_is_passed_on_as_it_came(direct, method, path, kind, body):
    answer = direct.request(method, path, content=body, headers={"content-type": kind})
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    assert answer.json() == {"passed on": text}


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/tips", TIP, {}),
        ("/v1/tips", {**TIP, "user": 7}, {}),
        ("/v1/tips", {**TIP, "kind": "\x00"}, {}),
        ("/v1/tips", {**TIP, "tip_id": "short"}, {}),
        ("/v1/tips", {**TIP, "user": "somebody else"}, {}),
        ("/v1/reactions", REACTION, {}),
        ("/v1/reactions", {**REACTION, "dwell_ms": 20_999.6}, {}),
        ("/v1/reactions", {**REACTION, "dwell_ms": -1}, {}),
        ("/v1/reactions", {**REACTION, "reaction": "liked"}, {}),
        ("/v1/reactions", {**REACTION, "tip_id": "no id"}, {}),
        ("/v1/reactions", UNKNOWN, {}),
        ("/v1/reactions", [], {}),
        ("/v1/reactions", "null", {}),
        ("/v1/reactions", '{"tip_id": ', {}),
        ("/v1/chat/completions", CHAT, {}),
        ("/v1/chat/completions", CHAT, {"x-reactune-user": "u2", "x-reactune-kind": "essay"}),
        ("/v1/chat/completions", CHAT, {"x-reactune-user": "u" * 7_000}),
        ("/v1/chat/completions", CHAT, {"x-reactune-kind": ""}),
        ("/v1/chat/completions", {**CHAT, "tools": [{}]}, {}),
        ("/v1/chat/completions", {**CHAT, "messages": []}, {}),
        ("/v1/chat/completions", {**CHAT, "stream": True, "temperature": 0.2}, {}),
    ],
)
def test_both_ways_answer_alike(served, path, body, headers):
    client = served()
    client.post("/v1/tips", json=TIP)
    content = (body if isinstance(body, str) else json.dumps(body)).encode()
    short, long = (
        client.post(path, content=content, headers={**headers, "content-type": kind})
        for kind in (SHORT, LONG)
    )
    assert _without_ids(short) == _without_ids(long)
    assert [row["reaction"] for row in rows_of(served.engine)].count("done") == (
        path == "/v1/reactions" and long.status_code == 204
    )


def _without_ids(answer):
    """Status, headers and text, without what is new in each answer."""
    text = answer.text
    for line in text.split("data: "):
        if line.startswith("{") and "id" in (found := json.loads(line)):
            text = text.replace(found["id"], "ID").replace(str(found["created"]), "TIME")
    return answer.status_code, sorted(answer.headers.items()), text


KEYS = st.sampled_from(
    ["user", "kind", "context", "names", "tip_id", "reaction", "dwell_ms", "messages", "role",
     "content", "n", "model", "stream", "x", ""]
)  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([TIP_ID, "done", "user", "focus", 2**63, -(2**63), 1e300])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
BODIES = [(TipBody, TIP), (ReactionBody, REACTION), (ChatBody, CHAT)]


@given(st.sampled_from(BODIES), st.dictionaries(KEYS, VALUES, max_size=2))
def test_a_body_that_is_read_the_short_way_is_the_body_that_fastapi_reads(form, changes):
    body, valid = form
    text = json.dumps({**valid, **changes})
    try:
        short = body.__pydantic_validator__.validate_json(text)
    except ValidationError:
        return  # passed on
    long = TypeAdapter(body).validate_python(json.loads(text), from_attributes=True)
    assert repr(short) == repr(long)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/tips", TIP), ("/v1/reactions", UNKNOWN), ("/v1/chat/completions", CHAT)],
)
def test_hot_paths_of_the_service_do_not_enter_fastapi_s_routes(served, monkeypatch, path, body):
    entered = []
    handle = APIRoute.handle

    async def noted(route, *exchange):
        entered.append(route.path)
        await handle(route, *exchange)

    monkeypatch.setattr(APIRoute, "handle", noted)
    client = served()
    assert client.post(path, json=body).is_success
    assert not entered
    client.get("/healthz")
    assert entered == ["/healthz"]
