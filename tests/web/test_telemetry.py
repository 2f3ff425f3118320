import asyncio
import json
import logging
from datetime import datetime

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reactune.service.state import close_service
from reactune.web.telemetry import JsonLines, Metrics, Telemetry
from server_fixtures import wait_until
from serving_fixtures import exposure_of, fails, service_of, set_challenger, set_champion, users_on

TIP = {"user": "u1", "kind": "focus", "context": {}}


def test_metrics_and_log_lines_hold_routes_and_arms_but_no_content(served, caplog):
    caplog.set_level(logging.INFO, logger="reactune.requests")
    client = served()
    body = {**TIP, "user": "u-7-raw", "context": {"free_text": "my secret plan"}}
    tip_id = client.post("/v1/tips", json=body).json()["tip_id"]
    client.post(f"/v1/tips/{tip_id}/shown")
    client.get("/nobody/knows/u-7-raw")
    metrics = client.get("/metrics").text
    wanted = 'reactune_tips_total{arm="champion",fallback="",source="llm",version="1"} 1.0'
    assert wanted in metrics
    assert 'reactune_guard_verdicts_total{verdict="passed"} 1.0' in metrics
    assert 'reactune_requests_total{path="/v1/tips/{tip_id}/shown",status="204"} 1.0' in metrics
    assert 'reactune_requests_total{path="unknown",status="404"} 1.0' in metrics
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    requests = [line for line in lines if line["of"] == "reactune.requests"]
    assert [line["path"] for line in requests][:2] == ["/v1/tips", "/v1/tips/{tip_id}/shown"]
    assert (requests[0]["status"], requests[0]["method"], requests[0]["key"]) == (200, "POST", "")
    for private in ("u-7-raw", "secret plan", tip_id, "Champion's tip"):
        assert private not in metrics + json.dumps(lines)


def test_a_head_request_is_logged_as_one(served, caplog):
    caplog.set_level(logging.INFO, logger="reactune.requests")
    client = served()
    client.head("/healthz")
    client.get("/healthz")
    logged = [record.fields for record in caplog.records if record.name == "reactune.requests"]
    assert [(each["method"], each["path"]) for each in logged] == [
        ("HEAD", "/healthz"),
        ("GET", "/healthz"),
    ]


def test_a_request_is_a_span_by_its_route_where_a_tracer_provider_is_set_up(served, monkeypatch):
    seen = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(seen))
    # The API takes a provider once in a process, so it does not know this one.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    client = served()
    body = {**TIP, "user": "u-7-raw", "context": {"free_text": "my secret plan"}}
    tip_id = client.post("/v1/tips", json=body).json()["tip_id"]
    client.post(f"/v1/tips/{tip_id}/shown")
    assert client.post("/v1/tips", json={**body, "user": 7}).status_code == 422
    spans = seen.get_finished_spans()
    assert [(each.name, each.attributes["http.response.status_code"]) for each in spans] == [
        ("POST /v1/tips", 200),
        ("POST /v1/tips/{tip_id}/shown", 204),
        ("POST /v1/tips", 422),
    ]
    exported = " ".join(each.to_json() for each in spans)
    assert not any(private in exported for private in ("u-7-raw", "secret plan", tip_id))


def line_of(message="request", level=logging.INFO, **more):
    record = logging.LogRecord("reactune.requests", level, "file", 1, message, (), None)
    record.__dict__.update(more)
    return JsonLines().format(record)


def test_a_log_line_is_one_json_object_with_its_fields():
    line = line_of("two\nlines", fields={"path": "/v1/tips", "ms": 1.5})
    assert "\n" not in line
    values = json.loads(line)
    assert datetime.fromisoformat(values.pop("at")).tzinfo is not None
    assert values == {
        "level": "INFO", "of": "reactune.requests", "message": "two\nlines", "path": "/v1/tips",
        "ms": 1.5,
    }  # fmt: skip


def test_no_log_line_holds_a_password_of_a_url():
    assert "s3cret" not in line_of("cannot reach postgresql://u:s3cret@host/db?password=s3cret")


def metric(client, name):
    lines = client.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith(name)]


def test_the_metrics_hold_the_challengers_share_and_what_is_not_on_disk(served):
    set_challenger(served.engine, share=0.25)
    client = served()
    wait_until(lambda: metric(client, "reactune_challenger_share ")[0].endswith(" 0.25"))
    assert metric(client, "reactune_waiting_facts ") == ["reactune_waiting_facts 0.0"]


def test_a_tip_counts_by_its_assigned_arm_and_the_version_that_wrote_it(served):
    opened = set_challenger(served.engine)
    client = served(timeout_seconds=5)
    served.servers[-1].answers[2] = fails
    wait_until(lambda: metric(client, "reactune_challenger_share ")[0].endswith(" 0.5"))
    user = next(users_on("challenger", opened))
    assert client.post("/v1/tips", json={**TIP, "user": user}).status_code == 200
    assert metric(client, "reactune_tips_total") == [
        'reactune_tips_total{arm="challenger",fallback="error",source="llm",version="1"} 1.0'
    ]


def test_every_verdict_of_the_guard_is_counted(store, chat, server):
    set_champion(store)
    service = service_of(store, chat, server)
    metrics = Metrics(service)
    metrics.count_exposure(exposure_of(guard="empty,unsafe,unsafe,passed"))
    metrics.count_exposure(exposure_of(source="stored", model_version=None, fallback="blocked"))
    metrics.count_exposure(exposure_of(cut=True))
    text = metrics.text().decode()
    for verdict, count in (("empty", 1), ("unsafe", 2), ("passed", 3)):
        assert f'reactune_guard_verdicts_total{{verdict="{verdict}"}} {count}.0' in text
    assert 'arm="champion",fallback="blocked",source="stored",version=""} 1.0' in text
    assert 'reactune_cut_tips_total{arm="champion"} 1.0' in text
    close_service(service)


def test_a_request_that_breaks_counts_as_a_500_and_the_error_goes_on(store, chat, server):
    service = service_of(store, chat, server)
    metrics = Metrics(service)

    async def broken(scope, receive, send):
        raise KeyError("of ours")

    telemetry = Telemetry(broken, metrics=metrics)
    with pytest.raises(KeyError):
        asyncio.run(telemetry({"type": "http", "method": "GET", "path": "/x"}, None, None))
    text = metrics.text().decode()
    assert 'reactune_requests_total{path="unknown",status="500"} 1.0' in text
    close_service(service)


def test_what_is_no_request_is_neither_counted_nor_logged(store, chat, server, caplog):
    caplog.set_level(logging.INFO)
    service = service_of(store, chat, server)
    metrics, seen = Metrics(service), []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Telemetry(app, metrics=metrics)({"type": "lifespan"}, None, None))
    assert (seen, caplog.records) == (["lifespan"], [])
    assert "reactune_requests_total{" not in metrics.text().decode()
    close_service(service)
