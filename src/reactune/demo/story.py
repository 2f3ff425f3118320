"""The demo: an audience reacts, the loop goes round, reactions decide, a page tells how it was.

Uses the same service, pipeline and review as an app would; only the clock is the audience's own.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from tqdm import tqdm

from reactune import deployment, pipeline, review
from reactune.config.settings import Config
from reactune.data.labels.scores import daily_counts
from reactune.data.labels.sources import open_scores
from reactune.demo.audience import Audience, Response, Shown, Visit, load_audience
from reactune.demo.cycles import Told, arms_of, tell
from reactune.demo.pool import PooledRuntime, digest_of, read_pool, set_up, unused
from reactune.errors import CanaryError
from reactune.model.files import base_model
from reactune.model.prompt import assemble, load_chat
from reactune.privacy.hashing import load_hashing_key
from reactune.records import STAGES, Rollout
from reactune.release.runtimes import connect
from reactune.runs.folders import all_runs
from reactune.runs.manifest import Manifest
from reactune.runs.remote import run_root
from reactune.service import state, tips
from reactune.store.labels import label_rule

TOWN = "reactune.demo.audience:Town"
SLACK = 1.4  # labels wanted before a training, over its thresholds: duplicates take some
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
    service: state.Service
    runtime: PooledRuntime
    clock: Clock
    say: Say


@dataclass(frozen=True)
class Served:
    """A visit, the tip it was shown, and what came of it."""

    visit: Visit
    tip_id: str
    text: str
    response: Response | None = None


def run_demo(
    folder: Path, *, seed: int, cycles: int, tastes: str, audience: str | None, say: Say
) -> Path:
    """Go round the loop `cycles` times before an audience; the path of the report.

    Raises:
        ReactuneError: whatever a stage cannot do; ConfigError for an audience that cannot be made.
    """
    make_people = partial(load_audience, audience or TOWN, seed=seed, tastes=tastes)
    told: list[Told] = []
    past: list[Served] = []
    day = 0
    with serving_people(folder, make_people(), seed=seed, say=say) as stage:
        for number in range(1, cycles + 1):
            say(f"round {number} of {cycles}")
            one, day = go_round(stage, day, past)
            told.append(one)
        report = tell(stage.config, told, make_people, now=midnight_after(stage, day - 1))
    say(f"report    {report}")
    return report


def play_history(folder: Path, *, seed: int, tastes: str, audience: str | None, say: Say) -> Path:
    """Let an audience react to the base model's tips until a training is worth while; the folder.

    Nothing is trained: that is left to whoever runs the stages.

    Raises:
        ReactuneError: as `run_demo`.
    """
    people = load_audience(audience or TOWN, seed=seed, tastes=tastes)
    with serving_people(folder, people, seed=seed, say=say) as stage:
        day = next(days_worth_a_run(stage, 0, []))
        say(f"reactions of {day + 1} days in {stage.config.folder}")
        return stage.config.folder


def go_round(stage: Stage, day: int, past: list[Served]) -> tuple[Told, int]:
    """People react until there is enough to learn from; train; try; decide. The next day too."""
    started = time.monotonic()
    day, manifest, run = until_trained(stage, day, past)
    trained = time.monotonic()
    canary: list[Served] = []
    rollout, verdict = None, manifest.summary
    if manifest.stage == STAGES[-1]:
        rollout = deployment.current(stage.config)
        day, verdict = until_decided(stage, day, canary)
    trial = time.monotonic() - trained
    before, after = side_by_side(stage, rollout, canary)
    shown = [remembered(stage.config, one) for one in past]
    past += canary
    told = Told(run, rollout, verdict, before, after, shown, trained - started, trial)
    return told, day


def until_trained(stage: Stage, day: int, past: list[Served]) -> tuple[int, Manifest, Path]:
    """Let days pass until a run does not wait; the next day, how the run ended, its folder."""
    days = days_worth_a_run(stage, day, past)
    while True:
        today = next(days)
        manifest = pipeline.run(stage.config, say=stage.say)
        if manifest.outcome != "waiting":
            stage.service.watcher.refresh()
            return today + 1, manifest, all_runs(stage.config.run_root)[-1]


def days_worth_a_run(stage: Stage, day: int, past: list[Served]) -> Iterator[int]:
    """Let days pass, and give each on which there is enough to learn from.

    Raises:
        CanaryError: the last of them has passed.
    """
    for today in range(day, day + MAX_HISTORY_DAYS):
        past += live_through(stage, today)
        if is_worth_a_run(stage.config):
            yield today
    raise CanaryError(f"{MAX_HISTORY_DAYS} days brought too few reactions to learn from")


def until_decided(stage: Stage, day: int, canary: list[Served]) -> tuple[int, str]:
    """Let days pass, with a review each night, until it is decided; the next day, the verdict."""
    stage.service.watcher.refresh()
    for today in range(day, day + MAX_CANARY_DAYS):
        canary += live_through(stage, today)
        found = review.review(stage.config, now=midnight_after(stage, today))
        stage.say(f"day {today + 1:<5} {found.line}")
        stage.service.watcher.refresh()
        if found.rollout.challenger is None:
            return today + 1, found.line
    return day + MAX_CANARY_DAYS, f"undecided after {MAX_CANARY_DAYS} days"


def side_by_side(
    stage: Stage, rollout: Rollout | None, canary: list[Served]
) -> tuple[list[tuple[Visit, str]], list[tuple[Visit, str]]]:
    """The challenger's visits with the base model's tips for them, and with the challenger's own.

    Only where the base model's tip is known without writing it again: from the pool.
    """
    if rollout is None:
        return [], []
    arms = arms_of(stage.config, rollout)
    pool = stage.runtime.by_digest
    before, after = [], []
    for one in canary:
        if arms.get(one.tip_id) != ("challenger", None):
            continue
        prompt = assemble(stage.service.chat, one.visit.kind, one.visit.context)
        pooled = pool.get(digest_of(prompt.text))
        if pooled is not None:
            before.append((one.visit, pooled.text))
            after.append((one.visit, one.text))
    return before, after


def remembered(config: Config, served: Served) -> Shown:
    """What a policy without a model may know of a tip that was shown."""
    positive, response = label_rule(config.labels).positive, served.response
    liked = response is not None and positive.includes(response.reaction, response.dwell_ms)
    return Shown(kind=served.visit.kind, tip=served.text, is_positive=liked)


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
            shown = [one for one in threads.map(partial(show, stage), batch) if one is not None]
            served += [respond(stage, one) for one in shown]
            bar.update(len(batch))
    return served


def show(stage: Stage, visit: Visit) -> Served | None:
    """Ask the service for a tip, as an app does; where it has none to show, neither has the app."""
    stage.clock.moments.now = visit.moment
    try:
        request = tips.TipRequest(visit.user_id, visit.kind, visit.context)
        tip = tips.request_tip(stage.service, request)
    except tips.UnshowableTipError:
        return None
    asyncio.run(tips.record_shown(stage.service, tip.tip_id))
    return Served(visit, tip.tip_id, tip.content)


def respond(stage: Stage, served: Served) -> Served:
    """Let the visitor react, and tell the service."""
    response = stage.audience.react(served.visit, served.text)
    if response.reaction is not None and response.dwell_ms is not None:
        stage.clock.moments.now = served.visit.moment + timedelta(milliseconds=response.dwell_ms)
        asyncio.run(
            tips.record_reaction(stage.service, served.tip_id, response.reaction, response.dwell_ms)
        )
    return replace(served, response=response)


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


@contextmanager
def serving_people(folder: Path, people: Audience, *, seed: int, say: Say) -> Iterator[Stage]:
    """The service of an app, on the audience's clock; the base model's tips come from the pool.

    The base model is the champion. All is kept in the folder, or in one beside it where a demo was
    played in it before.
    """
    config = set_up(unused(folder), seed=seed)
    say(f"demo in   {config.folder}")
    say("exporting the base model: it is version 1 and the first champion")
    deployment.ensure_champion(config)
    clock = Clock()
    runtime = PooledRuntime(connect(config.serve), read_pool())
    with deployment.database(config) as engine:
        service = state.open_service(
            engine,
            chat=load_chat(base_model(config.model).folder, config.prompt, privacy=config.privacy),
            runtime=runtime,
            key=load_hashing_key(config.privacy, os.environ),
            settings=config.serve,
            root=run_root(config),
            clock=clock.now,
            # A second start on the same folder must not draw the ids of the first again.
            draw=random.Random(f"{seed} {time.time_ns()}").getrandbits,
        )
        try:
            yield Stage(config, people, service, runtime, clock, say)
        finally:
            state.close_service(service)
