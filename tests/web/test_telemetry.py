import json
import logging

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reactune.web.telemetry import JsonLines

TIP = {"user": "u1", "kind": "focus", "context": {}}


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
