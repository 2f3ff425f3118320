"""Metrics, one log line a request, and spans; none of them holds a text, a user id or a key."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reactune.errors import hide_passwords
from reactune.records import Exposure
from reactune.service.state import Service

# prometheus_client's own variable: the folder where workers keep their metrics.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
ASKED_METHOD = "reactune_method"  # in the scope of a HEAD, which is answered as GET is
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)

log = logging.getLogger("reactune.requests")


class Metrics:
    """The service's metrics, in Prometheus' text form: those of all workers together."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reactune_requests", "Requests by path and status.", ("path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "reactune_request_seconds", "Seconds until the answer was sent.", ("path",),
            buckets=BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.tips = Counter(
            "reactune_tips", "Recorded tips by assigned arm, version that wrote, and fallback.",
            ("arm", "version", "source", "fallback"), registry=self.registry,
        )  # fmt: skip
        self.cut = Counter(
            "reactune_cut_tips", "Recorded tips that are part of an answer cut at max_tokens.",
            ("arm",), registry=self.registry,
        )  # fmt: skip
        self.guard = Counter(
            "reactune_guard_verdicts", "The guard's verdicts on texts.", ("verdict",),
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "reactune_waiting_facts", "Events that are not on disk yet.",
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.share = Gauge(
            "reactune_challenger_share", "The challenger's share of the units.",
            registry=self.registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
        # prometheus_client looks labels up under a lock; there are as many as routes and statuses.
        self.requests_of, self.seconds_of = cache(self.requests.labels), cache(self.seconds.labels)
        service.listeners.append(self.count_exposure)

    def count_exposure(self, exposure: Exposure) -> None:
        """Count a recorded tip."""
        version, fallback = exposure.model_version or "", exposure.fallback or ""
        self.tips.labels(exposure.arm, str(version), exposure.source, fallback).inc()
        if exposure.cut:
            self.cut.labels(exposure.arm).inc()
        for verdict in exposure.guard.split(","):
            self.guard.labels(verdict).inc()

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request, and update this process's gauges."""
        self.requests_of(path, status).inc()
        self.seconds_of(path).observe(seconds)
        self._update_gauges()

    def text(self) -> bytes:
        """All metrics now."""
        self._update_gauges()
        registry = self.registry
        if METRICS_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _update_gauges(self) -> None:
        latest = self.service.watcher.latest
        self.waiting.set(self.service.recorder.waiting)
        self.share.set(latest.share if latest else 0.0)


class Telemetry:
    """Counts, times and logs every request by its route, and makes a span of it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics, self.span = app, metrics, span_factory()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and report its status and duration."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        method = scope.get(ASKED_METHOD, scope["method"])

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self.span(method) as span:
                await self.app(scope, receive, send_and_note_status)
                if span is not None:
                    span.update_name(f"{method} {_route(scope)}")
                    span.set_attribute("http.response.status_code", status)
        finally:
            seconds, path = time.perf_counter() - started, _route(scope)
            self.metrics.count_request(path, status, seconds)
            if log.isEnabledFor(logging.INFO):
                request = {"path": path, "method": method, "status": status}
                key = scope.get("reactune_key", "")
                log.info("request", extra={"fields": {**request, "ms": seconds * 1e3, "key": key}})


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and the record's `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname, "of": record.name}
        message = hide_passwords(record.getMessage())
        fields: dict[str, Any] = getattr(record, "fields", {})
        return json.dumps({**line, "message": message, **fields})


def span_factory() -> Callable[[str], AbstractContextManager[Any]]:
    """The function that opens an OpenTelemetry span, where a tracer provider is set up."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.trace") is None:
        return _no_span
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return _no_span  # without a provider spans are discarded
    start: Callable[[str], AbstractContextManager[Any]]
    start = trace.get_tracer("reactune").start_as_current_span
    return start


def _no_span(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def _route(scope: Scope) -> str:
    # The path as it was declared, so that ids and unknown paths stay out of metrics and logs.
    return getattr(scope.get("route"), "path", "unknown")
