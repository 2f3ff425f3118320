"""What is live, as this process sees it: the open rollout, with its models published.

The row in the database is the truth; who gets which model, and what they are told, is `serving.py`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa

from reactune.errors import AwayError, CanaryError, ConfigError, DataError, ReleaseError
from reactune.records import ModelVersion, Rollout, Runtime
from reactune.runs.remote import LOCAL, RunRoot, as_local, fetch_release
from reactune.store.queries import all_model_versions, live_rollout

MAX_AGE_SECONDS = 0.5  # how long a change of the row may go unseen
FIRST_SECONDS = 30.0  # how long a request waits for the very first publication
RETRY_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lineup:
    """The models that answer now. Without a challenger, `share` is 0.

    `rollout_id` is None while a new challenger is being published: the champion answers everybody,
    and these tips belong to no comparison.
    """

    rollout: Rollout
    rollout_id: str | None
    share: float
    champion: ModelVersion
    challenger: ModelVersion | None


class LiveModels:
    """Reads the open rollout at most every `max_age_seconds`, and publishes what it names.

    Safe for many threads. While one of them reads or publishes, the others go on with what was
    live before; `watching` keeps both out of the requests' way. A challenger that was withdrawn
    is gone within `max_age_seconds`, also while a publication takes long.
    """

    def __init__(
        self,
        engine: sa.Engine,
        runtime: Runtime,
        *,
        root: RunRoot = LOCAL,
        max_age_seconds: float = MAX_AGE_SECONDS,
        grace_seconds: float = 60.0,
    ) -> None:
        self.max_age_seconds = max_age_seconds
        self._engine = engine
        self._runtime = runtime
        self._root = root
        self._grace_seconds = grace_seconds
        self._lock = threading.Lock()
        self._lineup: Lineup | None = None
        self._read_at = 0.0
        self._published: dict[int, ModelVersion] = {}
        self._doubted: set[int] = set()
        self._tried_at: dict[int, float] = {}
        self._unused_since: dict[int, float] = {}

    @property
    def latest(self) -> Lineup | None:
        """What was read last, however long ago; None before the first reading."""
        return self._lineup

    @property
    def fresh(self) -> Lineup | None:
        """What was read last, if that is not longer ago than `max_age_seconds`."""
        return self._lineup if self._is_fresh() else None

    def current(self) -> Lineup:
        """What is live; read again if the last reading is older than `max_age_seconds`.

        While the database does not answer, the champion of the last reading goes on alone, outside
        of any comparison: nobody could tell us to stop.

        Raises:
            CanaryError: nothing is live yet.
            DataError: the database does not answer, and never did.
        """
        try:
            return self._current()
        except DataError as error:
            lineup = self._lineup
            if lineup is None:
                raise
            log.error("%s; the champion goes on alone", error)
            return Lineup(lineup.rollout, None, 0.0, lineup.champion, None)

    def _current(self) -> Lineup:
        lineup = self._lineup
        if lineup is not None and self._is_fresh():
            return lineup
        # Only the first requests have nothing to go on with, and wait.
        if not self._lock.acquire(timeout=FIRST_SECONDS if lineup is None else 0):
            if lineup is None:
                raise CanaryError("the champion is still being loaded; try again in a moment")
            return lineup
        try:
            if self._lineup is not None and self._is_fresh():
                return self._lineup
            return self._refresh()
        finally:
            self._lock.release()

    def refresh(self) -> Lineup:
        """What is live, read from the database now; returns when its models are published.

        A version that cannot be published is logged and tried again later: what it should have
        written is answered as for any model that fails.

        Raises:
            CanaryError: nothing is live yet.
            DataError: the database does not answer.
        """
        with self._lock:
            return self._refresh()

    def doubt(self, model: ModelVersion) -> None:
        """The model failed to answer: publish it again with one of the next readings."""
        self._doubted.add(model.version)

    def withdraw(self) -> None:
        """Take the challenger out if the row names it no longer; waits for no publication.

        Raises:
            CanaryError, DataError: as `refresh`.
        """
        before = self._lineup
        if before is None or before.challenger is None:
            return
        read_at = time.monotonic()
        rollout, models = read_live(self._engine, root=self._root)
        if rollout.rollout_id != before.rollout.rollout_id and self._lineup is before:
            champion = models[rollout.champion]
            self._adopt(Lineup(rollout, None, 0.0, champion, None), read_at)

    def _refresh(self) -> Lineup:
        while True:
            # Taken before reading and publishing, so that a slow publication hides no rollback.
            read_at = time.monotonic()
            rollout, models = read_live(self._engine, root=self._root)
            champion = models[rollout.champion]
            challenger = None if rollout.challenger is None else models[rollout.challenger]
            self._publish(champion)
            if challenger is not None:
                if self._lineup is None or self._lineup.challenger != challenger:
                    self._adopt(Lineup(rollout, None, 0.0, champion, None), read_at)
                self._publish(challenger)
            if time.monotonic() - read_at < self.max_age_seconds / 2:
                break  # what was read so long ago may have been ended since
            if read_live(self._engine, root=self._root)[0] == rollout:
                break
        share = 0.0 if challenger is None else rollout.share
        lineup = Lineup(rollout, rollout.rollout_id, share, champion, challenger)
        self._adopt(lineup, read_at)
        self._retire_others(lineup)
        return lineup

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < self.max_age_seconds

    def _adopt(self, lineup: Lineup, read_at: float) -> None:
        self._lineup, self._read_at = lineup, read_at

    def _publish(self, model: ModelVersion) -> None:
        version, now = model.version, time.monotonic()
        is_well = self._published.get(version) == model and version not in self._doubted
        if is_well or now - self._tried_at.get(version, -RETRY_SECONDS) < RETRY_SECONDS:
            return
        self._tried_at[version] = now
        self._doubted.discard(version)
        try:
            fetch_release(self._root, model)
            self._runtime.publish(model)
        except (ConfigError, DataError, ReleaseError, OSError) as error:
            self._published.pop(version, None)
            log.error("version %d cannot be published: %s", version, error)
            return
        self._published[version] = model

    def _retire_others(self, lineup: Lineup) -> None:
        # Requests that were under way at the change may still ask for them: hence the grace.
        now = time.monotonic()
        used = {lineup.rollout.champion, lineup.rollout.challenger}
        for version, model in tuple(self._published.items()):
            if version in used:
                self._unused_since.pop(version, None)
            elif now - self._unused_since.setdefault(version, now) >= self._grace_seconds:
                self._unused_since.pop(version)
                try:
                    self._runtime.retire(model)
                except ReleaseError as error:
                    log.warning("version %d cannot be retired: %s", version, error)
                    continue
                self._published.pop(version)


def read_live(
    engine: sa.Engine, *, root: RunRoot = LOCAL
) -> tuple[Rollout, dict[int, ModelVersion]]:
    """The open rollout, and all registered versions by number, with their files below `root`.

    Raises:
        CanaryError: nothing is live yet.
        DataError: the database does not answer.
    """
    try:
        with engine.connect() as connection:
            rollout = live_rollout(connection)
            found = [as_local(root, model) for model in all_model_versions(connection)]
    except sa.exc.SQLAlchemyError as error:
        raise AwayError(
            f"what is live cannot be read ({type(error).__name__}); see to the database"
        ) from error
    return rollout, {model.version: model for model in found}


@contextmanager
def watching(live: LiveModels) -> Iterator[None]:
    """Keep `live` fresh from threads of its own, so that requests neither read nor publish.

    One reads and publishes, which may take long; the other only takes out what was withdrawn.
    """
    stop = threading.Event()
    threads = [
        threading.Thread(target=_watch, args=(live, each, stop), daemon=True, name="reactune-live")
        for each in (live.refresh, live.withdraw)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=5.0)


def _watch(live: LiveModels, look: Callable[[], object], stop: threading.Event) -> None:
    said = ""
    while not stop.is_set():
        try:
            look()
            said = ""
        except (CanaryError, DataError) as error:
            if str(error) != said:
                said = str(error)
                log.error("%s", said)
        stop.wait(live.max_age_seconds / 2)
