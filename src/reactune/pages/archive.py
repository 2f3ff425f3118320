"""Reports from the database alone: a run, a rollout, the last days; no text of a tip."""

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from reactune.config.settings import Config
from reactune.errors import DataError
from reactune.pages import facts, views
from reactune.pages.report import Report
from reactune.pages.tables import Section, Words, moment
from reactune.pages.verdicts import words
from reactune.store import queries
from reactune.store.labels import label_rule
from reactune.store.summaries import days_since, latest_days


def run_report(connection: sa.Connection, run_id: str) -> Report:
    """One run: its stages, gate, reward, training, dataset, and where it comes from.

    Raises:
        DataError: no run of this name is summarised.
    """
    run = facts.run(connection, run_id)
    if run is None:
        known = ", ".join(each.run_id for each in facts.runs(connection, limit=5)) or "none yet"
        raise DataError(f"no run {run_id!r} in the database; the latest: {known}")
    end = run.end
    lead = f"{views.run_state(run)}: {end.line}" if end else str(views.run_state(run))
    return Report(f"Run {run_id}", lead, views.run_page(run))


def rollout_report(connection: sa.Connection, config: Config, *, now: datetime) -> Report:
    """The rollout that is open, or the one that ended last.

    Raises:
        DataError: there was none.
    """
    live, before = facts.live_trial(connection, config), facts.last_trial(connection)
    shown = live if live and live.rollout.challenger is not None else before
    if shown is None:
        raise DataError("no model was on trial yet; `reactune run` or `reactune deploy` begins one")
    rollout = shown.rollout
    lead = f"Version {rollout.challenger} against version {rollout.champion}, from "
    lead += f"{moment(rollout.opened_at)} UTC on."
    return Report(
        f"Rollout {rollout.rollout_id}",
        lead,
        views.trial_sections(shown, config),
        _words(connection, config, now),
    )


def period_report(connection: sa.Connection, config: Config, *, days: int, now: datetime) -> Report:
    """The last days: what is live, reactions, runs, and erasures."""
    since = facts.days_ago(now, days - 1)
    latest = latest_days(connection, label_rule(config.labels))
    counts = days_since(connection, since, latest)
    names = {each.version: each.name for each in queries.all_model_versions(connection)}
    live = facts.live_trial(connection, config)
    runs = [
        each
        for each in facts.runs(connection)
        if each.started is not None and each.started.date() >= since
    ]
    sections = [
        *views.reactions_page(counts, config.labels, names),
        *(views.trial_sections(live, config) if live else ()),
        Section("Runs", tables=(views.runs_table(runs),)),
        *views.people_page(
            [each for each in facts.all_erasures(connection) if each.asked_at.date() >= since],
            facts.privacy(connection),
            queries.versions_to_replace(connection),
            names,
            config,
            now=now,
        ),
    ]
    lead = f"From {since} to {facts.days_ago(now, 0)}."
    return Report(f"The last {days} days", lead, sections, _words(connection, config, now))


def state_of(connection: sa.Connection, config: Config, *, now: datetime) -> dict[str, Any]:
    """What the overview says, as plain values."""
    live = facts.live_trial(connection, config)
    runs = facts.runs(connection, limit=1)
    last = runs[0] if runs else None
    return {
        "live": live and asdict(replace(live.rollout, salt="")),
        "answer": asdict(_words(connection, config, now)),
        "comparison": live and live.comparison and asdict(live.comparison),
        "progress": asdict(_progress(connection, config, now)),
        "last_run": last
        and {
            "run_id": last.run_id,
            "state": str(views.run_state(last)),
            "line": last.end.line if last.end else "",
        },
        "erasures_open": facts.open_erasures(connection),
        "replace_by": queries.versions_to_replace(connection),
    }


def _words(connection: sa.Connection, config: Config, now: datetime) -> Words:
    return words(
        facts.live_trial(connection, config),
        facts.last_trial(connection),
        _progress(connection, config, now),
        settings=config.canary,
        now=now,
    )


def _progress(connection: sa.Connection, config: Config, now: datetime) -> facts.Progress:
    latest = latest_days(connection, label_rule(config.labels))
    return facts.progress(connection, config, latest, now=now)
