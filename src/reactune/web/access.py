"""Who may ask, and how often: keys with scopes, and a rate for each key.

Keys are made and recognised in `keys.py`; what requests may weigh is in `limits.py`.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import sqlalchemy as sa
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Exchange

from reactune.config.sections import ServeConfig
from reactune.errors import AwayError, CanaryError, DataError, PrivacyError, ReactuneError
from reactune.service.api_keys import ApiKey, Scope, all_keys, recognise
from reactune.service.events import BusyError
from reactune.service.tips import UnknownTipError

MAX_BODY_BYTES = 256 * 1024
TIPS_AT_ONCE = 64
AGAIN = {"retry-after": "1"}

log = logging.getLogger(__name__)


class FullError(CanaryError):
    """More tips are asked for than may wait."""


class Places:
    """Lets so many tips be written at once and so many more wait; refuses the rest."""

    def __init__(self, waiting: int, at_once: int = TIPS_AT_ONCE) -> None:
        self.free = asyncio.Semaphore(at_once)
        self.most, self.taken = waiting + at_once, 0

    async def __aenter__(self) -> None:
        if self.taken >= self.most:
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


class BodyLimit:
    """Refuses bodies above `max_bytes` with 413, whatever length they claim."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Exchange, receive: Receive, send: Send) -> None:
        """Read the body first, at most `max_bytes` of it, then pass it on whole."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
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
                answer = refusal(413, f"the body is larger than {self.max_bytes:,} bytes")
                await answer(scope, receive, send)
                return
        body: list[Message] = [{"type": "http.request", "body": b"".join(chunks)}]

        async def replay() -> Message:
            return body.pop() if body else await receive()

        await self.app(scope, replay, send)


def refusal(
    status: int, reason: str, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> JSONResponse:
    """The one form in which the API says no; OpenAI's clients are told in theirs."""
    told: object = reason
    if path.startswith("/v1/chat/"):
        told = {"message": reason, "type": "reactune_error", "param": None, "code": str(status)}
    return JSONResponse({"error": told}, status_code=status, headers=dict(headers or {}))


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Our own errors: 404 for an unknown tip, 422 for what was sent, 503 for what is away."""
    path = request.url.path
    if isinstance(error, BusyError | FullError):
        return refusal(503, str(error), AGAIN, path=path)
    if isinstance(error, AwayError | sa.exc.SQLAlchemyError):
        # What SQLAlchemy says may quote a value; ours does not.
        cause: BaseException = error
        said = "no connection"
        if isinstance(error, AwayError):
            cause, said = error.__cause__ or error, str(error)
        log.error("%s: %s", type(cause).__name__, said)
        reason = "the database does not answer; try again in a moment"
        return refusal(503, reason, AGAIN, path=path)
    if isinstance(error, UnknownTipError):
        return refusal(404, str(error), path=path)
    if isinstance(error, DataError | PrivacyError):
        return refusal(422, str(error), path=path)
    assert isinstance(error, ReactuneError)
    log.error("%s", error)
    return refusal(503, str(error), AGAIN, path=path)


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that does not fit: which field, and what it should be, but not what it was."""
    assert isinstance(error, RequestValidationError)
    reason = "; ".join(sorted({_problem(each) for each in error.errors()}))
    return refusal(422, reason, path=request.url.path)


async def answer_http(request: Request, error: Exception) -> JSONResponse:
    """No such path or method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), path=request.url.path)


def _problem(problem: dict[str, Any]) -> str:
    # Deeper places and unknown fields are words of the sender's.
    place: Sequence[object] = problem["loc"][1:2]
    if problem["type"] == "extra_forbidden":
        return "an unknown field; see /openapi.json"
    if problem["type"] == "json_invalid":
        return "the body is not JSON"
    return f"{'.'.join(map(str, place)) or 'body'}: {problem['msg']}"


REFRESH_SECONDS = 1.0  # how long a key that was revoked may go on
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/healthz", "/readyz", "/openapi.json")
ANYONE: frozenset[Scope] = frozenset({"app", "operator", "read"})
SCOPES_OF: dict[tuple[str, str], frozenset[Scope]] = {
    ("POST", "/v1/rollouts/current/stop"): frozenset({"operator"}),
    ("GET", "/v1/rollouts/current"): ANYONE,
    ("GET", "/v1/route"): frozenset({"app", "read"}),
    ("GET", "/metrics"): frozenset({"read", "operator"}),
}
APP: frozenset[Scope] = frozenset({"app"})
BURST_SECONDS = 2.0


@dataclass
class Bucket:
    """What one key may still ask: fills at a rate, and holds two seconds of it."""

    tokens: float
    filled_at: float

    def take(self, now: float, *, rate: float) -> float:
        """Take one; 0 if there was one, else the seconds until there is."""
        size = max(1.0, rate * BURST_SECONDS)
        # A clock that went back fills nothing.
        self.tokens = min(size, self.tokens + max(0.0, now - self.filled_at) * rate)
        self.filled_at = now
        if self.tokens < 1 - 1e-9:
            return (1 - self.tokens) / rate
        self.tokens -= 1
        return 0.0


@dataclass
class KeyRing:
    """The keys as this process knows them; the last ones stay while the database is away."""

    engine: sa.Engine
    settings: ServeConfig
    keys: dict[str, ApiKey] = field(default_factory=dict)

    def refresh(self) -> None:
        """Read all keys anew.

        Raises:
            DataError: the database does not answer.
        """
        self.keys = {key.key_id: key for key in all_keys(self.engine)}

    @property
    def is_required(self) -> bool:
        """Whether a request needs a key."""
        if self.settings.auth == "auto":
            return bool(self.keys) or self.settings.host not in LOOPBACK
        return self.settings.auth == "required"

    @contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """Read the keys every second in a thread, as long as this lasts."""
        stop = Event()
        thread = Thread(target=self._keep_fresh, args=(stop,), daemon=True, name="reactune-keys")
        self._try()
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5.0)

    def _keep_fresh(self, stop: Event) -> None:
        while not stop.wait(REFRESH_SECONDS):
            self._try()

    def _try(self) -> None:
        try:
            self.refresh()
        except DataError:
            return  # live_models.py tells that the database is away


class Access:
    """Refuses who has no key for a path with 401 or 403, and who asks too often with 429."""

    def __init__(
        self, app: ASGIApp, *, ring: KeyRing, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app, self.ring, self.clock = app, ring, clock
        self.buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Exchange, receive: Receive, send: Send) -> None:
        """Pass on what may pass; the key's id is left in the scope for the log."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        status, reason, headers = self._judge(scope)
        if status:
            await refusal(status, reason, headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _judge(self, scope: Exchange) -> tuple[int, str, dict[str, str]]:
        key_id = ""
        if self.ring.is_required:
            token = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            key = recognise(token, self.ring.keys)
            if key is None:
                told = {"www-authenticate": "Bearer"}
                return 401, "give a valid key: Authorization: Bearer rt_...", told
            if not key.scopes & SCOPES_OF.get((scope["method"], scope["path"]), APP):
                return 403, "the key's scopes do not allow this request", {}
            key_id = key.key_id
        scope["reactune_key"] = key_id
        rate = self.ring.settings.requests_per_second / self.ring.settings.workers
        now = self.clock()
        bucket = self.buckets.setdefault(key_id, Bucket(rate * BURST_SECONDS, now))
        seconds = bucket.take(now, rate=rate)
        if seconds:
            told = {"retry-after": str(math.ceil(seconds))}
            return 429, f"more than {rate:g} requests a second; slow down", told
        return 0, "", {}
