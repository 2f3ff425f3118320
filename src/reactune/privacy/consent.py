"""What people asked for: not to be learned from, or to be forgotten; and what follows at the door.

Every call is part of a transaction of the caller's. How somebody is forgotten is `journal.py`'s.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import sqlalchemy as sa

from reactune.privacy.hashing import Alias, Key, Keyring, aliases, marks_of, print_of
from reactune.store.database import PEOPLE_LOCK, inserting, lock, share_lock, writing
from reactune.store.schema import UtcTime, consents, erased_prints, tip_scores, tombstones

Aliases = tuple[Alias, ...]
"""What one person is called, under the current key first."""
PER_QUERY = 500  # values in one IN list
LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Standing:
    """What is known of a person: what they decided last, and when they were erased last."""

    training_allowed: bool = True
    decided_at: datetime | None = None
    erased_at: datetime | None = None

    def refuses(self, created_at: datetime | None) -> bool:
        """Whether a row of that time, or of an unknown one, was erased and may not come back."""
        return self.erased_at is not None and (created_at is None or created_at <= self.erased_at)


@dataclass(frozen=True)
class Refusals:
    """Everybody who may not be learned from, for tests on whole batches."""

    keyring: Keyring
    standings: Mapping[str, Standing]

    def of_id(self, user_id: str) -> Standing:
        """The standing of a raw id, under whatever key it was noted."""
        return newest(self.standings.get(each.mark) for each in aliases(self.keyring, user_id))

    def of_user_key(self, user_key: str) -> Standing:
        """The standing of a hashed id; of which key is not known."""
        return newest(self.standings.get(mark) for mark in marks_of(self.keyring, user_key))


def allow_training(engine: sa.Engine, keyring: Keyring, user_id: str, *, now: datetime) -> None:
    """The person's rows may be learned from, but for those that they refused or had erased."""
    _decide(engine, aliases(keyring, user_id), allowed=True, now=now)


def refuse_training(engine: sa.Engine, keyring: Keyring, user_id: str, *, now: datetime) -> None:
    """No later dataset holds a row of the person."""
    _decide(engine, aliases(keyring, user_id), allowed=False, now=now)


def note_consent(
    connection: sa.Connection, names: Iterable[Alias], *, allowed: bool, now: datetime
) -> None:
    """Record what a person decided, under every key."""
    _replace(
        connection,
        consents,
        [
            {
                "mark": each.mark,
                "key_id": each.key_id,
                "training_allowed": allowed,
                "decided_at": now,
            }
            for each in names
        ],
    )


def bury(connection: sa.Connection, names: Iterable[Alias], *, now: datetime) -> None:
    """Record under every key that a person was erased: rows up to now do not come back."""
    rows = [{"mark": each.mark, "key_id": each.key_id, "erased_at": now} for each in names]
    _replace(connection, tombstones, rows)


def keep_door_open(connection: sa.Connection) -> None:
    """Whoever writes rows of people calls this first: an erasure waits for them, then shuts it."""
    share_lock(connection, PEOPLE_LOCK)


def shut_door(connection: sa.Connection) -> None:
    """Until this transaction ends nobody writes rows of people; on SQLite nobody writes at all."""
    lock(connection, PEOPLE_LOCK)


def admit(
    connection: sa.Connection, rows: Sequence[tuple[Aliases, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Those of the rows, given with what their people are called, that may be stored, and how.

    A row that was erased is left out. One of a person who refuses training says so. A person who
    is known under an older key is from now on known under the current one, with all their rows, so
    that caps, splits and consent see one person.
    """
    keep_door_open(connection)
    everybody = list(dict.fromkeys(names for names, _ in rows))
    known = _standings(connection, [one.mark for names in everybody for one in names])
    standing = {names: newest(known.get(one.mark) for one in names) for names in everybody}
    _carry_over(connection, standing, known)
    admitted = []
    for names, row in rows:
        if standing[names].refuses(row["created_at"]):
            continue
        allowed = standing[names].training_allowed
        admitted.append(row if allowed else {**row, "training_allowed": False})
    return admitted


def find_erased(
    connection: sa.Connection, keys: Sequence[Key], tip_ids: Collection[str]
) -> set[str]:
    """Which of these tips were erased."""
    prints = {print_of(key, tip_id): tip_id for tip_id in tip_ids for key in keys}
    return {
        prints[found]
        for some in chunks(prints)
        for found in connection.execute(_ERASED, {"prints": some}).scalars()
    }


_ERASED = sa.select(erased_prints.c.print).where(
    erased_prints.c.print.in_(sa.bindparam("prints", expanding=True))
)


def refusals(connection: sa.Connection, keyring: Keyring) -> Refusals:
    """Everybody who refuses training or was erased."""
    return Refusals(keyring, _standings(connection, None))


def key_ids(connection: sa.Connection) -> dict[str, int]:
    """The keys that stored rows are hashed with, and the number of rows of each."""
    column = tip_scores.c.key_id
    query = sa.select(column, sa.func.count()).group_by(column).where(column != "")
    found = {key_id: int(count) for key_id, count in connection.execute(query)}
    for table in (consents, tombstones):
        for key_id in connection.execute(sa.select(table.c.key_id).distinct()).scalars():
            found.setdefault(key_id, 0)
    return found


def newest(standings: Iterable[Standing | None]) -> Standing:
    """One person's standing out of what is known under each key: the newest of each fact."""
    known = [each for each in standings if each is not None]
    decided = max(known, key=lambda each: each.decided_at or LONG_AGO, default=Standing())
    erased = [each.erased_at for each in known if each.erased_at]
    return Standing(decided.training_allowed, decided.decided_at, max(erased, default=None))


def chunks(values: Iterable[str]) -> Iterator[list[str]]:
    """The values in lists that are not too long for one query."""
    rest = iter(values)
    while chunk := list(islice(rest, PER_QUERY)):
        yield chunk


def _decide(engine: sa.Engine, names: Sequence[Alias], *, allowed: bool, now: datetime) -> None:
    with writing(engine) as connection:
        keep_door_open(connection)
        note_consent(connection, names, allowed=allowed, now=now)


def _standings(connection: sa.Connection, marks: Collection[str] | None) -> dict[str, Standing]:
    """What stands under these marks; under all, if none are named."""
    if marks is None:
        return _read_standings(connection.execute(_all_said()))
    found: dict[str, Standing] = {}
    for some in chunks(marks):
        found |= _read_standings(connection.execute(_SAID_OF_MARKS, {"marks": some}))
    return found


def _read_standings(rows: Iterable[Any]) -> dict[str, Standing]:
    """One standing of the rows of both tables that are of one mark."""
    found: dict[str, Standing] = {}
    for mark, allowed, decided_at, erased_at in rows:
        was = found.get(mark, Standing())
        if decided_at is not None:
            found[mark] = Standing(allowed, decided_at, was.erased_at)
        else:
            found[mark] = Standing(was.training_allowed, was.decided_at, erased_at)
    return found


def _all_said(*conditions: Callable[[sa.Table], sa.ColumnElement[bool]]) -> sa.CompoundSelect[Any]:
    """Mark, training_allowed, decided_at and erased_at: what a row does not know is NULL."""
    decided, erased = consents.c, tombstones.c
    nothing, never = sa.cast(sa.null(), sa.Boolean), sa.cast(sa.null(), UtcTime)
    decisions = sa.select(decided.mark, decided.training_allowed, decided.decided_at, never)
    deaths = sa.select(erased.mark, nothing, never, erased.erased_at)
    return sa.union_all(
        decisions.where(*(each(consents) for each in conditions)),
        deaths.where(*(each(tombstones) for each in conditions)),
    )


# Asked of every tip that is given, so it is put together once.
_SAID_OF_MARKS = _all_said(lambda table: table.c.mark.in_(sa.bindparam("marks", expanding=True)))


def _carry_over(
    connection: sa.Connection,
    standing: Mapping[Aliases, Standing],
    known: Mapping[str, Standing],
) -> None:
    """Under the current key stands what stood under older ones."""
    current = {old.user_key: names[0] for names in standing for old in names[1:]}
    for some in chunks(current):
        theirs = tip_scores.c.user_key
        query = sa.select(theirs).where(theirs.in_(some)).distinct()
        for old in sorted(connection.execute(query).scalars()):
            new = {"user_key": current[old].user_key, "key_id": current[old].key_id}
            connection.execute(tip_scores.update().where(theirs == old).values(new))
    for names, found in standing.items():
        if found == Standing() or names[0].mark in known:
            continue
        if found.decided_at:
            allowed = found.training_allowed
            note_consent(connection, names[:1], allowed=allowed, now=found.decided_at)
        if found.erased_at:
            bury(connection, names[:1], now=found.erased_at)


def _replace(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    insert = inserting(connection, table)
    changes = {name: insert.excluded[name] for name in rows[0] if name != "mark"}
    upsert = insert.on_conflict_do_update(index_elements=["mark"], set_=changes)
    connection.execute(upsert, [dict(row) for row in rows])
