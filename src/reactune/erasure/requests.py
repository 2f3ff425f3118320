"""The journal of erasures: requesting one erases the database's rows in the same transaction.

The journal holds what each erasure must erase elsewhere, and which steps are done. Fingerprints of
erased texts are kept under the user's mark, so that `verify` can search for them.
"""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    with_rows,
)
from reactune.privacy.fingerprints import fingerprint_of, fingerprints_of
from reactune.privacy.hashing import HashingKey, HashingKeys, hashed_ids, rare_hashed_ids
from reactune.store.database import insert_new, reading, writing
from reactune.store.queries import current_rollout
from reactune.store.schema import erased_prints, erasures, metadata, tip_scores

Scope = Literal["people", "expired"]
Actor = Literal["hand", "service"]
STEPS = ("rows", "runs", "registry", "targets", "files")
"""The steps of an erasure, in their order. After `targets` the journal names no user any more."""


@dataclass(frozen=True)
class RunMatch:
    """What a run held of an erasure's targets. `learned`: its model was trained on it."""

    rows: int
    learned: bool


@dataclass(frozen=True)
class Erasure:
    """One erasure as the journal has it. Its targets are empty once they are erased everywhere."""

    erasure_id: str
    scope: Scope
    actor: Actor
    reason: str
    asked_at: datetime
    older_than: datetime | None
    marks: Mapping[str, str] = field(repr=False)
    """Each `user_key` to erase, and the mark of its user."""
    tip_ids: frozenset[str] = field(repr=False)
    runs: Mapping[str, RunMatch]
    """Each run that held a target."""
    steps: tuple[str, ...]
    numbers: Mapping[str, Any]
    finished_at: datetime | None


@dataclass(frozen=True)
class ErasedTexts:
    """The tip ids and texts of a user's rows, of which no copy may be left."""

    tip_ids: set[str] = field(default_factory=set, repr=False)
    texts: set[str] = field(default_factory=set, repr=False)

    def add(self, tip_id: str, tip: str, context_json: str) -> None:
        """Add those of one row."""
        self.tip_ids.add(tip_id)
        self.texts.update((tip_id, tip, *texts_in(context_json)))


def request_erasure(
    engine: sa.Engine,
    hashing_keys: HashingKeys,
    user_ids: Iterable[str],
    *,
    actor: Actor,
    reason: str,
    now: datetime,
) -> Erasure:
    """Erase these users from the database, and record that they are to be erased everywhere.

    Their tombstones keep rows up to `now` from coming back, and later rows are not learned from
    until they allow it again. Somebody without a row is recorded as well; the numbers say which
    ids, counted from 1, these are. Safe to repeat.

    Raises:
        IdError: one of the ids is none.
    """
    spellings = list(dict.fromkeys(user_ids))
    users = [hashed_ids(hashing_keys, user_id) for user_id in spellings]
    rare = [rare_hashed_ids(hashing_keys, user_id) for user_id in spellings]
    marks = {
        each.user_key: ids[0].mark
        for ids, more in zip(users, rare, strict=True)
        for each in (*ids, *more)
    }
    all_ids = list(dict.fromkeys(each for ids in users for each in ids))
    with writing(engine) as connection:
        lock_for_erasing(connection)
        known = {marks[each] for each in _known(connection, marks)}
        texts = _texts_of(connection, marks)
        add_fingerprints(connection, hashing_keys.current, texts)
        add_tombstones(connection, all_ids, now=now)
        record_consent(connection, all_ids, allowed=False, now=now)
        tips = {tip_id for each in texts.values() for tip_id in each.tip_ids}
        numbers = {
            "people": len({ids[0] for ids in users}),
            "unknown": [
                number for number, ids in enumerate(users, start=1) if ids[0].mark not in known
            ],
            **_erase_rows(connection, "user_key", marks),
            "keys_not_given": sorted(key_ids(connection).keys() - hashing_keys.key_ids),
        }
        _erase_rows(connection, "tip_id", tips)  # reactions that wait for these tips
        return _record(
            connection,
            scope="people",
            actor=actor,
            reason=reason,
            asked_at=now,
            targets={"marks": marks, "tip_ids": sorted(tips)},
            numbers=numbers,
        )


def request_expiry(
    engine: sa.Engine, *, older_than: datetime | None, actor: Actor, now: datetime
) -> Erasure:
    """Erase rows from before a moment from the database, and record that runs are to follow."""
    reason = f"older than {older_than:%Y-%m-%d}" if older_than else "models without use"
    with writing(engine) as connection:
        lock_for_erasing(connection)
        return _record(
            connection,
            scope="expired",
            actor=actor,
            reason=reason,
            asked_at=now,
            older_than=older_than,
            targets={},
            numbers=_erase_expired_rows(connection, older_than),
        )


def all_erasures(connection: sa.Connection) -> tuple[Erasure, ...]:
    """Every erasure that was requested, oldest first."""
    query = sa.select(erasures).order_by(erasures.c.asked_at, erasures.c.erasure_id)
    return tuple(_erasure(row) for row in connection.execute(query).mappings())


def open_erasures(connection: sa.Connection) -> tuple[Erasure, ...]:
    """The erasures that are not finished, oldest first."""
    return tuple(each for each in all_erasures(connection) if each.finished_at is None)


def erasures_of(engine: sa.Engine, ids: Sequence[str]) -> list[Erasure]:
    """These erasures as the journal has them now, oldest first."""
    with reading(engine) as connection:
        return [each for each in all_erasures(connection) if each.erasure_id in ids]


def record_run(connection: sa.Connection, erasure_id: str, run_id: str, match: RunMatch) -> None:
    """Record what a run holds, before it is erased from the run.

    After a kill a repetition may match less; the larger number stays.
    """
    row = erasures.c
    query = sa.select(row.runs_json).where(row.erasure_id == erasure_id)
    runs = json.loads(connection.execute(query).scalar_one())
    before = RunMatch(**runs.get(run_id, asdict(RunMatch(0, learned=False))))
    largest = RunMatch(max(before.rows, match.rows), before.learned or match.learned)
    change = {"runs_json": json.dumps({**runs, run_id: asdict(largest)})}
    connection.execute(erasures.update().where(row.erasure_id == erasure_id).values(change))


def record_step(connection: sa.Connection, these: Sequence[Erasure], step: str) -> None:
    """Record that a step of these erasures is done."""
    for each in these:
        _change(connection, [each], {"steps_json": json.dumps([*each.steps, step])})


def erase_targets(connection: sa.Connection, these: Sequence[Erasure]) -> None:
    """Erase from the journal itself which users and tips these erasures were about."""
    _change(connection, these, {"targets_json": "{}"})


def close(connection: sa.Connection, these: Sequence[Erasure], *, now: datetime) -> None:
    """Record that these erasures are finished."""
    _change(connection, these, {"finished_at": now})


def add_fingerprints(
    connection: sa.Connection, key: HashingKey, texts: Mapping[str, ErasedTexts]
) -> None:
    """Store fingerprints of what is erased, by the mark of its user.

    They are made with the key: without it, nothing can be compared with them.
    """
    fingerprints = {
        (mark, each)
        for mark, erased in texts.items()
        for each in (
            *(fingerprint_of(key, tip_id) for tip_id in erased.tip_ids),
            *(each for text in erased.texts for each in fingerprints_of(key, text)),
        )
    }
    rows = [{"mark": mark, "print": each} for mark, each in sorted(fingerprints)]
    insert_new(connection, erased_prints, rows)


def texts_in(context_json: str) -> Iterator[str]:
    """The names and texts in a context; the context itself where it is no JSON."""
    try:
        yield from _strings(json.loads(context_json))
    except (ValueError, RecursionError):
        yield context_json


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _known(connection: sa.Connection, marks: Mapping[str, str]) -> set[str]:
    """The hashed ids with a row, or with one that an unfinished erasure has removed."""
    waiting = {user_key for each in open_erasures(connection) for user_key in each.marks}
    return with_rows(connection, marks) | (waiting & marks.keys())


def _texts_of(connection: sa.Connection, marks: Mapping[str, str]) -> dict[str, ErasedTexts]:
    """The texts of these users' rows, by mark; `marks` maps each `user_key` to one."""
    row = tip_scores.c
    texts: dict[str, ErasedTexts] = defaultdict(ErasedTexts)
    query = sa.select(row.user_key, row.tip_id, row.tip_content, row.context_json)
    for some in chunks(marks):
        for user_key, *columns in connection.execute(query.where(row.user_key.in_(some))):
            texts[marks[user_key]].add(*columns)
    return texts


def _erase_rows(connection: sa.Connection, column: str, values: Iterable[str]) -> dict[str, int]:
    """Erase rows from every table that has this column; how many were removed and blanked."""
    counts: dict[str, int] = defaultdict(int)
    for some in chunks(values):
        for table in metadata.tables.values():
            if column in table.c:
                _erase(connection, table, table.c[column].in_(some), counts)
    return {name: counts[name] for name in ("rows_removed", "rows_blanked")}


def _erase_expired_rows(connection: sa.Connection, older_than: datetime | None) -> dict[str, int]:
    """Erase rows of users from before a moment; how many were removed and blanked."""
    counts: dict[str, int] = defaultdict(int)
    for table in metadata.tables.values():
        if older_than and {"user_key", "created_at"} <= set(table.c.keys()):
            _erase(connection, table, table.c.created_at < older_than, counts)
    return {name: counts[name] for name in ("rows_removed", "rows_blanked")}


def _erase(
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
    """Keep arm, time and reaction of the open rollout's exposures, under random ids.

    Without them the comparison would not count users who leave because of the challenger. They
    are removed when the rollout ends.
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
        **dict.fromkeys(("sampling_json", "choice_json", "reacted_at", "answer_ms")),
        "context_json": "{}",
        "created_at": row.shown_at,
        "training_allowed": False,
    }
    if changes:
        update = tip_scores.update().where(row.tip_id == sa.bindparam("known")).values(blank)
        connection.execute(update, changes)
    return len(changes)


def _record(
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
        runs={name: RunMatch(**match) for name, match in runs.items()},
        steps=tuple(json.loads(row["steps_json"])),
        numbers=json.loads(row["numbers_json"]),
        finished_at=row["finished_at"],
    )
