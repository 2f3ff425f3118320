"""The journal of erasures: who or what is to go, and how far each has come.

Asking for an erasure empties the database in the same transaction that writes it down; what lies
in files and in the registry is left to `erasing.py`, which reads here what is still to be done.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from reactune.database import inserting, writing
from reactune.keyring import Keyring, aliases
from reactune.people import bury, key_ids, note_consent, shut_door
from reactune.removal import add_prints, remove_expired, remove_rows, rows_of
from reactune.schema import erasures, retrainings

Scope = Literal["people", "expired"]
Actor = Literal["hand", "service"]
STEPS = ("rows", "runs", "registry", "targets", "files")
"""What an erasure does, in this order. After the fourth the journal knows nobody any more."""


@dataclass(frozen=True)
class Held:
    """What a run held of an erasure's targets. `learned` says that its model was trained on it."""

    rows: int
    learned: bool


@dataclass(frozen=True)
class Erasure:
    """One erasure as the journal has it. Its targets are empty once they are gone everywhere."""

    erasure_id: str
    scope: Scope
    actor: Actor
    reason: str
    asked_at: datetime
    older_than: datetime | None
    marks: Mapping[str, str] = field(repr=False)
    """Each `user_key` that is to go, and the mark that it leaves."""
    tip_ids: frozenset[str] = field(repr=False)
    runs: Mapping[str, Held]
    """Each run in which something was found."""
    steps: tuple[str, ...]
    numbers: Mapping[str, Any]
    finished_at: datetime | None


def ask_for_people(
    engine: sa.Engine,
    keyring: Keyring,
    user_ids: Iterable[str],
    *,
    actor: Actor,
    reason: str,
    now: datetime,
) -> Erasure:
    """Take these people out of the database, and write down that they are to go everywhere.

    Their tombstones keep rows up to `now` from coming back, and they are not learned from until
    they say otherwise. Repeating it is harmless.
    """
    names = [aliases(keyring, user_id) for user_id in dict.fromkeys(user_ids)]
    marks = {each.user_key: person[0].mark for person in names for each in person}
    everyone = [each for person in names for each in person]
    with writing(engine) as connection:
        shut_door(connection)
        left = rows_of(connection, marks)
        add_prints(connection, keyring.current, left)
        bury(connection, everyone, now=now)
        note_consent(connection, everyone, allowed=False, now=now)
        tips = {tip_id for theirs in left.values() for tip_id in theirs.tip_ids}
        numbers = {
            "people": len(names),
            **remove_rows(connection, "user_key", marks),
            "keys_not_given": sorted(key_ids(connection).keys() - keyring.key_ids),
        }
        remove_rows(connection, "tip_id", tips)  # reactions that wait for these tips
        targets = {"marks": marks, "tip_ids": sorted(tips)}
        return _write(
            connection,
            scope="people",
            actor=actor,
            reason=reason,
            asked_at=now,
            targets=targets,
            numbers=numbers,
        )


def ask_for_expired(
    engine: sa.Engine, *, older_than: datetime | None, actor: Actor, now: datetime
) -> Erasure:
    """Take rows from before a moment out of the database, and write down that they are to go."""
    reason = f"older than {older_than:%Y-%m-%d}" if older_than else "models without use"
    with writing(engine) as connection:
        shut_door(connection)
        return _write(
            connection,
            scope="expired",
            actor=actor,
            reason=reason,
            asked_at=now,
            older_than=older_than,
            targets={},
            numbers=remove_expired(connection, older_than),
        )


def all_erasures(connection: sa.Connection) -> tuple[Erasure, ...]:
    """Every erasure that was asked for, oldest first."""
    query = sa.select(erasures).order_by(erasures.c.asked_at, erasures.c.erasure_id)
    return tuple(_erasure(row) for row in connection.execute(query).mappings())


def open_erasures(connection: sa.Connection) -> tuple[Erasure, ...]:
    """Those that are not finished, oldest first."""
    return tuple(each for each in all_erasures(connection) if each.finished_at is None)


def note_run(connection: sa.Connection, erasure_id: str, run_id: str, held: Held) -> None:
    """Write down that a run holds what is to go, before it is taken out of it."""
    row = erasures.c
    known = sa.select(row.runs_json).where(row.erasure_id == erasure_id)
    runs = json.loads(connection.execute(known).scalar_one())
    was = Held(**runs.get(run_id, asdict(Held(0, learned=False))))
    # After a kill less may be found than there was.
    runs[run_id] = asdict(Held(max(was.rows, held.rows), was.learned or held.learned))
    change = {"runs_json": json.dumps(runs)}
    connection.execute(erasures.update().where(row.erasure_id == erasure_id).values(change))


def replace_version(connection: sa.Connection, version: int, retrain_by: datetime) -> None:
    """The version learned from somebody who was erased, and must be replaced by then.

    Of several dates the earliest stands.
    """
    insert = inserting(connection, retrainings).values(version=version, retrain_by=retrain_by)
    date = insert.excluded.retrain_by
    connection.execute(
        insert.on_conflict_do_update(
            index_elements=["version"],
            set_={"retrain_by": date},
            where=retrainings.c.retrain_by > date,
        )
    )


def forget_version(connection: sa.Connection, version: int) -> None:
    """The version is gone, and nothing is to be done about it any more."""
    connection.execute(retrainings.delete().where(retrainings.c.version == version))


def note_step(connection: sa.Connection, these: Sequence[Erasure], step: str) -> None:
    """Write down that a step is done for all of these."""
    for each in these:
        steps = json.dumps([*each.steps, step])
        _change(connection, [each], {"steps_json": steps})


def forget_targets(connection: sa.Connection, these: Sequence[Erasure]) -> None:
    """The journal itself says no more who was to go."""
    _change(connection, these, {"targets_json": "{}"})


def close(connection: sa.Connection, these: Sequence[Erasure], *, now: datetime) -> None:
    """Nothing is left to do for these."""
    _change(connection, these, {"finished_at": now})


def versions_to_replace(connection: sa.Connection) -> dict[int, datetime]:
    """Versions that learned from somebody who was erased, and the date by which each must go."""
    rows = connection.execute(sa.select(retrainings.c.version, retrainings.c.retrain_by))
    return {int(version): retrain_by for version, retrain_by in rows.all()}


def _write(
    connection: sa.Connection,
    *,
    asked_at: datetime,
    targets: Mapping[str, Any],
    numbers: Mapping[str, Any],
    **values: Any,
) -> Erasure:
    row = {
        "erasure_id": f"{asked_at:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}",
        "asked_at": asked_at,
        "targets_json": json.dumps(targets),
        "runs_json": "{}",
        "steps_json": json.dumps(["rows"]),
        "numbers_json": json.dumps(numbers),
        **values,
    }
    connection.execute(erasures.insert(), row)
    query = sa.select(erasures).where(erasures.c.erasure_id == row["erasure_id"])
    return _erasure(connection.execute(query).mappings().one())


def _change(connection: sa.Connection, these: Sequence[Erasure], change: Mapping[str, Any]) -> None:
    ids = [each.erasure_id for each in these]
    connection.execute(erasures.update().where(erasures.c.erasure_id.in_(ids)).values(change))


def _erasure(row: sa.RowMapping) -> Erasure:
    targets, runs = json.loads(row["targets_json"]), json.loads(row["runs_json"])
    same = ("erasure_id", "scope", "actor", "reason", "asked_at", "older_than")
    return Erasure(
        **{name: row[name] for name in same},
        marks=targets.get("marks", {}),
        tip_ids=frozenset(targets.get("tip_ids", ())),
        runs={name: Held(**held) for name, held in runs.items()},
        steps=tuple(json.loads(row["steps_json"])),
        numbers=json.loads(row["numbers_json"]),
        finished_at=row["finished_at"],
    )
