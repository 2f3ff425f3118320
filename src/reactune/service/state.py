"""What the service holds open, and the models that answer now, kept in step with the rollout.

The rollout's row in the database is the truth. A change of it takes effect within
`RolloutWatcher.max_age_seconds`, also while a model is being loaded.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import sqlalchemy as sa

from reactune.config.sections import LabelConfig, ServeConfig
from reactune.errors import AwayError, CanaryError, ConfigError, DataError, ReleaseError
from reactune.model.prompt import Chat, render
from reactune.privacy.hashing import HashingKey, HashingKeys
from reactune.process import Repeater
from reactune.records import Exposure, ModelVersion, Rollout, Runtime, Sampling
from reactune.runs.remote import LOCAL, RunRoot, as_local, fetch_release
from reactune.service.events import Recorder, delete_expired_reactions, match_early_reactions
from reactune.service.rewards import Rewards
from reactune.store.database import writing
from reactune.store.queries import all_model_versions, live_rollout

MAX_AGE_SECONDS = 0.5  # how long a change of the rollout may go unnoticed
FIRST_PUBLICATION_SECONDS = 30.0  # how long a request waits for it
RETRY_SECONDS = 5.0  # between two tries to publish the same version
MATCH_SECONDS = 5.0  # between two passes over the kept reactions

NONE_KNOWN: Mapping[int, ModelVersion] = {}

log = logging.getLogger(__name__)
_utc_now = partial(datetime.now, UTC)


@dataclass(frozen=True)
class LiveModels:
    """The models that answer now. Without a challenger, `share` is 0.

    `rollout_id` is None while a new challenger is being published: the champion answers everybody,
    and these tips belong to no comparison.
    """

    rollout: Rollout
    rollout_id: str | None
    share: float
    champion: ModelVersion
    challenger: ModelVersion | None


def _champion_alone(rollout: Rollout, champion: ModelVersion) -> LiveModels:
    return LiveModels(rollout, None, 0.0, champion, None)


class RolloutWatcher:
    """Reads the open rollout at most every `max_age_seconds`, and publishes the models it names.

    Safe for many threads: while one of them reads or publishes, the others go on with the models
    read before; in the background of `running`, requests do neither.
    """

    def __init__(
        self,
        engine: sa.Engine,
        runtime: Runtime,
        *,
        root: RunRoot = LOCAL,
        max_age_seconds: float = MAX_AGE_SECONDS,
        grace_seconds: float = 60.0,
        rewards: Rewards | None = None,
    ) -> None:
        self.max_age_seconds = max_age_seconds
        self._engine = engine
        self._runtime = runtime
        self._rewards = rewards or Rewards()
        self._root = root
        self._grace_seconds = grace_seconds
        self._lock = threading.Lock()
        self._latest: LiveModels | None = None
        self._read_at = 0.0
        self._models: Mapping[int, ModelVersion] = {}
        self._published: dict[int, ModelVersion] = {}
        self._failed: set[int] = set()
        self._tried_at: dict[int, float] = {}
        self._unused_since: dict[int, float] = {}

    @property
    def latest(self) -> LiveModels | None:
        """The models read last, however long ago; None before the first reading."""
        return self._latest

    @property
    def fresh(self) -> LiveModels | None:
        """The models read last, if that is not longer ago than `max_age_seconds`."""
        return self._latest if self._is_fresh() else None

    def current(self) -> LiveModels:
        """The live models; read again if the last reading is older than `max_age_seconds`.

        While the database does not answer, the champion of the last reading answers everybody,
        outside of any comparison: a rollback could not be noticed.

        Raises:
            CanaryError: nothing is live yet.
            DataError: the database does not answer, and never did.
        """
        try:
            return self._current()
        except DataError as error:
            latest = self._latest
            if latest is None:
                raise
            log.error("%s; the champion answers alone", error)
            return _champion_alone(latest.rollout, latest.champion)

    def refresh(self) -> LiveModels:
        """The live models, read from the database now; returns when they are published.

        A version that cannot be published is logged and tried again later. Until then it counts
        as a model that fails.

        Raises:
            CanaryError: nothing is live yet.
            DataError: the database does not answer.
        """
        with self._lock:
            return self._refresh()

    def report_failure(self, model: ModelVersion) -> None:
        """The model failed to answer: publish it again at one of the next readings."""
        self._failed.add(model.version)

    def drop_withdrawn(self) -> None:
        """Remove the challenger if the rollout has ended; waits for no publication.

        Raises:
            CanaryError, DataError: as `refresh`.
        """
        before = self._latest
        if before is None or before.challenger is None:
            return
        read_at = time.monotonic()
        rollout, models = self._read()
        if rollout.rollout_id != before.rollout.rollout_id and self._latest is before:
            self._set(_champion_alone(rollout, models[rollout.champion]), read_at)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Refresh in the background until the block ends.

        A second thread drops withdrawn challengers, because publishing may take long.
        """
        seconds = self.max_age_seconds / 2
        with (
            Repeater(self.refresh, seconds=seconds, name="rollout watcher"),
            Repeater(self.drop_withdrawn, seconds=seconds, name="withdrawal watcher"),
        ):
            yield

    def _current(self) -> LiveModels:
        latest = self._latest
        if latest is not None and self._is_fresh():
            return latest
        # Only before the first publication there is nothing to go on with.
        if not self._lock.acquire(timeout=FIRST_PUBLICATION_SECONDS if latest is None else 0):
            if latest is None:
                raise CanaryError("the champion is still being loaded; try again in a moment")
            return latest
        try:
            if self._latest is not None and self._is_fresh():
                return self._latest
            return self._refresh()
        finally:
            self._lock.release()

    def _refresh(self) -> LiveModels:
        while True:
            # Taken before reading and publishing, so that a slow publication hides no rollback.
            read_at = time.monotonic()
            rollout, models = self._read()
            champion = models[rollout.champion]
            challenger = None if rollout.challenger is None else models[rollout.challenger]
            self._publish(champion)
            if challenger is not None:
                if self._latest is None or self._latest.challenger != challenger:
                    self._set(_champion_alone(rollout, champion), read_at)
                self._publish(challenger)
            if time.monotonic() - read_at < self.max_age_seconds / 2:
                break
            # Publishing took long: the rollout may have ended meanwhile.
            if self._read()[0] == rollout:
                break
        share = 0.0 if challenger is None else rollout.share
        live = LiveModels(rollout, rollout.rollout_id, share, champion, challenger)
        self._set(live, read_at)
        self._retire_others(live)
        return live

    def _read(self) -> tuple[Rollout, Mapping[int, ModelVersion]]:
        rollout, self._models = read_live(self._engine, root=self._root, known=self._models)
        return rollout, self._models

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < self.max_age_seconds

    def _set(self, live: LiveModels, read_at: float) -> None:
        self._latest, self._read_at = live, read_at

    def _publish(self, model: ModelVersion) -> None:
        version, now = model.version, time.monotonic()
        is_answering = self._published.get(version) == model and version not in self._failed
        if is_answering or now - self._tried_at.get(version, -RETRY_SECONDS) < RETRY_SECONDS:
            return
        self._tried_at[version] = now
        self._failed.discard(version)
        try:
            fetch_release(self._root, model)
            self._runtime.publish(model)
            self._rewards.open(model)
        except (ConfigError, DataError, ReleaseError, OSError) as error:
            self._published.pop(version, None)
            log.error("version %d cannot be published: %s", version, error)
            return
        self._published[version] = model

    def _retire_others(self, live: LiveModels) -> None:
        # Requests under way at the change may still need them: hence the grace period.
        now = time.monotonic()
        used = {live.rollout.champion, live.rollout.challenger}
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
                self._rewards.close(model)
                self._published.pop(version)


def read_live(
    engine: sa.Engine, *, root: RunRoot = LOCAL, known: Mapping[int, ModelVersion] = NONE_KNOWN
) -> tuple[Rollout, Mapping[int, ModelVersion]]:
    """The open rollout, and all registered versions by number, with their files below `root`.

    Versions never change: `known` are those that were read before, and are read again only where
    the rollout names another.

    Raises:
        CanaryError: nothing is live yet.
        DataError: the database does not answer.
    """
    try:
        with engine.connect() as connection:
            rollout = live_rollout(connection)
            if {rollout.champion, rollout.challenger} - {None} <= known.keys():
                return rollout, known
            models = [as_local(root, model) for model in all_model_versions(connection)]
    except sa.exc.SQLAlchemyError as error:
        raise AwayError(
            f"what is live cannot be read ({type(error).__name__}); check the database"
        ) from error
    return rollout, {model.version: model for model in models}


@dataclass(frozen=True)
class Service:
    """Opened by `open_service`, ended by `close_service`.

    `draw(n)` returns n random bits, for tip ids and sampling seeds.
    `listeners` are called with every exposure that was recorded. `shadow_tasks` are the
    challenger's answers under way in the shadow phase, `chats` each version's own template and
    tokenizer by its name.
    """

    engine: sa.Engine
    chat: Chat
    runtime: Runtime
    hashing_keys: HashingKeys
    settings: ServeConfig
    labels: LabelConfig
    clock: Callable[[], datetime]
    draw: Callable[[int], int]
    watcher: RolloutWatcher
    recorder: Recorder
    rewards: Rewards
    listeners: list[Callable[[Exposure], None]] = field(default_factory=list)
    shadow_tasks: set[asyncio.Task[None]] = field(default_factory=set)
    chats: dict[str, Chat] = field(default_factory=dict)


def open_service(
    engine: sa.Engine,
    *,
    chat: Chat,
    runtime: Runtime,
    key: HashingKey,
    old_keys: Sequence[HashingKey] = (),
    settings: ServeConfig,
    labels: LabelConfig | None = None,
    root: RunRoot = LOCAL,
    clock: Callable[[], datetime] = _utc_now,
    draw: Callable[[int], int] = secrets.randbits,
) -> Service:
    """A service over an open store and a connected model server; nothing is published yet."""
    hashing_keys = HashingKeys(key, tuple(old_keys))
    grace_seconds = 60.0 + 2 * settings.timeout_seconds
    rewards = Rewards(settings.threads)
    return Service(
        engine=engine,
        chat=chat,
        runtime=runtime,
        hashing_keys=hashing_keys,
        settings=settings,
        labels=labels or LabelConfig(),
        clock=clock,
        draw=draw,
        watcher=RolloutWatcher(
            engine, runtime, root=root, grace_seconds=grace_seconds, rewards=rewards
        ),
        recorder=Recorder(engine, hashing_keys.all),
        rewards=rewards,
    )


def close_service(service: Service) -> None:
    """Write what is waiting, and stop the model server where it is ours."""
    service.recorder.close()
    service.runtime.close()


def check_ready(service: Service) -> None:
    """Return if the database answers and the champion writes a token.

    Raises:
        CanaryError, DataError, ReleaseError: nothing is live, or one of the two does not answer.
    """
    read_live(service.engine)
    champion = service.watcher.current().champion
    prompt = render(service.chat, "Ready?")
    service.runtime.generate(champion, prompt, Sampling(0.0, 1.0, max_tokens=1, seed=0))


@contextmanager
def background_work(service: Service) -> Iterator[None]:
    """Until the block ends: watch the rollout, and match kept reactions with tips from elsewhere.

    Tips come from elsewhere by `ingest`, or from another worker.
    """
    match = partial(_match_early_reactions, service)
    with (
        service.watcher.running(),
        Repeater(match, seconds=MATCH_SECONDS, name="early reactions"),
    ):
        yield


def _match_early_reactions(service: Service) -> None:
    with writing(service.engine) as connection:
        matched = match_early_reactions(connection)
        delete_expired_reactions(connection, now=service.clock())
    if matched:
        log.info("%d early reactions were matched with their tips", matched)
