"""`reactune status`: what is live, how far the next training is, and how the last run ended.

Reads only; a line a fact.
"""

from datetime import datetime

from reactune import live
from reactune.config import Config
from reactune.data.engines import open_scores
from reactune.data.scores import DayCount, daily_counts, forecast
from reactune.run_root import pull, run_root
from reactune.runs import all_runs, ending, manifests


def status(config: Config, *, now: datetime) -> list[str]:
    """Lines for the person at the terminal."""
    pull(run_root(config))
    return [*live_lines(config), *progress_lines(config, now=now), *run_lines(config)]


def live_lines(config: Config) -> list[str]:
    """What answers now, and at what share."""
    rollout = live.current(config)
    if rollout is None:
        return ["live      nothing yet; `reactune deploy` makes the base model champion"]
    names = {model.version: model.name for model in live.versions(config)}
    line = f"live      champion {names[rollout.champion]}"
    if rollout.challenger is not None:
        line += (
            f", challenger {names[rollout.challenger]} at {rollout.share:.0%} ({rollout.phase} "
            f"since {rollout.share_since:%Y-%m-%d %H:%M} UTC)"
        )
    return [line]


def progress_lines(config: Config, *, now: datetime) -> list[str]:
    """How many examples there are, how many are needed, and when they will be there."""
    with open_scores(config.source, store_url=config.store_url, folder=config.folder) as table:
        days = daily_counts(table, config.labels)
    have = (sum(day.positives for day in days), sum(day.negatives for day in days))
    settings = config.dataset
    need = (settings.min_positives, settings.min_negatives)
    kept = kept_share(config)
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
    """The day on which the examples will be enough, at the recent rate."""
    left = (round(have[0] * kept), round(have[1] * kept))
    day = forecast(days, have=left, need=need, today=now.date(), kept=kept)
    if day is None:
        return "forecast  no labelled tips lately: at this rate never"
    if day <= now.date():
        return "forecast  enough for a training, if duplicates and caps take no more than last time"
    return f"forecast  enough on {day:%Y-%m-%d} at the rate of the last two weeks"


def kept_share(config: Config) -> float:
    """The share of labelled rows that duplicates and caps left in the last dataset; 1 before."""
    for run in reversed(all_runs(config.run_root)):
        manifest = manifests(run).get("dataset")
        counts = manifest.counts["counts"] if manifest else {}
        if counts and counts["came_in"]:
            return float(counts["went_out"]) / float(counts["came_in"])
    return 1.0


def run_lines(config: Config) -> list[str]:
    """How the last run stands or ended."""
    runs = all_runs(config.run_root)
    if not runs:
        return ["last run  none yet; `reactune run` starts one"]
    last = runs[-1]
    end = ending(last)
    if end is not None:
        return [f"last run  {last.name}: {end.stage}: {end.summary}"]
    done = ", ".join(manifests(last)) or "nothing"
    return [f"last run  {last.name}: interrupted, done: {done}; `reactune run` goes on with it"]
