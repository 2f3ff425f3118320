"""Routing in the app's own process: the service's decision, in microseconds and without a request.

A background thread reads the rollout from the database or from the service.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, Self

from reactune.canary.routing import (
    bucket_after,
    challenger_buckets,
    day_start,
    fnv1a32,
    propensity,
    unit_key,
)
from reactune.config.sections import PrivacyConfig
from reactune.errors import CanaryError, DataError
from reactune.privacy.hashing import HashingKey, load_hashing_key, short_key, user_key
from reactune.privacy.user_ids import id_of_somebody
from reactune.process import Repeater, tell_of_forks
from reactune.records import Arm, Rollout

REFRESH_SECONDS = 0.4  # a rollback takes effect everywhere in under a second
STALE_SECONDS = 60.0
HTTP_SECONDS = 5.0
CACHED_USERS = 20_000  # whose unit and bucket of the day are kept, at least


class Decision(NamedTuple):
    """The version that answers one tip, and the columns of its exposure.

    `rollout_id` is None where the rollout could not be read for too long: the champion answers
    everybody then, and these tips belong to no comparison.
    """

    arm: Arm
    model_version: int
    rollout_id: str | None
    unit_key: str
    propensity: float

    def exposure(self) -> dict[str, Any]:
        """The columns of `tip_scores` that record this decision, as `ingest` reads them."""
        return self._asdict()


@dataclass(frozen=True)
class _Plan:
    """A rollout with what every decision needs of it, computed once."""

    rollout: Rollout
    salt_hash: int
    buckets: int
    propensities: dict[Arm, float]
    read_at: float


@dataclass(frozen=True)
class _Day:
    """Units and buckets of users seen on one day under one salt, in two generations.

    All units of a day have the same `prefix`; its hash after the salt is `prefix_hash`.
    """

    date: int
    salt_hash: int
    prefix: str = ""
    prefix_hash: int = 0
    recent: dict[str, tuple[str, int]] = field(default_factory=dict)
    older: dict[str, tuple[str, int]] = field(default_factory=dict)


class Router:
    """Decides by the rollout it read last, and reads it again in the background.

    `read` returns the open rollout, or raises. Close the router, or use it in a `with` statement.
    In a forked child, such as a worker of gunicorn with `preload_app`, the first decision reads the
    rollout and starts the background thread anew; `reconnect` lets go of connections that are the
    parent's, without closing them.
    """

    def __init__(
        self,
        read: Callable[[], Rollout],
        key: HashingKey,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        close: Callable[[], None] = lambda: None,
        reconnect: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self._key, self._close, self._reconnect = read, key, close, reconnect
        self._refresh_seconds, self._stale_seconds = refresh_seconds, stale_seconds
        self._is_forked, self._resuming = False, threading.Lock()
        try:
            self._refresh()
        except (CanaryError, DataError):
            close()
            raise
        self._day = _Day(0, 0)
        self._repeater = self._reading()
        tell_of_forks(self)

    @classmethod
    def from_store(cls, url: str, *, key: HashingKey | None = None, **more: Any) -> Self:
        """A router that reads the operational database.

        Raises:
            DataError: the database does not answer or has no tables of this version.
            CanaryError: nothing is live yet.
            PrivacyError: no hashing key was given, and the environment holds none.
        """
        from reactune.store.database import open_store, reading
        from reactune.store.queries import live_rollout

        engine = open_store(url)

        def read() -> Rollout:
            with reading(engine) as connection:
                return live_rollout(connection)

        forget = partial(engine.dispose, close=False)
        return cls(read, key or _key(), close=engine.dispose, reconnect=forget, **more)

    @classmethod
    def from_service(
        cls, url: str, *, api_key: str = "", key: HashingKey | None = None, **more: Any
    ) -> Self:
        """A router that reads `GET /v1/rollouts/current` of a service, with a key of any scope.

        `key` hashes user ids: it must be the service's own, or the decisions differ.

        Raises:
            DataError: no such URL or key can be sent, the service does not answer, nothing is live
                there, or the key is refused.
            PrivacyError: no hashing key was given, and the environment holds none.
        """
        import httpx

        from reactune.client.http import connection

        place = connection(url, api_key, HTTP_SECONDS)
        client = httpx.Client(**place)

        def reconnect() -> None:
            nonlocal client
            client = httpx.Client(**place)

        def close() -> None:
            client.close()

        def read() -> Rollout:
            try:
                return rollout_of(client.get("/v1/rollouts/current").raise_for_status().json())
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{url}: the rollout cannot be read ({type(error).__name__}); check that "
                    "`reactune serve` runs there, that a champion is live, and the API key"
                ) from error

        return cls(read, key or _key(), close=close, reconnect=reconnect, **more)

    def decide(self, user_id: str, *, tip_id: str = "", at: datetime | None = None) -> Decision:
        """The version that answers this user now, or at `at`; no I/O, no lock.

        The service decides the same for the same unit. The first decision after a fork waits for
        the rollout.

        Raises:
            DataError: the rollout's unit is `tip`, and no tip id was given.
        """
        if self._is_forked:
            self._resume()
        plan = self._plan
        rollout = plan.rollout
        if rollout.unit == "tip" and not tip_id:
            raise DataError("each tip is routed by itself ([canary] unit); give decide() a tip_id")
        if at is None and rollout.unit == "user_day":
            unit, bucket = self._unit_today(plan, user_id)
        else:
            hashed = user_key(self._key, id_of_somebody(user_id))
            at = at or datetime.now(UTC)
            unit = unit_key(rollout.unit, tip_id=tip_id, user_key=hashed, at=at)
            bucket = bucket_after(plan.salt_hash, unit)
        if time.monotonic() - plan.read_at > self._stale_seconds:
            return Decision("champion", rollout.champion, None, unit, 1.0)
        arm: Arm = "champion"
        version = rollout.champion
        if rollout.challenger is not None and bucket < plan.buckets:
            arm, version = "challenger", rollout.challenger
        return Decision(arm, version, rollout.rollout_id, unit, plan.propensities[arm])

    def close(self) -> None:
        """Stop reading the rollout."""
        if self._is_forked:
            self._reconnect()
        self._repeater.close()
        self._close()

    def after_fork(self) -> None:
        """In a child: its threads are gone, and the connections are the parent's."""
        self._is_forked, self._resuming = True, threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _unit_today(self, plan: _Plan, user_id: str) -> tuple[str, int]:
        """Unit and bucket of a user on this UTC day, from the cache if the user was seen today."""
        date = int(time.time() // 86_400)
        day = self._day
        if day.date != date or day.salt_hash != plan.salt_hash:
            prefix = day_start(datetime.fromtimestamp(date * 86_400, UTC))
            prefix_hash = fnv1a32(prefix, start=plan.salt_hash)
            day = self._day = _Day(date, plan.salt_hash, prefix, prefix_hash)
        elif len(day.recent) >= CACHED_USERS:
            day = self._day = replace(day, recent={}, older=day.recent)
        unit = day.recent.get(user_id)
        if unit is None:
            unit = day.older.get(user_id)
            if unit is None:
                short = short_key(user_key(self._key, id_of_somebody(user_id)))
                unit = (day.prefix + short, bucket_after(day.prefix_hash, short))
            day.recent[user_id] = unit
        return unit

    def _resume(self) -> None:
        """Read on in a forked child; the plan of before stays where there is no answer now."""
        with self._resuming:
            if not self._is_forked:
                return
            self._reconnect()
            with suppress(CanaryError, DataError):
                self._refresh()
            self._repeater = self._reading()
            self._is_forked = False

    def _reading(self) -> Repeater:
        return Repeater(self._refresh, seconds=self._refresh_seconds, name="router")

    def _refresh(self) -> None:
        self._plan = _plan(self._read())


def rollout_of(answer: dict[str, Any]) -> Rollout:
    """The rollout of an answer of `GET /v1/rollouts/current`; unknown fields are ignored.

    Raises:
        KeyError, TypeError, ValueError: the answer holds no rollout.
    """
    times = {name: datetime.fromisoformat(answer[name]) for name in ("opened_at", "share_since")}
    known = {each.name for each in fields(Rollout)}
    values = {name: value for name, value in answer.items() if name in known}
    rollout = Rollout(**{**values, **times})
    if not 0 <= rollout.share <= 1:
        raise ValueError(f"share = {rollout.share}")
    return rollout


def _plan(rollout: Rollout) -> _Plan:
    read_at = time.monotonic()
    share = 0.0 if rollout.challenger is None else rollout.share
    chances: dict[Arm, float] = {arm: propensity(arm, share) for arm in ("champion", "challenger")}
    return _Plan(rollout, fnv1a32(rollout.salt), challenger_buckets(share), chances, read_at)


def _key() -> HashingKey:
    return load_hashing_key(PrivacyConfig(), os.environ)
