"""The demo: an audience reacts, the loop goes round, reactions decide, a page tells how it was.

Uses the same service, pipeline and review as an app would; only the clock is the audience's own.
"""

import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tqdm import tqdm

from reactune import live, pipeline, review, serving
from reactune.config import CONFIG_NAME, Config, load
from reactune.data.engines import open_scores
from reactune.data.scores import daily_counts
from reactune.database import create_store
from reactune.demo.audience import Audience, Visit, load_audience
from reactune.demo.pool import PooledRuntime, read_pool
from reactune.demo.settings import demo_config
from reactune.errors import CanaryError
from reactune.model import base_model
from reactune.privacy import load_key
from reactune.prompt import load_chat
from reactune.records import Manifest, Rollout
from reactune.release.runtimes import connect

TOWN = "reactune.demo.audience:Town"
SLACK = 1.12  # labels wanted before a training, over its thresholds: duplicates take some
MAX_HISTORY_DAYS = 60
MAX_CANARY_DAYS = 40
Say = Callable[[str], None]


@dataclass
class Clock:
    """The audience's time; each thread that serves a visit is at that visit's moment."""

    moments: threading.local = field(default_factory=threading.local)

    def now(self) -> datetime:
        """The moment of the visit that this thread serves."""
        moment: datetime = self.moments.now
        return moment


@dataclass(frozen=True)
class Stage:
    """What the demo plays on: settings, people, and the service that answers them."""

    config: Config
    audience: Audience
    service: serving.Service
    clock: Clock
    say: Say


@dataclass(frozen=True)
class Served:
    """A visit and the tip it was shown."""

    visit: Visit
    tip_id: str
    text: str


@dataclass
class Cycle:
    """What one round of the loop left behind, for the report."""

    manifest: Manifest | None = None
    rollout: Rollout | None = None
    verdict: str = ""
    canary: list[Served] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(
    folder: Path, *, seed: int, cycles: int, tastes: str, audience: str | None, say: Say
) -> list[Cycle]:
    """Go round the loop `cycles` times before an audience; ends with `report.html` in the folder.

    Raises:
        ReactuneError: whatever a stage refuses; ConfigError for an audience that cannot be made.
    """
    config = set_up(folder, seed=seed)
    people = load_audience(audience or TOWN, seed=seed, tastes=tastes)
    live.ensure_champion(config)
    rounds: list[Cycle] = []
    day = 0
    with serving_people(config, people, seed=seed, say=say) as stage:
        for number in range(1, cycles + 1):
            say(f"cycle {number} of {cycles}")
            cycle, day = go_round(stage, day)
            rounds.append(cycle)
    return rounds


def go_round(stage: Stage, day: int) -> tuple[Cycle, int]:
    """People react until there is enough to learn from; train; try; decide."""
    cycle = Cycle()
    with timed(cycle, "people react to the champion"):
        day, cycle.manifest = until_trained(stage, day, cycle)
    if cycle.manifest.stage != "deploy":
        cycle.verdict = cycle.manifest.summary
        return cycle, day
    with timed(cycle, "people meet the challenger"):
        day = until_decided(stage, day, cycle)
    return cycle, day


def until_trained(stage: Stage, day: int, cycle: Cycle) -> tuple[int, Manifest]:
    """Let days pass until a run does not wait any more; the next day, and how the run ended."""
    for today in range(day, day + MAX_HISTORY_DAYS):
        live_through(stage, today)
        if is_worth_a_run(stage.config):
            manifest = pipeline.run(stage.config, say=stage.say)
            if manifest.outcome != "waiting":
                stage.service.live.refresh()
                return today + 1, manifest
    raise CanaryError(f"{MAX_HISTORY_DAYS} days brought too few reactions to learn from")


def until_decided(stage: Stage, day: int, cycle: Cycle) -> int:
    """Let days pass, with a review each night, until nobody is on trial; the next day."""
    cycle.rollout = live.current(stage.config)
    for today in range(day, day + MAX_CANARY_DAYS):
        cycle.canary += live_through(stage, today)
        found = review.review(stage.config, now=midnight_after(stage, today))
        stage.say(f"day {today + 1:3}   {found.line}")
        stage.service.live.refresh()
        if found.rollout.challenger is None:
            cycle.verdict = found.line
            return today + 1
    cycle.verdict = f"undecided after {MAX_CANARY_DAYS} days"
    return day + MAX_CANARY_DAYS


def live_through(stage: Stage, day: int) -> list[Served]:
    """One day: everybody who comes is shown a tip and reacts. Tips of one batch are written
    side by side, reactions follow in order, because people remember."""
    visits = list(stage.audience.visits(day))
    size = stage.config.serve.parallel
    served: list[Served] = []
    with (
        ThreadPoolExecutor(size) as threads,
        tqdm(total=len(visits), desc=f"day {day + 1}", unit="tip", leave=False) as bar,
    ):
        for start in range(0, len(visits), size):
            batch = visits[start : start + size]
            for one in threads.map(lambda visit: show(stage, visit), batch):
                served.append(one)
                respond(stage, one)
            bar.update(len(batch))
    return served


def show(stage: Stage, visit: Visit) -> Served:
    """Ask the service for a tip, as an app does."""
    stage.clock.moments.now = visit.moment
    tip = serving.request_tip(
        stage.service, user_id=visit.user_id, kind=visit.kind, context=visit.context
    )
    serving.tip_shown(stage.service, tip.tip_id)
    return Served(visit, tip.tip_id, tip.content)


def respond(stage: Stage, served: Served) -> None:
    """Let the visitor react, and tell the service."""
    response = stage.audience.react(served.visit, served.text)
    if response.reaction is None or response.dwell_ms is None:
        return
    stage.clock.moments.now = served.visit.moment + timedelta(milliseconds=response.dwell_ms)
    serving.react(stage.service, served.tip_id, response.reaction, response.dwell_ms)


def is_worth_a_run(config: Config) -> bool:
    """Whether there are labels enough that a training would probably not wait."""
    with open_scores(config.source, store_url=config.store_url, folder=config.folder) as table:
        days = daily_counts(table, config.labels)
    positives = sum(each.positives for each in days)
    negatives = sum(each.negatives for each in days)
    wanted = config.dataset
    return positives >= SLACK * wanted.min_positives and negatives >= SLACK * wanted.min_negatives


def midnight_after(stage: Stage, day: int) -> datetime:
    """The end of a day, when the windows of all its tips have closed."""
    last = max(visit.moment for visit in stage.audience.visits(day))
    start = datetime.combine(last.date(), datetime.min.time(), UTC)
    return start + timedelta(days=1, seconds=stage.config.canary.window_seconds)


def set_up(folder: Path, *, seed: int) -> Config:
    """Settings, key and database of a demo folder; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG_NAME
    if not file.is_file():
        file.write_text(demo_config(), encoding="utf-8")
    config = load(file, (f"train.seed={seed}", f"dataset.seed={seed}"))
    secret = folder / "key"
    if not secret.is_file():
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32), encoding="utf-8")
    os.environ[config.privacy.key_env] = secret.read_text(encoding="utf-8")
    create_store(config.store_url).dispose()
    return config


@contextmanager
def serving_people(config: Config, people: Audience, *, seed: int, say: Say) -> Iterator[Stage]:
    """The service of an app, on the audience's clock; the base model's tips come from the pool."""
    clock = Clock()
    with live.database(config) as engine:
        service = serving.open_service(
            engine,
            chat=load_chat(base_model(config.model).folder, config.prompt),
            runtime=PooledRuntime(connect(config.serve), read_pool()),
            key=load_key(config.privacy, os.environ),
            settings=config.serve,
            clock=clock.now,
            draw=random.Random(f"{seed} serving").getrandbits,
        )
        try:
            yield Stage(config, people, service, clock, say)
        finally:
            serving.close_service(service)


@contextmanager
def timed(cycle: Cycle, name: str) -> Iterator[None]:
    """Note how long something took."""
    started = time.monotonic()
    yield
    cycle.seconds[name] = time.monotonic() - started
