"""The overview: three answers, where the loop stands, what is due, and the last two weeks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from reactune.config.settings import Config
from reactune.pages import facts, views
from reactune.pages.facts import Progress, RunFacts, Trial
from reactune.pages.tables import NONE, Tone, Words, percent, plural
from reactune.pages.verdicts import words
from reactune.store import queries
from reactune.store.summaries import DayCounts, Latest, days_since

DAYS_SHOWN = 14


@dataclass(frozen=True)
class Step:
    """A step of the loop on the overview."""

    name: str
    href: str
    value: str
    note: str
    part: float | None = None
    is_now: bool = False


@dataclass(frozen=True)
class Due:
    """Something that waits for somebody."""

    word: str
    tone: Tone
    text: str
    href: str = ""
    link: str = ""


@dataclass(frozen=True)
class Overview:
    """What the overview shows, on the pages and in a terminal."""

    words: Words
    steps: Sequence[Step]
    due: Sequence[Due]
    days: Sequence[DayCounts]


def overview(
    connection: sa.Connection, config: Config, latest: Latest, *, now: datetime
) -> Overview:
    """The overview at this moment."""
    days = days_since(connection, facts.days_ago(now, DAYS_SHOWN - 1), latest)
    trial = facts.live_trial(connection, config)
    progress = facts.progress(connection, config, latest, now=now)
    runs = facts.runs(connection, limit=1)
    before = facts.last_trial(connection)
    said = words(trial, before, progress, settings=config.canary, now=now)
    counts = views.week(days, facts.days_ago(now, 6))
    steps = loop_steps(trial, progress, runs, counts)
    return Overview(said, steps, due(connection, said, trial, runs, now), days)


def loop_steps(
    trial: Trial | None,
    progress: Progress,
    runs: list[RunFacts],
    counts: Mapping[str, int],
) -> list[Step]:
    """The loop from tips to the model that is live, with the step where it stands."""
    rollout = trial.rollout if trial else None
    on_trial = rollout is not None and rollout.challenger is not None
    is_running = bool(runs) and runs[0].end is None
    first, *rest = views.progress_figures(progress)
    example_note = "; ".join([*(f"{each.value} {each.name}" for each in rest), first.note])
    comparison = trial.comparison if trial and on_trial else None
    run_value = str(views.run_state(runs[0])) if runs else "none yet"
    return [
        Step("Tips shown", "/reactions", f"{counts['shown']:,} this week",
             f"{counts['done']:,} done, {counts['dismissed']:,} dismissed, "
             f"{counts['snoozed']:,} snoozed"),
        Step("Examples", "/reactions", f"{first.value} {first.name}", example_note,
             min([first.part or 0.0, *(each.part or 0.0 for each in rest)]),
             not on_trial and not is_running),
        Step("Last run", "/runs", run_value, runs[0].run_id if runs else "reactune run starts one",
             None, is_running and not on_trial),
        Step("On trial", "/rollout",
             f"version {rollout.challenger}" if rollout and on_trial else "no model",
             f"{rollout.phase}, {percent(rollout.share, 0)} of the tips"
             if rollout and on_trial else "", None, on_trial),
        Step("Evidence", "/rollout",
             f"{percent(min(1.0, comparison.progress), 0)} of the plan" if comparison else NONE,
             plural(comparison.units, "unit") + " observed" if comparison else "",
             min(1.0, comparison.progress) if comparison else None),
        Step("Live", "/models", f"version {rollout.champion}" if rollout else "nothing",
             f"answers {percent(1 - rollout.share, 0)} of the tips" if rollout else ""),
    ]  # fmt: skip


def due(
    connection: sa.Connection,
    said: Words,
    trial: Trial | None,
    runs: list[RunFacts],
    now: datetime,
) -> list[Due]:
    """What waits for somebody: a decision, erasures, models to replace, an interrupted run."""
    waits = []
    if said.proposal:
        text = f"The review proposes to {said.proposal}: a person decides."
        waits.append(Due("decide", "wait", text, "/rollout", "To the rollout"))
    if waiting := facts.open_erasures(connection):
        text = f"{plural(waiting, 'erasure')} not done everywhere: `reactune erase` finishes them."
        waits.append(Due("erase", "bad", text, "/people", "To the people"))
    live = {trial.rollout.champion, trial.rollout.challenger} if trial else set()
    for version, date in sorted(queries.versions_to_replace(connection).items()):
        is_late = date < now
        word = "overdue" if is_late else "retrain"
        what = "has to be replaced" if version in live else "is not live and has to be removed"
        command = "reactune run" if version in live else "reactune erase --expired"
        text = (
            f"Version {version} learned from somebody who was erased, and {what} by "
            f"{date:%Y-%m-%d}: `{command}`."
        )
        waits.append(Due(word, "bad" if is_late else "wait", text, "/models", "To the models"))
    if runs and runs[0].end is None:
        text = f"Run {runs[0].run_id} was interrupted, or is under way: `reactune run` resumes it."
        waits.append(Due("resume", "wait", text, f"/runs/{runs[0].run_id}", "To the run"))
    return waits
