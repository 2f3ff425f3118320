"""What can be seen of the service: metrics, one log line a request, spans; never any content.

Where the figures go is up to whoever reads `/metrics` and the log.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reactune.errors import hide_passwords
from reactune.service.state import Service

# prometheus_client's own name of the folder where workers keep their figures.
SHARED_FIGURES = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)

log = logging.getLogger("reactune.requests")


class Metrics:
    """The service's figures, in Prometheus' text form: those of all workers together."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reactune_requests", "Requests by path and status.", ("path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "reactune_request_seconds", "Seconds until the answer was sent.", ("path",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.tips = Counter(
            "reactune_tips", "Tips given, by assigned arm, version that wrote, and fallback.",
            ("arm", "version", "source", "fallback"), registry=self.registry,
        )  # fmt: skip
        self.guarded = Counter(
            "reactune_guard_verdicts", "The guard's verdicts on texts.", ("verdict",),
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "reactune_waiting_facts", "Not on disk yet.",
            registry=self.registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.share = Gauge(
            "reactune_challenger_share", "The challenger's.",
            registry=self.registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
        service.listeners.append(self.count)

    def count(self, exposure: Mapping[str, Any]) -> None:
        """Count a tip that was given, by its row."""
        names = ("arm", "model_version", "source", "fallback")
        self.tips.labels(*(str(exposure[name] or "") for name in names)).inc()
        for verdict in exposure["guard"].split(","):
            self.guarded.labels(verdict).inc()

    def note(self, path: str, status: int, seconds: float) -> None:
        """Count a request, and say how this process stands after it."""
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)
        self._stand()

    def text(self) -> bytes:
        """All figures now."""
        self._stand()
        registry = self.registry
        if SHARED_FIGURES in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def _stand(self) -> None:
        latest = self.service.live.latest
        self.waiting.set(self.service.recorder.waiting)
        self.share.set(latest.share if latest else 0.0)


class Watch:
    """Counts, times and logs every request by its route, and makes a span of it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics, self.span = app, metrics, spans()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it went."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self.span(scope["method"]) as current:
                await self.app(scope, receive, note)
                if current is not None:
                    current.update_name(f"{scope['method']} {_route(scope)}")
                    current.set_attribute("http.response.status_code", status)
        finally:
            seconds, path = time.perf_counter() - started, _route(scope)
            self.metrics.note(path, status, seconds)
            if log.isEnabledFor(logging.INFO):
                told = {"path": path, "method": scope["method"], "status": status}
                key = scope.get("reactune_key", "")
                log.info("request", extra={"told": {**told, "ms": seconds * 1e3, "key": key}})


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, logger, message, and what was told with it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname, "of": record.name}
        return json.dumps(
            {**line, "message": hide_passwords(record.getMessage()), **getattr(record, "told", {})}
        )


def spans() -> Callable[[str], AbstractContextManager[Any]]:
    """What opens a span of OpenTelemetry, where somebody has set up what is done with spans."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.trace") is None:
        return _no_span
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return _no_span  # nobody has: spans would go nowhere
    begin: Callable[[str], AbstractContextManager[Any]]
    begin = trace.get_tracer("reactune").start_as_current_span
    return begin


def _no_span(name: str) -> AbstractContextManager[None]:
    return nullcontext()


def _route(scope: Scope) -> str:
    # The path as it was declared: ids and whatever somebody tries stay out of the figures.
    return getattr(scope.get("route"), "path", "unknown")
