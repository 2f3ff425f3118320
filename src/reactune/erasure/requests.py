"""The journal of erasures: who or what is to go, and how far each has come.

Asking for an erasure empties the database in the same transaction that writes it down; what lies
in files and in the registry is left to `erasing.py`, which reads here what is still to be done.
"""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from reactune.privacy.consent import (
    add_tombstones,
    chunks,
    key_ids,
    lock_for_erasing,
    record_consent,
)
from reactune.privacy.hashing import (
    HashingKey,
    HashingKeys,
    fingerprint_of,
    fingerprints_of,
    hashed_ids,
    texts_in,
)
from reactune.store.database import inserting, writing
from reactune.store.queries import current_rollout
from reactune.store.schema import erased_prints, erasures, metadata, tip_scores


@dataclass(frozen=True)
class Left:
    """What a person's rows said, which is to be found nowhere any more."""

    tip_ids: set[str] = field(default_factory=set, repr=False)
    texts: set[str] = field(default_factory=set, repr=False)

    def add(self, tip_id: str, tip: str, context_json: str) -> None:
        """One row."""
        self.tip_ids.add(tip_id)
        self.texts.update((tip_id, tip, *texts_in(context_json)))


def rows_of(connection: sa.Connection, marks: Mapping[str, str]) -> dict[str, Left]:
    """What the rows of these people say, by mark; `marks` maps each `user_key` to one."""
    row = tip_scores.c
    left: dict[str, Left] = defaultdict(Left)
    query = sa.select(row.user_key, row.tip_id, row.tip_content, row.context_json)
    for some in chunks(marks):
        for user_key, *said in connection.execute(query.where(row.user_key.in_(some))):
            left[marks[user_key]].add(*said)
    return left


def add_prints(connection: sa.Connection, key: HashingKey, left: Mapping[str, Left]) -> None:
    """Keep fingerprints of what goes, by the mark of the person, so that a search can look for it.

    They are made with the key, and tell nobody without it anything.
    """
    prints = {
        (mark, each)
        for mark, theirs in left.items()
        for each in (
            *(fingerprint_of(key, tip_id) for tip_id in theirs.tip_ids),
            *(each for text in theirs.texts for each in fingerprints_of(key, text)),
        )
    }
    if prints:
        insert = inserting(connection, erased_prints).on_conflict_do_nothing()
        rows = [{"mark": mark, "print": each} for mark, each in sorted(prints)]
        connection.execute(insert, rows)


def remove_rows(connection: sa.Connection, column: str, values: Iterable[str]) -> dict[str, int]:
    """Take rows out of every table that has this column; how many were removed and blanked."""
    counts: dict[str, int] = defaultdict(int)
    for some in chunks(values):
        for table in metadata.tables.values():
            if column in table.c:
                _remove(connection, table, table.c[column].in_(some), counts)
    return {name: counts[name] for name in ("rows_removed", "rows_blanked")}


def remove_expired(connection: sa.Connection, older_than: datetime | None) -> dict[str, int]:
    """Take rows of people from before a moment out of the database."""
    counts: dict[str, int] = defaultdict(int)
    for table in metadata.tables.values():
        if older_than and {"user_key", "created_at"} <= set(table.c.keys()):
            _remove(connection, table, table.c.created_at < older_than, counts)
    return {name: counts[name] for name in ("rows_removed", "rows_blanked")}


def _remove(
    connection: sa.Connection,
    table: sa.Table,
    condition: sa.ColumnElement[bool],
    counts: dict[str, int],
) -> None:
    if table is tip_scores:
        counts["rows_blanked"] += _blank_exposures(connection, condition)
        condition = condition & (table.c.key_id != "")
    counts["rows_removed"] += connection.execute(table.delete().where(condition)).rowcount


def _blank_exposures(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
    """Leave arm, time and reaction of the running trial's exposures, under names of no meaning.

    Without them the trial would forget whom a challenger made leave. They go when it ends.
    """
    row, live = tip_scores.c, current_rollout(connection)
    if live is None or live.challenger is None:
        return 0
    counted = (row.rollout_id == live.rollout_id) & row.shown_at.is_not(None)
    chosen = condition & counted & row.arm.is_not(None) & (row.key_id != "")
    units: dict[str | None, str] = defaultdict(lambda: secrets.token_hex(16))
    found = connection.execute(sa.select(row.tip_id, row.unit_key).where(chosen)).all()
    changes = [
        {
            "known": tip_id,
            "new": secrets.token_hex(16),
            "person": secrets.token_hex(32),
            "unit": units[unit],
        }
        for tip_id, unit in found
    ]
    blank: dict[str, object] = {
        "tip_id": sa.bindparam("new"),
        "user_key": sa.bindparam("person"),
        "unit_key": sa.bindparam("unit"),
        **dict.fromkeys(("key_id", "kind", "tip_content"), ""),
        **dict.fromkeys(("sampling_json", "reacted_at", "answer_ms")),
        "context_json": "{}",
        "created_at": row.shown_at,
        "training_allowed": False,
    }
    if changes:
        update = tip_scores.update().where(row.tip_id == sa.bindparam("known")).values(blank)
        connection.execute(update, changes)
    return len(changes)


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
    hashing_keys: HashingKeys,
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
    names = [hashed_ids(hashing_keys, user_id) for user_id in dict.fromkeys(user_ids)]
    marks = {each.user_key: person[0].mark for person in names for each in person}
    everyone = [each for person in names for each in person]
    with writing(engine) as connection:
        lock_for_erasing(connection)
        left = rows_of(connection, marks)
        add_prints(connection, hashing_keys.current, left)
        add_tombstones(connection, everyone, now=now)
        record_consent(connection, everyone, allowed=False, now=now)
        tips = {tip_id for theirs in left.values() for tip_id in theirs.tip_ids}
        numbers = {
            "people": len(names),
            **remove_rows(connection, "user_key", marks),
            "keys_not_given": sorted(key_ids(connection).keys() - hashing_keys.key_ids),
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
        lock_for_erasing(connection)
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
