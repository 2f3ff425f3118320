import hmac
import json
import logging
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reactune.cli import main
from reactune.config.sections import ServeConfig
from reactune.errors import DataError
from reactune.service.api_keys import all_keys, make_key, recognise, revoke_key
from reactune.service.state import close_service
from reactune.store.database import create_store
from reactune.web.access import TIPS_AT_ONCE, Bucket
from reactune.web.api import create_app
from reactune.web.telemetry import JsonLines
from serving_fixtures import (
    NOON,
    Hanging,
    ModelServer,
    service_of,
    set_challenger,
    set_champion,
)

TIP = {"user": "u1", "kind": "focus", "context": {}}


@pytest.fixture
def served(sqlite_url, chat):
    """A client of a service with these settings, over a store in which something is live."""
    engine = create_store(sqlite_url)
    set_champion(engine)
    opened = []

    def serve(**settings):
        server = ModelServer({1: "Champion's tip.", 2: "Challenger's tip."})
        service = service_of(engine, chat, server, settings=ServeConfig(**settings))
        client = TestClient(create_app(service))
        client.__enter__()
        opened.append((client, service))
        serve.servers.append(server)
        return client

    serve.engine, serve.servers = engine, []
    yield serve
    for client, service in opened:
        client.__exit__(None, None, None)
        close_service(service)
    engine.dispose()


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def test_the_database_holds_no_key_and_a_right_one_is_recognised(engine):
    tokens = [make_key(engine, f"app {n}", ["app", "read"], now=NOON) for n in range(3)]
    keys = {key.key_id: key for key in all_keys(engine)}
    with engine.connect() as connection:
        told = str(connection.exec_driver_sql("SELECT * FROM api_keys").all())
    for token in tokens:
        key_id, secret = token.split("_", 2)[1:]
        assert secret not in told
        assert recognise(token, keys).key_id == key_id
        assert recognise(token[:-1] + ("a" if token[-1] != "a" else "b"), keys) is None
        assert recognise(f"rt_00000000_{secret}", keys) is None
    for wrong in ("", "rt_", tokens[0] + "x", "Bearer"):
        assert recognise(wrong, keys) is None
    revoke_key(engine, tokens[0].split("_")[1], now=NOON)
    keys = {key.key_id: key for key in all_keys(engine)}
    assert recognise(tokens[0], keys) is None
    assert recognise(tokens[1], keys).scopes == {"app", "read"}


def test_secrets_are_compared_in_constant_time(engine, monkeypatch):
    token = make_key(engine, "app", ["app"], now=NOON)
    keys = {key.key_id: key for key in all_keys(engine)}
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(1) or compare(a, b))
    for of in (token, token[:-1] + "-", f"rt_00000000_{token.split('_', 2)[2]}"):
        recognise(of, keys)
    assert len(compared) == 3


@pytest.mark.parametrize(("name", "scopes"), [("", ["app"]), ("x", []), ("x", ["root"])])
def test_a_key_without_name_or_known_scope_is_not_made(engine, name, scopes):
    with pytest.raises(DataError, match="a key needs"):
        make_key(engine, name, scopes, now=NOON)
    with pytest.raises(DataError, match="no key"):
        revoke_key(engine, "nobody's", now=NOON)


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


def test_keys_are_made_listed_and_revoked_at_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", "k" * 32)
    create_store(f"sqlite:///{tmp_path / 'reactune.db'}").dispose()

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return ended.value.code, capsys.readouterr().out.strip()

    code, token = run("keys", "create", "phone app", "--scope", "app", "--scope", "read")
    assert (code, token[:3]) == (0, "rt_")
    key_id = token.split("_")[1]
    code, listed = run("keys", "list")
    assert (key_id in listed, "app,read" in listed, "valid" in listed) == (True, True, True)
    assert token.split("_", 2)[2] not in listed
    assert run("keys", "revoke", key_id) == (0, f"revoked {key_id}")
    assert "revoked" in run("keys", "list")[1]
    assert run("keys", "revoke", "nobody's")[0] == 1


def test_figures_and_log_lines_tell_routes_and_arms_but_no_content(served, caplog):
    caplog.set_level(logging.INFO, logger="reactune.requests")
    client = served()
    said = {**TIP, "user": "u-7-raw", "context": {"free_text": "my secret plan"}}
    tip_id = client.post("/v1/tips", json=said).json()["tip_id"]
    client.post(f"/v1/tips/{tip_id}/shown")
    client.get("/nobody/knows/u-7-raw")
    figures = client.get("/metrics").text
    wanted = 'reactune_tips_total{arm="champion",fallback="",source="llm",version="1"} 1.0'
    assert wanted in figures
    assert 'reactune_guard_verdicts_total{verdict="passed"} 1.0' in figures
    assert 'reactune_requests_total{path="/v1/tips/{tip_id}/shown",status="204"} 1.0' in figures
    assert 'reactune_requests_total{path="unknown",status="404"} 1.0' in figures
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    told = [line for line in lines if line["of"] == "reactune.requests"]
    assert [line["path"] for line in told][:2] == ["/v1/tips", "/v1/tips/{tip_id}/shown"]
    assert (told[0]["status"], told[0]["method"], told[0]["key"]) == (200, "POST", "")
    for private in ("u-7-raw", "secret plan", tip_id, "Champion's tip"):
        assert private not in figures + json.dumps(lines)


def test_a_request_is_a_span_by_its_route_where_somebody_set_up_what_becomes_of_spans(
    served, monkeypatch
):
    seen = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(seen))
    # The API takes a provider once in a process, so it is not told of this one.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    client = served()
    said = {**TIP, "user": "u-7-raw", "context": {"free_text": "my secret plan"}}
    tip_id = client.post("/v1/tips", json=said).json()["tip_id"]
    client.post(f"/v1/tips/{tip_id}/shown")
    assert client.post("/v1/tips", json={**said, "user": 7}).status_code == 422
    spans = seen.get_finished_spans()
    assert [(each.name, each.attributes["http.response.status_code"]) for each in spans] == [
        ("POST /v1/tips", 200),
        ("POST /v1/tips/{tip_id}/shown", 204),
        ("POST /v1/tips", 422),
    ]
    told = " ".join(each.to_json() for each in spans)
    assert not any(private in told for private in ("u-7-raw", "secret plan", tip_id))


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
