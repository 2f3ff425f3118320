"""Access: which requests reach the service, and the form of every refusal.

A request needs an API key with the right scope, within its key's rate; its body is bounded, and so
is the number of tips that wait. A refusal repeats nothing that was sent.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import sqlalchemy as sa
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Exchange

from reactune.config.sections import ServeConfig
from reactune.errors import AwayError, CanaryError, DataError, PrivacyError, ReactuneError
from reactune.pages.render import html
from reactune.process import Repeater
from reactune.service.api_keys import ApiKey, Scope, all_keys, recognise
from reactune.service.events import BusyError
from reactune.service.tips import UnknownTipError
from reactune.web.telemetry import ASKED_METHOD

REFRESH_SECONDS = 1.0  # how long a revoked key may still be accepted
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PUBLIC = ("/healthz", "/readyz", "/openapi.json")
# The first parts of the paths of pages, which have logins of their own (`web.pages`).
PAGE_ROOTS = frozenset(
    {"", "assets", "login", "logout", "reactions", "runs", "rollout", "models", "people",
     "settings", "keys"}
)  # fmt: skip
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
PAGES_RATE = "pages"  # all pages of a worker share one rate
ANY_SCOPE: frozenset[Scope] = frozenset({"app", "operator", "read"})
APP: frozenset[Scope] = frozenset({"app"})
SCOPES_OF: dict[tuple[str, str], frozenset[Scope]] = {
    ("POST", "/v1/rollouts/current/stop"): frozenset({"operator"}),
    ("GET", "/v1/rollouts/current"): ANY_SCOPE,
    ("GET", "/v1/route"): frozenset({"app", "read"}),
    ("GET", "/v1/models"): ANY_SCOPE,
    ("GET", "/metrics"): frozenset({"read", "operator"}),
}
# What OpenAI's clients call, whether or not it is there, also without their /v1 or with two.
OPENAI_PATHS = re.compile(
    r"(/v1)*/(chat|models|completions|responses|embeddings|messages)(/.*)?", re.DOTALL
)
CHAT_ADVICE = (
    "OpenAI's clients ask with POST /v1/chat/completions: give them a base URL that ends in /v1, "
    "and choose chat completions"
)
BURST_SECONDS = 2.0
MAX_BODY_BYTES = 256 * 1024
TIPS_AT_ONCE = 64
RETRY_SOON = {"retry-after": "1"}
NO_OBJECT = "the body is not a JSON object"

log = logging.getLogger(__name__)


class FullError(CanaryError):
    """More tips are asked for than may wait."""


@dataclass
class KeyRegistry:
    """The API keys as this process knows them; the last ones stay while the database is away."""

    engine: sa.Engine
    settings: ServeConfig
    keys: dict[str, ApiKey] = field(default_factory=dict)

    @property
    def is_required(self) -> bool:
        """Whether a request needs a key."""
        if self.settings.auth == "auto":
            return bool(self.keys) or self.settings.host not in LOOPBACK
        return self.settings.auth == "required"

    def refresh(self) -> None:
        """Read all keys again.

        Raises:
            DataError: the database does not answer.
        """
        self.keys = {key.key_id: key for key in all_keys(self.engine)}

    @contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """Read the keys now, and then every second until the block ends."""
        try:
            self.refresh()
        except DataError as error:
            log.error("API keys: %s", error)
        with Repeater(self.refresh, seconds=REFRESH_SECONDS, name="API keys"):
            yield


@dataclass
class Bucket:
    """A token bucket: the requests that one key may still make; it holds two seconds' worth."""

    tokens: float
    filled_at: float

    def take(self, now: float, *, rate: float) -> float:
        """Take one token; returns 0, or the seconds until there is one."""
        size = max(1.0, rate * BURST_SECONDS)
        # A clock that steps back adds no tokens.
        self.tokens = min(size, self.tokens + max(0.0, now - self.filled_at) * rate)
        self.filled_at = now
        if self.tokens < 1 - 1e-9:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0


class Access:
    """Refuses requests without a key of the path's scope (401, 403) or above its rate (429)."""

    def __init__(
        self, app: ASGIApp, *, keys: KeyRegistry, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app, self.keys, self.clock = app, keys, clock
        self.buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Exchange, receive: Receive, send: Send) -> None:
        """Pass on an accepted request, with the key's id in the scope for the log."""
        refused = None
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            refused = self._refusal(scope)
        await (refused or self.app)(scope, receive, send)

    def _refusal(self, scope: Exchange) -> Response | None:
        key_id, path = "", scope["path"]
        is_page = is_page_path(path)
        if self.keys.is_required and not is_page:
            # The scheme's name is the same in small letters (RFC 9110).
            scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            key = recognise(token.strip(), self.keys.keys) if scheme.lower() == "bearer" else None
            if key is None:
                reason = "give a valid key: Authorization: Bearer rt_..."
                return refusal(401, reason, {"www-authenticate": "Bearer"}, path=path)
            if not key.scopes & SCOPES_OF.get((scope["method"], path), APP):
                return refusal(403, "the key's scopes do not allow this request", path=path)
            key_id = key.key_id
        scope["reactune_key"] = key_id
        rate = self.keys.settings.requests_per_second / self.keys.settings.workers
        now = self.clock()
        name = PAGES_RATE if is_page else key_id
        bucket = self.buckets.setdefault(name, Bucket(math.inf, now))  # full
        if seconds := bucket.take(now, rate=rate):
            reason = f"more than {rate:g} requests a second; slow down"
            return refusal(429, reason, {"retry-after": str(math.ceil(seconds))}, path=path)
        return None


class HeadRequests:
    """Answers HEAD as GET is answered; the server leaves out the body (RFC 9110, 9.1)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Exchange, receive: Receive, send: Send) -> None:
        """Pass on the request as one of GET, in a scope that says what was asked."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", ASKED_METHOD: "HEAD"}
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuses bodies above `max_bytes` with 413, whatever length they claim, and compressed ones.

    A compressed body says nothing of how long it is.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Exchange, receive: Receive, send: Send) -> None:
        """Read the body, at most `max_bytes` of it, then pass it on whole."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        encoding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            reason = "a compressed body is not read; send it without Content-Encoding"
            await refusal(415, reason, path=scope["path"])(scope, receive, send)
            return
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
            if sum(map(len, chunks)) > self.max_bytes:
                reason = f"the body is larger than {self.max_bytes:,} bytes"
                await refusal(413, reason, path=scope["path"])(scope, receive, send)
                return
        body: list[Message] = [{"type": "http.request", "body": b"".join(chunks)}]

        async def replay() -> Message:
            return body.pop() if body else await receive()

        await self.app(scope, replay, send)


class BeaconBodies:
    """Reads reports as JSON that a closing page can only send as text (`navigator.sendBeacon`)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Exchange, receive: Receive, send: Send) -> None:
        """Pass on a report under the content type that its body has."""
        if scope["type"] == "http" and _is_report(scope["path"]):
            kept = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
            sent = dict(scope["headers"]).get(b"content-type", b"").lower()
            if not sent or sent.startswith(b"text/plain"):
                # In place: what routing adds to the scope is for the layers outside, too.
                scope["headers"] = [*kept, (b"content-type", b"application/json")]
        await self.app(scope, receive, send)


def _is_report(path: str) -> bool:
    return path == "/v1/reactions" or (path.startswith("/v1/tips/") and path.endswith("/shown"))


class TipSlots:
    """Admits `at_once` tips, lets `waiting` more wait for a slot, and refuses the rest."""

    def __init__(self, waiting: int, at_once: int = TIPS_AT_ONCE) -> None:
        self.free = asyncio.Semaphore(at_once)
        self.limit, self.taken = waiting + at_once, 0

    async def __aenter__(self) -> None:
        if self.taken >= self.limit:
            raise FullError("too many tips are being written; try again in a moment")
        self.taken += 1
        try:
            await self.free.acquire()
        except asyncio.CancelledError:
            self.taken -= 1
            raise

    async def __aexit__(self, *error: object) -> None:
        self.taken -= 1
        self.free.release()


def is_page_path(path: str) -> bool:
    """Whether a path is that of a page, which people read."""
    return path.lstrip("/").partition("/")[0] in PAGE_ROOTS


def refusal(
    status: int, reason: str, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> Response:
    """The form of every refusal: HTML to a reader of pages, OpenAI's where its clients call."""
    if path and is_page_path(path):
        title = f"{status} {HTTPStatus(status).phrase}"
        text = html("problem", title=title, reason=f"{reason}.", viewer=None, done="", now="")
        return HTMLResponse(text, status, {**PAGE_HEADERS, **(headers or {})})
    error: object = reason
    if OPENAI_PATHS.fullmatch(path):
        error = {"message": reason, "type": "reactune_error", "param": None, "code": str(status)}
    return JSONResponse({"error": error}, status_code=status, headers=dict(headers or {}))


async def refuse_error(request: Request, error: Exception) -> Response:
    """Our errors: 404 for an unknown tip, 422 for an invalid request, 503 for what is away."""
    path = request.scope["path"]
    if isinstance(error, BusyError | FullError):
        return refusal(503, str(error), RETRY_SOON, path=path)
    if isinstance(error, AwayError | sa.exc.SQLAlchemyError):
        # SQLAlchemy's messages may quote a value; ours do not.
        is_ours = isinstance(error, AwayError)
        cause = (error.__cause__ or error) if is_ours else error
        log.error("%s: %s", type(cause).__name__, error if is_ours else "no connection")
        reason = "the database does not answer; try again in a moment"
        return refusal(503, reason, RETRY_SOON, path=path)
    if isinstance(error, UnknownTipError):
        return refusal(404, str(error), path=path)
    if isinstance(error, DataError | PrivacyError):
        return refusal(422, str(error), path=path)
    assert isinstance(error, ReactuneError)
    log.error("%s", error)
    return refusal(503, str(error), RETRY_SOON, path=path)


async def refuse_invalid(request: Request, error: Exception) -> Response:
    """A body that does not fit: which field, and what it should be, but not what it was."""
    assert isinstance(error, RequestValidationError)
    reason = "; ".join(sorted({_problem(each) for each in error.errors()}))
    if reason == NO_OBJECT and "json" not in request.headers.get("content-type", "").lower():
        reason = "the body is not read as JSON; send Content-Type: application/json"
    return refusal(422, reason, path=request.scope["path"])


async def refuse_http(request: Request, error: Exception) -> Response:
    """No such path or method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    status, reason, path = error.status_code, str(error.detail), request.scope["path"]
    if status == HTTPStatus.BAD_REQUEST:
        reason = "the body cannot be read; send JSON in UTF-8"
    elif reason == HTTPStatus(status).phrase and not is_page_path(path):
        reason = f"{reason}; /openapi.json lists the paths and their methods"
        if status == HTTPStatus.NOT_FOUND and OPENAI_PATHS.fullmatch(path):
            reason = f"{reason}. {CHAT_ADVICE}"
    return refusal(status, reason, error.headers, path=path)


def _problem(problem: dict[str, Any]) -> str:
    # A list's place and a field of its objects are named, too: `messages[0].role`. Deeper keys of
    # an object and unknown fields are the sender's words.
    path: tuple[object, ...] = problem["loc"]
    name, place, of_object = (*path[1:4], None, None, None)[:3]
    if problem["type"] == "extra_forbidden":
        return "an unknown field; see /openapi.json"
    if problem["type"] == "json_invalid":
        return "the body is not JSON"
    if name is None:
        return "the body is empty" if problem["type"] == "missing" else NO_OBJECT
    where = str(name)
    if isinstance(place, int):
        where += f"[{place}]" + (f".{of_object}" if isinstance(of_object, str) else "")
    return f"{where}: {problem['msg']}"
