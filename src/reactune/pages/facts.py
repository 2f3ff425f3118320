"""What the pages show, read from the operational database alone; no text of a tip unless asked.

Neither run folders, MLflow nor the rows of a million tips are read: `store.summaries` has what they
came to. Each function is one short reading.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from math import inf
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from reactune.canary.compare import Comparison
from reactune.canary.rollout import ShadowReport, read_shadow
from reactune.config.settings import Config
from reactune.data.labels.scores import DayCount, forecast, kept_share
from reactune.erasure.requests import STEPS
from reactune.records import STAGES, ModelVersion, Rollout, Verdict
from reactune.store import queries
from reactune.store.schema import (
    consents,
    decisions,
    erasures,
    model_versions,
    page_actions,
    rollouts,
    tip_scores,
)
from reactune.store.summaries import Latest, Summary, label_days, run_ids, summaries_of

RUNS_SHOWN, ACTIONS_SHOWN, TIPS_SHOWN, CHOICES_SHOWN = 50, 50, 6, 3
CHOICES_READ = 50  # to find some in which the reward could be computed
STEP_NAMES = dict(
    zip(
        STEPS,
        ("database", "runs and datasets", "models marked", "names forgotten", "files overwritten"),
        strict=True,
    )
)
MEASURED = {"units", "answers"}  # in the numbers of a decision on a comparison, on shadow answers
_COMPARISON = TypeAdapter(Comparison)


@dataclass(frozen=True)
class Decision:
    """A recorded decision on a rollout, with the numbers that it was taken on."""

    at: datetime
    actor: str
    verdict: Verdict
    reason: str
    numbers: Mapping[str, Any] = field(repr=False)

    @property
    def comparison(self) -> Comparison | None:
        """The comparison that it was taken on, if there was one."""
        return comparison_in(self.numbers)


@dataclass(frozen=True)
class Trial:
    """A rollout with its decisions, oldest first, and the comparison over time.

    `verdict` and `closed_at` are None while it is open.
    """

    rollout: Rollout
    decisions: tuple[Decision, ...]
    closed_at: datetime | None
    verdict: Verdict | None
    path: Mapping[str, Sequence[Any]]
    shadow: ShadowReport | None = None

    @property
    def last(self) -> Decision | None:
        """The last decision that was taken on a comparison, or on shadow answers."""
        taken = (each for each in reversed(self.decisions) if MEASURED & each.numbers.keys())
        return next(taken, None)

    @property
    def comparison(self) -> Comparison | None:
        """The comparison that the last decision with one was taken on."""
        found = (each.comparison for each in reversed(self.decisions))
        return next((each for each in found if each), None)


@dataclass(frozen=True)
class Progress:
    """Examples that the next training has, and needs; `ready_on` at the recent rate, if ever."""

    positives: int
    negatives: int
    need_positives: int
    need_negatives: int
    ready_on: date | None


@dataclass(frozen=True)
class RunFacts:
    """A run by its stages, in their order."""

    run_id: str
    stages: tuple[Summary, ...]

    @property
    def started(self) -> datetime | None:
        """When it began, as its name says."""
        try:
            return datetime.strptime(self.run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            return None

    @property
    def end(self) -> Summary | None:
        """The stage that ended it, or None while it is open."""
        ends = (each for each in self.stages if each.outcome != "done" or each.stage == STAGES[-1])
        return next(ends, None)

    def stage(self, name: str) -> Summary | None:
        """One stage, if it was done."""
        return next((each for each in self.stages if each.stage == name), None)


@dataclass(frozen=True)
class ErasureFacts:
    """An erasure: what was asked, how far it reached, which steps are left. It names nobody."""

    erasure_id: str
    scope: str
    actor: str
    reason: str
    asked_at: datetime
    finished_at: datetime | None
    people: int | None
    rows: int
    kept: int
    runs: tuple[str, ...]
    learned: int
    left: tuple[str, ...]


@dataclass(frozen=True)
class PrivacyFacts:
    """Tips that may not be trained on, by how many users; and the last decisions on consent."""

    refused_tips: int
    refusing_users: int
    decisions: int
    last_decision: datetime | None


def comparison_in(numbers: Mapping[str, Any]) -> Comparison | None:
    """The comparison in a decision's stored numbers, where None stands for an infinite bound."""
    if "units" not in numbers:
        return None
    low, high = numbers["low"], numbers["high"]
    bounds = {"low": -inf if low is None else low, "high": inf if high is None else high}
    return _COMPARISON.validate_python({**numbers, **bounds})


def live_trial(connection: sa.Connection, config: Config) -> Trial | None:
    """The rollout that is live, or None before the first champion."""
    rollout = queries.current_rollout(connection)
    if rollout is None:
        return None
    shadow = None
    if rollout.phase == "shadow":
        shadow = read_shadow(connection, rollout.rollout_id, slow_ms=config.canary.slow_ms)
    return _trial(connection, rollout, None, None, shadow)


def last_trial(connection: sa.Connection) -> Trial | None:
    """The rollout of a challenger that ended last, or None."""
    row = rollouts.c
    query = (
        sa.select(rollouts)
        .where(row.closed_at.is_not(None), row.challenger.is_not(None))
        .order_by(row.closed_at.desc())
    )
    found = connection.execute(query.limit(1)).mappings().one_or_none()
    if found is None:
        return None
    names = Rollout.__dataclass_fields__
    rollout = Rollout(**{name: found[name] for name in names})
    return _trial(connection, rollout, found["closed_at"], found["verdict"], None)


def versions(connection: sa.Connection) -> dict[int, tuple[ModelVersion, datetime]]:
    """Every registered version by number, and when it was."""
    row = model_versions.c
    created = {
        each.version: each.created_at
        for each in connection.execute(sa.select(row.version, row.created_at))
    }
    return {
        each.version: (each, created[each.version])
        for each in queries.all_model_versions(connection)
    }


def progress(
    connection: sa.Connection, config: Config, latest: Latest, *, now: datetime
) -> Progress:
    """How far the next training is: before the first one from all reactions, later from new ones.

    Reactions are counted before duplicates and caps, at the share of the last dataset that these
    left. After a first training any new examples count, so the need of negatives is 0.
    """
    runs = [RunFacts(each, ()) for each in run_ids(connection, limit=RUNS_SHOWN)]
    summaries = summaries_of(connection, [each.run_id for each in runs])
    trained = max((each.subject for each in summaries if each.stage == "train"), default="")
    dataset = max(
        (each for each in summaries if each.stage == "dataset"),
        key=lambda each: each.subject,
        default=None,
    )
    kept = kept_share(dataset.counts.get("counts", {})) if dataset else 1.0
    began = RunFacts(trained, ()).started if trained else None
    days = [
        DayCount(*each)
        for each in label_days(connection, latest)
        if began is None or each[0] >= began.date()
    ]
    positives = round(kept * sum(each.positives for each in days))
    negatives = round(kept * sum(each.negatives for each in days))
    settings = config.dataset
    need = (settings.min_positives, settings.min_negatives)
    if began is not None:
        days = [DayCount(each.day, each.positives + each.negatives, 0) for each in days]
        positives, negatives, need = positives + negatives, 0, (settings.min_new, 0)
    ready = forecast(days, have=(positives, negatives), need=need, today=now.date(), kept=kept)
    return Progress(positives, negatives, *need, ready)


def runs(connection: sa.Connection, *, limit: int = RUNS_SHOWN) -> list[RunFacts]:
    """The runs, the newest first."""
    ids = run_ids(connection, limit=limit)
    found = summaries_of(connection, ids)
    return [RunFacts(run, tuple(each for each in found if each.subject == run)) for run in ids]


def run(connection: sa.Connection, run_id: str) -> RunFacts | None:
    """One run, or None where none of this name is summarised."""
    stages = [each for each in summaries_of(connection, [run_id]) if each.stage in STAGES]
    return RunFacts(run_id, tuple(stages)) if stages else None


def all_erasures(
    connection: sa.Connection, *, limit: int | None = RUNS_SHOWN
) -> list[ErasureFacts]:
    """The erasures, the newest first. Whom they are about is not read."""
    row = erasures.c
    columns = [each for each in erasures.c if each.name not in ("targets_json", "older_than")]
    query = sa.select(*columns).order_by(row.asked_at.desc()).limit(limit)
    return [_erasure(each) for each in connection.execute(query).mappings()]


def open_erasures(connection: sa.Connection) -> int:
    """How many erasures are not finished."""
    query = sa.select(sa.func.count()).where(erasures.c.finished_at.is_(None))
    return int(connection.execute(query).scalar_one())


def privacy(connection: sa.Connection) -> PrivacyFacts:
    """What users decided about training on their tips."""
    row = tip_scores.c
    refused = sa.select(sa.func.count(), sa.func.count(row.user_key.distinct()))
    # In the words of the index: SQLite finds it by them alone.
    refused = refused.where(sa.text("NOT training_allowed"))
    tips, users = connection.execute(refused).one()
    # One decision is written under each of a user's marks, all of one moment.
    decided = sa.select(
        sa.func.count(consents.c.decided_at.distinct()), sa.func.max(consents.c.decided_at)
    )
    count, last = connection.execute(decided).one()
    return PrivacyFacts(tips, users, count, last)


def actions(connection: sa.Connection) -> list[sa.RowMapping]:
    """What was done on the pages, the newest first."""
    query = sa.select(page_actions).order_by(page_actions.c.action_id.desc())
    return list(connection.execute(query.limit(ACTIONS_SHOWN)).mappings())


def latest_tips(
    connection: sa.Connection, rollout_id: str, *, limit: int = TIPS_SHOWN
) -> dict[str, list[sa.RowMapping]]:
    """The texts that each arm of a rollout showed last; for readers with the scope for texts."""
    row = tip_scores.c
    columns = (row.kind, row.tip_content, row.model_version, row.shown_at, row.reaction)
    found = {}
    for arm in ("champion", "challenger"):
        of_arm = sa.select(*columns).where(
            row.rollout_id == rollout_id,
            row.arm == arm,
            row.shown_at.is_not(None),
            row.tip_content != "",
        )
        newest = of_arm.order_by(row.shown_at.desc()).limit(limit)
        found[arm] = list(connection.execute(newest).mappings())
    return found


def latest_choices(
    connection: sa.Connection, rollout_id: str, *, limit: int = CHOICES_SHOWN
) -> list[Mapping[str, Any]]:
    """The candidates of the tips of a rollout among which a reward chose last, the newest first.

    For readers with the scope for texts.
    """
    row = tip_scores.c
    query = sa.select(row.choice_json).where(
        row.rollout_id == rollout_id, row.shown_at.is_not(None), row.choice_json.is_not(None)
    )
    newest = query.order_by(row.shown_at.desc()).limit(CHOICES_READ)
    found = (json.loads(text) for text in connection.execute(newest).scalars())
    return [each for each in found if each["problem"] is None][:limit]


def rollout_of_version(connection: sa.Connection, version: int) -> str | None:
    """The rollout in which a version was the challenger first."""
    row = rollouts.c
    query = sa.select(row.rollout_id).where(row.challenger == version).order_by(row.opened_at)
    return connection.execute(query.limit(1)).scalar()


def days_ago(now: datetime, days: int) -> date:
    """The UTC day so many days before this moment."""
    return (now.astimezone(UTC) - timedelta(days=days)).date()


def _trial(
    connection: sa.Connection,
    rollout: Rollout,
    closed_at: datetime | None,
    verdict: Verdict | None,
    shadow: ShadowReport | None,
) -> Trial:
    row = decisions.c
    query = sa.select(row.at, row.actor, row.verdict, row.reason, row.numbers_json)
    of_it = query.where(row.rollout_id == rollout.rollout_id).order_by(row.decision_id)
    taken = tuple(
        Decision(at, actor, verdict, reason, json.loads(numbers))
        for at, actor, verdict, reason, numbers in connection.execute(of_it)
    )
    summaries = summaries_of(connection, [rollout.rollout_id])
    path = summaries[0].figures if summaries else {}
    return Trial(rollout, taken, closed_at, verdict, path, shadow)


def _erasure(row: sa.RowMapping) -> ErasureFacts:
    numbers, reached = json.loads(row["numbers_json"]), json.loads(row["runs_json"])
    done = json.loads(row["steps_json"])
    same = ("erasure_id", "scope", "actor", "reason", "asked_at", "finished_at")
    left = [] if row["finished_at"] else [STEP_NAMES[step] for step in STEPS if step not in done]
    return ErasureFacts(
        **{name: row[name] for name in same},
        people=numbers.get("people"),
        rows=numbers.get("rows_removed", 0),
        kept=numbers.get("rows_blanked", 0),
        runs=tuple(sorted(reached)),
        learned=sum(each["learned"] for each in reached.values()),
        left=tuple(left),
    )
