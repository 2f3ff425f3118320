"""Which model answers, decided in the app's own process: microseconds, no request, no lock.

The rollout is read in the background, from the database or from our service; the rule is that of
`canary/routing.py`, so that app and service agree on every unit.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
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
from reactune.records import Arm, Rollout

REFRESH_SECONDS = 0.4  # so that a stop is seen everywhere in under a second
STALE_SECONDS = 60.0
HTTP_SECONDS = 5.0
KNOWN = 20_000  # users of a day whose unit and bucket are kept, at least

log = logging.getLogger(__name__)


class Decision(NamedTuple):
    """Which version answers one tip, and what its exposure must say.

    `rollout_id` is None where the rollout could not be read for too long: the champion answers
    everybody then, and these tips belong to no comparison.
    """

    arm: Arm
    model_version: int
    rollout_id: str | None
    unit_key: str
    propensity: float

    def exposure(self) -> dict[str, Any]:
        """The columns of `tip_scores` that record this decision, as `ingest` takes them."""
        return self._asdict()


@dataclass(frozen=True)
class _Plan:
    """A rollout, prepared: what a decision needs, computed once."""

    rollout: Rollout
    salt_hash: int
    buckets: int
    propensities: dict[Arm, float]
    read_at: float


@dataclass(frozen=True)
class _Known:
    """Units and buckets of one day and salt, of users who came already; `before` came earlier.

    All units of a day begin alike: with `start`, whose hash after the salt is `start_hash`.
    """

    day: int
    salt_hash: int
    start: str = ""
    start_hash: int = 0
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    before: dict[str, tuple[str, int]] = field(default_factory=dict)


class Router:
    """Decides by the rollout it read last; a thread of its own reads it anew.

    `read` gives what is live, or raises. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        read: Callable[[], Rollout],
        key: HashingKey,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._read, self._key, self._close = read, key, close
        self._refresh_seconds, self._stale_seconds = refresh_seconds, stale_seconds
        try:
            self._plan = _plan(read())
        except (CanaryError, DataError):
            close()
            raise
        self._known = _Known(0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True, name="reactune-route")
        self._thread.start()

    @classmethod
    def from_store(cls, url: str, *, key: HashingKey | None = None, **more: Any) -> Self:
        """A router that reads the operational database.

        Raises:
            DataError: the database does not answer or has no tables of this version.
            CanaryError: nothing is live yet.
            PrivacyError: no key was given, and the environment holds none.
        """
        from reactune.store.database import open_store, reading
        from reactune.store.queries import live_rollout

        engine = open_store(url)

        def read() -> Rollout:
            with reading(engine) as connection:
                return live_rollout(connection)

        return cls(read, key or _key(), close=engine.dispose, **more)

    @classmethod
    def from_service(
        cls, url: str, *, api_key: str = "", key: HashingKey | None = None, **more: Any
    ) -> Self:
        """A router that asks our service at `url` what is live, with a key of scope `app`.

        Raises:
            DataError: the service does not answer, or with something else.
            PrivacyError: no key for user ids was given, and the environment holds none.
        """
        import httpx

        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        client = httpx.Client(base_url=url, headers=headers, timeout=HTTP_SECONDS)

        def read() -> Rollout:
            try:
                answer = client.get("/v1/rollouts/current").raise_for_status().json()
                return rollout_of(answer)
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{url}: what is live cannot be read ({type(error).__name__}); is "
                    "`reactune serve` running there, and the key one of scope app?"
                ) from error

        return cls(read, key or _key(), close=client.close, **more)

    def decide(self, user_id: str, *, tip_id: str = "", at: datetime | None = None) -> Decision:
        """The version that answers this user now; under unit `tip`, give the tip's id.

        Reads nothing and waits for nobody. The same unit gets the same arm as from the service.

        Raises:
            DataError: tips are routed one by one, and no tip id was given.
        """
        plan = self._plan
        rollout = plan.rollout
        if rollout.unit == "tip" and not tip_id:
            raise DataError("tips are routed one by one ([canary] unit); give decide() a tip_id")
        if at is None and rollout.unit == "user_day":
            unit, place = self._place_today(plan, user_id)
        else:
            person = user_key(self._key, user_id)
            at = at or datetime.now(UTC)
            unit = unit_key(rollout.unit, tip_id=tip_id, user_key=person, at=at)
            place = bucket_after(plan.salt_hash, unit)
        if time.monotonic() - plan.read_at > self._stale_seconds:
            return Decision("champion", rollout.champion, None, unit, 1.0)
        arm: Arm = "champion"
        version = rollout.champion
        if rollout.challenger is not None and place < plan.buckets:
            arm, version = "challenger", rollout.challenger
        return Decision(arm, version, rollout.rollout_id, unit, plan.propensities[arm])

    @property
    def age_seconds(self) -> float:
        """How long ago the rollout was read."""
        return time.monotonic() - self._plan.read_at

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(timeout=HTTP_SECONDS)
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _place_today(self, plan: _Plan, user_id: str) -> tuple[str, int]:
        """Unit and bucket of a user on this UTC day; whoever comes again is looked up."""
        day = int(time.time() // 86_400)
        known = self._known
        if known.day != day or known.salt_hash != plan.salt_hash:
            start = day_start(datetime.fromtimestamp(day * 86_400, UTC))
            start_hash = fnv1a32(start, start=plan.salt_hash)
            known = self._known = _Known(day, plan.salt_hash, start, start_hash)
        elif len(known.places) >= KNOWN:
            # Whoever comes again soon is still known.
            known = self._known = replace(known, places={}, before=known.places)
        place = known.places.get(user_id)
        if place is None:
            place = known.before.get(user_id)
            if place is None:
                person = short_key(user_key(self._key, user_id))
                place = (known.start + person, bucket_after(known.start_hash, person))
            known.places[user_id] = place
        return place

    def _keep_fresh(self) -> None:
        said = ""
        while not self._stop.wait(self._refresh_seconds):
            try:
                self._plan, said = _plan(self._read()), ""
            except (CanaryError, DataError) as error:
                if said != str(error):
                    said = str(error)
                    log.warning("%s", said)


def rollout_of(answer: dict[str, Any]) -> Rollout:
    """The rollout as `GET /v1/rollouts/current` tells it.

    Raises:
        KeyError, TypeError, ValueError: it is none.
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
