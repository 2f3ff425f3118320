"""The demo: the loop on a simulated audience, with the service, pipeline and review of an app.

Only the clock is the audience's own.
"""

import asyncio
import os
import random
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, count
from pathlib import Path

from reactune import deployment, pipeline, review
from reactune.config.settings import CONFIG_NAME, Config, load
from reactune.data.labels.scores import daily_counts
from reactune.data.labels.sources import open_scores
from reactune.demo.audience import Audience, Response, Visit, load_audience
from reactune.demo.pool import PooledRuntime, digest_of, read_pool
from reactune.demo.report import (
    CycleResult,
    PastTip,
    arms_of,
    choices_of,
    first_candidate,
    write_demo_report,
)
from reactune.demo.situations import demo_settings
from reactune.erasure.erase import Say
from reactune.errors import CanaryError
from reactune.model.files import base_model
from reactune.model.prompt import assemble, load_chat
from reactune.privacy.hashing import load_hashing_key
from reactune.progress import progress_bar
from reactune.records import STAGES, Rollout
from reactune.release.runtimes import connect
from reactune.runs.folders import all_runs
from reactune.runs.manifest import Manifest
from reactune.runs.remote import run_root
from reactune.service import state, tips
from reactune.store.database import create_store
from reactune.store.labels import label_rule

TOWN = "reactune.demo.audience:Town"
SLACK = 1.4  # labels wanted before a training, over its thresholds: duplicates take some
MAX_HISTORY_DAYS = 60
MAX_CANARY_DAYS = 40
STARTED = ".started"  # marks a folder in which a demo was started


@dataclass
class Clock:
    """The audience's time: in each thread the moment of the visit that it serves."""

    moments: threading.local = field(default_factory=threading.local)

    def now(self) -> datetime:
        """The moment of the visit that this thread serves."""
        moment: datetime = self.moments.now
        return moment


@dataclass(frozen=True)
class Demo:
    """A demo that runs: its settings, its audience, and the service that answers them."""

    config: Config
    audience: Audience
    service: state.Service
    runtime: PooledRuntime
    clock: Clock
    say: Say


@dataclass(frozen=True)
class Served:
    """A visit, the tip that was shown, and the reaction."""

    visit: Visit
    tip_id: str
    text: str
    response: Response | None = None


def run_demo(
    folder: Path, *, seed: int, cycles: int, tastes: str, audience: str | None, say: Say
) -> Path:
    """Run the loop `cycles` times on an audience; the path of the report.

    With 0 cycles the audience only reacts, until there is enough to train on; then the path is
    that of the folder.

    Raises:
        ReactuneError: a stage fails, or the audience cannot be constructed (ConfigError).
    """
    make_audience = partial(load_audience, audience or TOWN, seed=seed, tastes=tastes)
    past: list[Served] = []
    results: list[CycleResult] = []
    day = 0
    with open_demo(folder, make_audience(), seed=seed, say=say) as demo:
        if cycles == 0:
            day = next(days_with_enough_labels(demo, 0, past))
            say(f"reactions of {day + 1} days in {demo.config.folder}")
            return demo.config.folder
        for number in range(1, cycles + 1):
            say(f"cycle {number} of {cycles}")
            result, day = run_cycle(demo, day, past)
            results.append(result)
        now = midnight_after(demo, day - 1)
        report = write_demo_report(demo.config, results, make_audience, now=now)
    say(f"report    {report}")
    return report


def run_cycle(demo: Demo, day: int, past: list[Served]) -> tuple[CycleResult, int]:
    """Collect reactions, train, run the rollout to its decision; the result, and the next day."""
    started = time.monotonic()
    day, manifest, run = until_trained(demo, day, past)
    trained = time.monotonic()
    served: list[Served] = []
    rollout, verdict = None, manifest.summary
    if manifest.stage == STAGES[-1]:
        rollout = deployment.current(demo.config)
        day, verdict = until_decided(demo, day, served)
    before, after, unchosen = paired_tips(demo, rollout, served)
    result = CycleResult(
        run=run,
        rollout=rollout,
        verdict=verdict,
        before=before,
        after=after,
        unchosen=unchosen,
        past=[past_tip(demo.config, each) for each in past],
        seconds_before_rollout=trained - started,
        rollout_seconds=time.monotonic() - trained,
    )
    past += served
    return result, day


def until_trained(demo: Demo, day: int, past: list[Served]) -> tuple[int, Manifest, Path]:
    """Simulate days until a run does not wait; the next day, the run's last manifest and folder."""
    days = days_with_enough_labels(demo, day, past)
    while True:
        today = next(days)
        manifest = pipeline.run(demo.config, say=demo.say)
        if manifest.outcome != "waiting":
            demo.service.watcher.refresh()
            return today + 1, manifest, all_runs(demo.config.run_root)[-1]


def days_with_enough_labels(demo: Demo, day: int, past: list[Served]) -> Iterator[int]:
    """Simulate days; yields each one after which there are enough labels for a training.

    Raises:
        CanaryError: there were too few until the last day.
    """
    for today in range(day, day + MAX_HISTORY_DAYS):
        past += serve_day(demo, today)
        if has_enough_labels(demo.config):
            yield today
    raise CanaryError(
        f"{MAX_HISTORY_DAYS} days of the audience brought too few reactions to train on; lower "
        "[dataset] min_positives and min_negatives, or use an audience that visits more often"
    )


def until_decided(demo: Demo, day: int, served: list[Served]) -> tuple[int, str]:
    """Simulate days, each with a review at its end, until a verdict; the next day, the verdict."""
    demo.service.watcher.refresh()
    for today in range(day, day + MAX_CANARY_DAYS):
        served += serve_day(demo, today)
        reviewed = review.review(demo.config, now=midnight_after(demo, today))
        demo.say(f"day {today + 1:<5} {reviewed.line}")
        demo.service.watcher.refresh()
        if reviewed.rollout.challenger is None:
            return today + 1, reviewed.line
    return day + MAX_CANARY_DAYS, f"undecided after {MAX_CANARY_DAYS} days"


def paired_tips(
    demo: Demo, rollout: Rollout | None, served: list[Served]
) -> tuple[list[tuple[Visit, str]], ...]:
    """Visits with the base model's tips from the pool, the same with the challenger's tips, and
    with the first of its candidates where a reward chose among them.
    """
    before: list[tuple[Visit, str]] = []
    after: list[tuple[Visit, str]] = []
    unchosen: list[tuple[Visit, str]] = []
    if rollout is None:
        return before, after, unchosen
    arms, choices = arms_of(demo.config, rollout), choices_of(demo.config, rollout)
    pool = demo.runtime.by_digest
    for one in served:
        if arms.get(one.tip_id) != ("challenger", None):
            continue
        prompt = assemble(demo.service.chat, one.visit.kind, one.visit.context)
        pooled = pool.get(digest_of(prompt.text))
        if pooled is not None:
            before.append((one.visit, pooled.text))
            after.append((one.visit, one.text))
            choice = choices.get(one.tip_id)
            unchosen.append((one.visit, first_candidate(choice) if choice else one.text))
    return before, after, unchosen if choices else []


def past_tip(config: Config, served: Served) -> PastTip:
    """What a policy without a model may know of a shown tip."""
    positive, response = label_rule(config.labels).positive, served.response
    liked = response is not None and positive.includes(response.reaction, response.dwell_ms)
    return PastTip(kind=served.visit.kind, tip=served.text, is_positive=liked)


def serve_day(demo: Demo, day: int) -> list[Served]:
    """Serve all visits of a day.

    Tips of a batch are generated in parallel; reactions follow in order, since each depends on
    the tips shown before.
    """
    visits = list(demo.audience.visits(day))
    size = demo.config.serve.parallel
    served: list[Served] = []
    with (
        ThreadPoolExecutor(size) as threads,
        progress_bar(f"day {day + 1}", total=len(visits), unit="tip") as bar,
    ):
        for start in range(0, len(visits), size):
            batch = visits[start : start + size]
            shown = [one for one in threads.map(partial(show, demo), batch) if one is not None]
            served += [react(demo, one) for one in shown]
            bar.update(len(batch))
    return served


def show(demo: Demo, visit: Visit) -> Served | None:
    """Ask the service for a tip as an app does; None where it has none to show."""
    demo.clock.moments.now = visit.moment
    try:
        request = tips.TipRequest(visit.user_id, visit.kind, visit.context)
        tip = tips.request_tip(demo.service, request)
    except tips.UnshowableTipError:
        return None
    asyncio.run(tips.record_shown(demo.service, tip.tip_id))
    return Served(visit, tip.tip_id, tip.content)


def react(demo: Demo, served: Served) -> Served:
    """Draw the reaction and report it to the service."""
    response = demo.audience.react(served.visit, served.text)
    if response.reaction is not None and response.dwell_ms is not None:
        demo.clock.moments.now = served.visit.moment + timedelta(milliseconds=response.dwell_ms)
        asyncio.run(
            tips.record_reaction(demo.service, served.tip_id, response.reaction, response.dwell_ms)
        )
    return replace(served, response=response)


def has_enough_labels(config: Config) -> bool:
    """Whether there are so many labels that a run will probably not wait."""
    with open_scores(config.source, store_url=config.store_url, folder=config.folder) as table:
        days = daily_counts(table, config.labels)
    positives = sum(each.positives for each in days)
    negatives = sum(each.negatives for each in days)
    wanted = config.dataset
    return positives >= SLACK * wanted.min_positives and negatives >= SLACK * wanted.min_negatives


def midnight_after(demo: Demo, day: int) -> datetime:
    """The end of a day, when no reaction to its tips counts any more."""
    last = max(visit.moment for visit in demo.audience.visits(day))
    start = datetime.combine(last.date(), datetime.min.time(), UTC)
    return start + timedelta(days=1, seconds=demo.config.canary.window_seconds)


@contextmanager
def open_demo(folder: Path, audience: Audience, *, seed: int, say: Say) -> Iterator[Demo]:
    """Set up a folder and its service, with the base model as champion and on the audience's clock.

    Where a demo was started in the folder before, a new one beside it is used.
    """
    config = set_up(unused_folder(folder), seed=seed)
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
            # A second start in the same folder must not draw the ids of the first again.
            draw=random.Random(f"{seed} {time.time_ns()}").getrandbits,
        )
        try:
            yield Demo(config, audience, service, runtime, clock, say)
        finally:
            state.close_service(service)


def unused_folder(folder: Path) -> Path:
    """The folder, or where a demo was started in it before, the first free of folder-2, -3, ..."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(place for place in chain([folder], numbered) if not (place / STARTED).exists())


def set_up(folder: Path, *, seed: int) -> Config:
    """Write settings, key and database of a demo; an existing settings file is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG_NAME
    if not file.is_file():
        file.write_text(demo_settings(), encoding="utf-8")
    config = load(file, (f"train.seed={seed}", f"dataset.seed={seed}"))
    secret = folder / "key"
    if not secret.is_file():
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32), encoding="utf-8")
    os.environ[config.privacy.key_env] = secret.read_text(encoding="utf-8")
    create_store(config.store_url).dispose()
    (folder / STARTED).touch()
    return config
