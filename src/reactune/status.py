"""`reactune status`: what is live, how far the next training is, and how the last run ended.

It changes nothing, and has one line for each fact.
"""

import os
from collections.abc import Mapping
from datetime import datetime

from reactune import deployment
from reactune.analysis.plan import forecast as forecast_verdict
from reactune.config.settings import Config
from reactune.data.labels.scores import DayCount, daily_counts, forecast, kept_share
from reactune.data.labels.sources import open_scores
from reactune.erasure import requests
from reactune.privacy.consent import key_ids
from reactune.privacy.hashing import given_key_ids
from reactune.review import take_snapshot
from reactune.runs.folders import all_runs
from reactune.runs.manifest import ending, manifests
from reactune.runs.remote import pull, run_root
from reactune.store.database import reading
from reactune.store.queries import NOTHING_LIVE


def status(config: Config, *, now: datetime, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Lines for the operator."""
    pull(run_root(config))
    return [
        *live_lines(config, now=now),
        *erasure_lines(config, now=now),
        *key_lines(config, environ),
        *progress_lines(config, now=now),
        *run_lines(config),
    ]


def live_lines(config: Config, *, now: datetime) -> list[str]:
    """The live versions, the challenger's share, and a forecast of the verdict."""
    rollout = deployment.current(config)
    if rollout is None:
        return [f"live      {NOTHING_LIVE}"]
    names = {
        model.version: f"{model.name} with a reward" if model.reward else model.name
        for model in deployment.versions(config)
    }
    line = f"live      champion {names[rollout.champion]}"
    if rollout.challenger is not None:
        line += (
            f", challenger {names[rollout.challenger]} at {rollout.share:.0%} ({rollout.phase} "
            f"since {rollout.share_since:%Y-%m-%d %H:%M} UTC)"
        )
    if rollout.phase not in ("shadow", "canary", "ramp"):
        return [line]
    snapshot = take_snapshot(config, now=now)
    if snapshot.shadow is not None:
        return [line, f"shadow    {snapshot.shadow.line()}"]
    if snapshot.comparison is None:
        return [line]
    verdict = forecast_verdict(
        config.canary, rollout, snapshot.comparison, age_days=snapshot.age_days, now=now
    )
    return [line, f"verdict   {verdict}"]


def erasure_lines(config: Config, *, now: datetime) -> list[str]:
    """Unfinished erasures, and the models to replace with their due dates."""
    with deployment.database(config) as engine, reading(engine) as connection:
        waiting = len(requests.open_erasures(connection))
    lines = []
    if waiting:
        lines.append(f"erasures  {waiting:,} unfinished; `reactune erase` finishes them")
    rollout = deployment.current(config)
    for version, date in sorted(deployment.to_replace(config).items()):
        line = f"retrain   version {version} was trained on data of an erased user"
        if rollout is None or version not in (rollout.champion, rollout.challenger):
            lines.append(f"{line}, and is not live; `reactune erase --expired` removes it")
            continue
        arm = "champion" if version == rollout.champion else "challenger"
        due = f"overdue since {date:%Y-%m-%d}" if date < now else f"due by {date:%Y-%m-%d}"
        lines.append(f"{line}: a new {arm} is {due}; `reactune run` does not wait for new examples")
    return lines


def key_lines(config: Config, environ: Mapping[str, str]) -> list[str]:
    """Rows that no user can be erased from, because their key is not given."""
    given = given_key_ids(config.privacy, environ)
    with deployment.database(config) as engine, reading(engine) as connection:
        known = key_ids(connection)
    return [
        f"keys      {rows:,} rows hashed with key {key_id}, which is not given: no user can "
        "be erased from them; name its variable in [privacy] old_key_envs"
        for key_id, rows in sorted(known.items())
        if given and key_id not in given
    ]


def progress_lines(config: Config, *, now: datetime) -> list[str]:
    """The number of examples, the number a training needs, and a forecast of the date."""
    with open_scores(config.source, store_url=config.store_url, folder=config.folder) as table:
        days = daily_counts(table, config.labels)
    have = (sum(day.positives for day in days), sum(day.negatives for day in days))
    settings = config.dataset
    need = (settings.min_positives, settings.min_negatives)
    kept = _last_kept_share(config)
    line = (
        f"examples  {have[0]:,} positives and {have[1]:,} negatives before duplicates and caps; "
        f"a training needs {need[0]:,} + {need[1]:,} after them"
    )
    return [line, forecast_line(days, have, need, kept, now)]


def forecast_line(
    days: list[DayCount],
    have: tuple[int, int],
    need: tuple[int, int],
    kept: float,
    now: datetime,
) -> str:
    """The day on which a training has enough examples, at the recent rate."""
    left = (round(have[0] * kept), round(have[1] * kept))
    day = forecast(days, have=left, need=need, today=now.date(), kept=kept)
    if day is None:
        return "forecast  no labelled tips lately: at this rate never"
    if day <= now.date():
        return "forecast  enough for a training, if duplicates and caps take no more than last time"
    return f"forecast  enough on {day:%Y-%m-%d} at the rate of the last two weeks"


def _last_kept_share(config: Config) -> float:
    """The share of labelled rows that duplicates and caps left in the last dataset; 1 before."""
    for run in reversed(all_runs(config.run_root)):
        manifest = manifests(run).get("dataset")
        if manifest and manifest.counts["counts"].get("came_in"):
            return kept_share(manifest.counts["counts"])
    return 1.0


def run_lines(config: Config) -> list[str]:
    """The state or the end of the last run."""
    runs = all_runs(config.run_root)
    if not runs:
        return ["last run  none yet; `reactune run` starts one"]
    last = runs[-1]
    end = ending(last)
    if end is not None:
        return [f"last run  {last.name}: {end.stage}: {end.summary}"]
    done = ", ".join(manifests(last)) or "nothing"
    return [f"last run  {last.name}: interrupted, done: {done}; `reactune run` resumes it"]
