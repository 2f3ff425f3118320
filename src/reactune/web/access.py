"""Who may ask, and how often: keys with scopes, and a rate for each key.

Keys are made and recognised in `keys.py`; what requests may weigh is in `limits.py`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import sqlalchemy as sa
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Request

from reactune.config import ServeConfig
from reactune.errors import DataError
from reactune.keys import ApiKey, Scope, all_keys, recognise
from reactune.web.limits import refusal

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

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Pass on what may pass; the key's id is left in the scope for the log."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        status, reason, headers = self._judge(scope)
        if status:
            await refusal(status, reason, headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _judge(self, scope: Request) -> tuple[int, str, dict[str, str]]:
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
