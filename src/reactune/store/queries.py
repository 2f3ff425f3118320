"""Rows of scores, model versions, rollouts and decisions; at most one rollout is open at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from reactune.errors import CanaryError, DataError
from reactune.records import ModelVersion, Reason, Rollout, Verdict, canonical_json
from reactune.store.database import ROLLOUT_LOCK, insert_new, lock, upsert
from reactune.store.schema import (
    decisions,
    model_versions,
    retrainings,
    rollouts,
    silent_answers,
    tip_scores,
)

NOTHING_LIVE = "nothing is live yet; `reactune deploy --base` makes the base model champion"
_ROLLOUT = sa.select(*(rollouts.c[each.name] for each in fields(Rollout)))
_LIVE = _ROLLOUT.where(rollouts.c.closed_at.is_(None))  # built once: the service asks often
AFTER = "-after"  # what follows a rollout is named after it


def upsert_scores(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of `tip_scores`; where a tip_id is known, only the columns named change.

    All rows of one call name the same columns. Of two rows with one tip_id the later wins.

    Raises:
        DataError: the rows name different columns, or a time has no offset.
    """
    upsert(connection, tip_scores, rows)


def add_model_version(connection: sa.Connection, model: ModelVersion, created_at: datetime) -> None:
    """Register a version; repeating it changes nothing.

    Raises:
        DataError: the number or the name already belongs to another model.
    """
    row = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(model).items()}
    insert_new(connection, model_versions, [{**row, "created_at": created_at}])
    if model not in all_model_versions(connection):
        raise DataError(
            f"model version {model.version} ({model.name}) is already registered as another model; "
            "register it under the next number"
        )


def model_version(connection: sa.Connection, version: int) -> ModelVersion:
    """The registered version of this number.

    Raises:
        DataError: there is none.
    """
    for model in all_model_versions(connection):
        if model.version == version:
            return model
    raise DataError(f"model version {version} is not registered; `reactune status` lists those")


def all_model_versions(connection: sa.Connection) -> tuple[ModelVersion, ...]:
    """Every registered version, oldest first."""
    rows = connection.execute(sa.select(model_versions).order_by("version")).mappings()
    return tuple(_model_version(row) for row in rows)


def current_rollout(connection: sa.Connection) -> Rollout | None:
    """What is live, or None before the first rollout."""
    row = connection.execute(_LIVE).one_or_none()
    return None if row is None else Rollout(*row)


def ended_trial(connection: sa.Connection, challenger: int) -> Rollout | None:
    """The last rollout of this challenger that has ended, or None."""
    ended = (rollouts.c.challenger == challenger) & rollouts.c.closed_at.is_not(None)
    newest_first = _ROLLOUT.where(ended).order_by(rollouts.c.closed_at.desc())
    row = connection.execute(newest_first.limit(1)).one_or_none()
    return None if row is None else Rollout(*row)


def live_rollout(connection: sa.Connection) -> Rollout:
    """What is live.

    Raises:
        CanaryError: nothing is live yet.
    """
    rollout = current_rollout(connection)
    if rollout is None:
        raise CanaryError(NOTHING_LIVE)
    return rollout


def hold_rollout(connection: sa.Connection) -> Rollout | None:
    """What is live, and stays so until this `writing` transaction ends."""
    lock(connection, ROLLOUT_LOCK)
    return current_rollout(connection)


def open_rollout(connection: sa.Connection, rollout: Rollout) -> None:
    """Make this rollout live in place of an idle one, or of one whose holdback it ends.

    Raises:
        CanaryError: a challenger is still running.
        DataError: a model version is not registered.
    """
    live = hold_rollout(connection)
    if live is not None and live.challenger is not None and live.phase != "holdback":
        raise CanaryError(
            f"rollout {live.rollout_id} is still running (challenger {live.challenger}); "
            "`reactune promote` or `reactune rollback` ends it"
        )
    if live is not None:
        ended = {"phase": "closed", "closed_at": rollout.opened_at}
        _change_open(connection, live.rollout_id, ended)
    _make_live(connection, rollout)


def update_rollout(connection: sa.Connection, rollout: Rollout, *, why: Reason) -> None:
    """Move the open rollout to another phase and share, and record why; the rest is fixed.

    Raises:
        CanaryError: the rollout was closed meanwhile.
    """
    lock(connection, ROLLOUT_LOCK)
    moved = {"phase": rollout.phase, "share": rollout.share, "share_since": rollout.share_since}
    _change_open(connection, rollout.rollout_id, moved)
    add_decision(connection, rollout.rollout_id, "wait", why=why)


def close_rollout(
    connection: sa.Connection,
    rollout_id: str,
    verdict: Verdict,
    *,
    why: Reason,
    successor: Rollout,
) -> None:
    """End the open rollout by this verdict, record it, and make the successor live.

    Raises:
        CanaryError: the rollout was closed meanwhile.
        DataError: a model version is not registered.
    """
    lock(connection, ROLLOUT_LOCK)
    ended = {"phase": "closed", "closed_at": why.now, "verdict": verdict}
    _change_open(connection, rollout_id, ended)
    add_decision(connection, rollout_id, verdict, why=why)
    # Exposures of users erased meanwhile were kept, without a key, for this decision only.
    of_nobody = (tip_scores.c.rollout_id == rollout_id) & (tip_scores.c.key_id == "")
    connection.execute(tip_scores.delete().where(of_nobody))
    of_it = silent_answers.c.rollout_id == rollout_id
    connection.execute(silent_answers.delete().where(of_it))
    _make_live(connection, successor)


def add_decision(
    connection: sa.Connection, rollout_id: str, verdict: Verdict, *, why: Reason
) -> None:
    """Record a verdict on a rollout, with its reason and the numbers it was taken on."""
    row = {
        "rollout_id": rollout_id,
        "at": why.now,
        "actor": why.actor,
        "verdict": verdict,
        "reason": why.text,
        "numbers_json": canonical_json(dict(why.numbers)),
    }
    connection.execute(decisions.insert(), row)


def last_estimate(connection: sa.Connection, rollout_id: str) -> float | None:
    """The challenger's lead in the last review of a rollout that estimated one, else None."""
    query = sa.select(decisions.c.numbers_json).where(decisions.c.rollout_id == rollout_id)
    for numbers in connection.execute(query.order_by(decisions.c.decision_id.desc())).scalars():
        if (estimate := json.loads(numbers).get("estimate")) is not None:
            return float(estimate)
    return None


def _model_version(row: sa.RowMapping) -> ModelVersion:
    values = {each.name: row[each.name] for each in fields(ModelVersion)}
    named = ("gguf", "prompt_folder", "adapter", "reward")
    paths = {name: Path(values[name]) for name in named if values[name]}
    return ModelVersion(**{**values, **paths})


def _make_live(connection: sa.Connection, rollout: Rollout) -> None:
    for version in (rollout.champion, rollout.challenger):
        if version is not None:
            model_version(connection, version)
    connection.execute(rollouts.insert(), asdict(rollout))


def _change_open(connection: sa.Connection, rollout_id: str, change: Mapping[str, Any]) -> None:
    is_open = (rollouts.c.rollout_id == rollout_id) & rollouts.c.closed_at.is_(None)
    if connection.execute(rollouts.update().where(is_open).values(**change)).rowcount != 1:
        raise CanaryError(f"rollout {rollout_id} is not open any more; read again what is live")


def schedule_replacement(connection: sa.Connection, version: int, retrain_by: datetime) -> None:
    """Record that a version was trained on rows of an erased user, and must be replaced by then.

    Of several dates the earliest stays.
    """
    row = {"version": version, "retrain_by": retrain_by}
    upsert(
        connection,
        retrainings,
        [row],
        only_if=lambda new: retrainings.c.retrain_by > new.retrain_by,
    )


def unschedule_replacement(connection: sa.Connection, version: int) -> None:
    """Record that the version was removed, so it needs no replacement any more."""
    connection.execute(retrainings.delete().where(retrainings.c.version == version))


def versions_to_replace(connection: sa.Connection) -> dict[int, datetime]:
    """Versions trained on rows of an erased user, and the date by which each must be replaced."""
    rows = connection.execute(sa.select(retrainings.c.version, retrainings.c.retrain_by))
    return {int(version): retrain_by for version, retrain_by in rows.all()}
