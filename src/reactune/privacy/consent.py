"""Rows of erased users do not come back, and users who refuse training are not learned from.

Holds the consent decisions, the tombstones of erased users, and the admission of new rows. Every
call is part of the caller's transaction.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import sqlalchemy as sa

from reactune.privacy.fingerprints import fingerprint_of
from reactune.privacy.hashing import (
    HashedId,
    HashingKey,
    HashingKeys,
    hashed_ids,
    marks_of,
    rare_hashed_ids,
)
from reactune.store.database import PEOPLE_LOCK, lock, share_lock, upsert, writing
from reactune.store.schema import UtcTime, consents, erased_prints, tip_scores, tombstones

HashedIds = tuple[HashedId, ...]
"""One user's hashed ids, under each key and as earlier versions hashed it; today's one first."""
PER_QUERY = 500  # values in one IN list
EARLIEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class UserStatus:
    """A user's last consent decision, and the time of their last erasure."""

    training_allowed: bool = True
    decided_at: datetime | None = None
    erased_at: datetime | None = None

    def refuses(self, created_at: datetime | None) -> bool:
        """Whether a row of that time, or of an unknown one, was erased and may not come back."""
        return self.erased_at is not None and (created_at is None or created_at <= self.erased_at)


@dataclass(frozen=True)
class UserStatuses:
    """Every user who refuses training or was erased, by mark; for checks on whole batches."""

    hashing_keys: HashingKeys
    by_mark: Mapping[str, UserStatus]

    def of_id(self, user_id: object) -> UserStatus:
        """The status of a raw id, recorded under any of the keys.

        Raises:
            IdError: there is no id in the value.
        """
        marks = (each.mark for each in hashed_ids(self.hashing_keys, user_id))
        return latest_status(map(self.by_mark.get, marks))

    def of_user_key(self, user_key: str) -> UserStatus:
        """The status of a hashed id, whichever key hashed it."""
        return latest_status(map(self.by_mark.get, marks_of(self.hashing_keys, user_key)))


def allow_training(
    engine: sa.Engine, hashing_keys: HashingKeys, user_id: str, *, now: datetime
) -> bool:
    """Later datasets may hold the user's rows, but for those refused or erased before.

    Recorded as well for somebody without a row, then False is returned.
    """
    return _decide(engine, hashing_keys, user_id, allowed=True, now=now)


def refuse_training(
    engine: sa.Engine, hashing_keys: HashingKeys, user_id: str, *, now: datetime
) -> bool:
    """No later dataset holds a row of the user.

    Recorded as well for somebody without a row, then False is returned.
    """
    return _decide(engine, hashing_keys, user_id, allowed=False, now=now)


def record_consent(
    connection: sa.Connection, ids: Iterable[HashedId], *, allowed: bool, now: datetime
) -> None:
    """Record a decision under every given key."""
    values = {"training_allowed": allowed, "decided_at": now}
    _upsert(connection, consents, ids, values)


def add_tombstones(connection: sa.Connection, ids: Iterable[HashedId], *, now: datetime) -> None:
    """Record an erasure under every given key: rows up to `now` do not come back."""
    _upsert(connection, tombstones, ids, {"erased_at": now})


def lock_for_writing(connection: sa.Connection) -> None:
    """Called before rows of users are written: an erasure waits until this transaction ends."""
    share_lock(connection, PEOPLE_LOCK)


def lock_for_erasing(connection: sa.Connection) -> None:
    """Until this transaction ends no other writes rows of users; on SQLite, none writes at all."""
    lock(connection, PEOPLE_LOCK)


def admit(
    connection: sa.Connection, rows: Sequence[tuple[HashedIds, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The rows that may be stored, as they are to be stored; each is given with its user's ids.

    A row that was erased is left out. A row of a user who refuses training is stored as not
    allowed. Rows that stand under an older key of a user, or under what an earlier version hashed,
    are moved to the hash of today, so that caps, splits and consent see one user.
    """
    lock_for_writing(connection)
    users = list(dict.fromkeys(ids for ids, _ in rows))
    known = _read_statuses(connection, [each.mark for ids in users for each in ids])
    status = {ids: latest_status(known.get(each.mark) for each in ids) for ids in users}
    carry_over(connection, users)
    _carry_decisions_over(connection, status, known)
    admitted = []
    for ids, row in rows:
        if status[ids].refuses(row["created_at"]):
            continue
        allowed = status[ids].training_allowed
        admitted.append(row if allowed else {**row, "training_allowed": False})
    return admitted


def carry_over(connection: sa.Connection, users: Iterable[HashedIds]) -> None:
    """Move these users' rows from older keys, and from what was hashed earlier, to `ids[0]`."""
    current = {old.user_key: ids[0] for ids in users for old in ids[1:]}
    column = tip_scores.c.user_key
    for old in sorted(with_rows(connection, current)):
        new = {"user_key": current[old].user_key, "key_id": current[old].key_id}
        connection.execute(tip_scores.update().where(column == old).values(new))


def with_rows(connection: sa.Connection, user_keys: Iterable[str]) -> set[str]:
    """Those under which `tip_scores` has a row."""
    column = tip_scores.c.user_key
    return {
        each
        for some in chunks(user_keys)
        for each in connection.execute(
            sa.select(column).where(column.in_(some)).distinct()
        ).scalars()
    }


def erased_tips(
    connection: sa.Connection, keys: Sequence[HashingKey], tip_ids: Collection[str]
) -> set[str]:
    """Which of these tips were erased."""
    fingerprints = {fingerprint_of(key, tip_id): tip_id for tip_id in tip_ids for key in keys}
    return {
        fingerprints[each]
        for some in chunks(fingerprints)
        for each in connection.execute(_ERASED, {"prints": some}).scalars()
    }


def user_statuses(connection: sa.Connection, hashing_keys: HashingKeys) -> UserStatuses:
    """Every user who refuses training or was erased."""
    return UserStatuses(hashing_keys, _statuses_in(connection.execute(_status_query())))


def key_ids(connection: sa.Connection) -> dict[str, int]:
    """The keys that stored rows are hashed with, and the number of rows of each."""
    column = tip_scores.c.key_id
    query = sa.select(column, sa.func.count()).group_by(column).where(column != "")
    rows = {key_id: int(count) for key_id, count in connection.execute(query)}
    for table in (consents, tombstones):
        for key_id in connection.execute(sa.select(table.c.key_id).distinct()).scalars():
            rows.setdefault(key_id, 0)
    return rows


def status_of_ids(connection: sa.Connection, ids: Sequence[HashedId]) -> UserStatus:
    """The status of one user, who is known by any of these hashed ids."""
    return latest_status(_read_statuses(connection, [each.mark for each in ids]).values())


def latest_status(statuses: Iterable[UserStatus | None]) -> UserStatus:
    """One user's status out of those under each key: the latest decision and erasure."""
    known = [each for each in statuses if each is not None]
    decided = max(known, key=lambda each: each.decided_at or EARLIEST, default=UserStatus())
    erased = [each.erased_at for each in known if each.erased_at]
    return UserStatus(decided.training_allowed, decided.decided_at, max(erased, default=None))


def chunks(values: Iterable[str]) -> Iterator[list[str]]:
    """The values in lists short enough for one query."""
    rest = iter(values)
    while chunk := list(islice(rest, PER_QUERY)):
        yield chunk


def _decide(
    engine: sa.Engine, hashing_keys: HashingKeys, user_id: str, *, allowed: bool, now: datetime
) -> bool:
    ids, rare = hashed_ids(hashing_keys, user_id), rare_hashed_ids(hashing_keys, user_id)
    with writing(engine) as connection:
        lock_for_writing(connection)
        carry_over(connection, [ids + rare])
        record_consent(connection, ids, allowed=allowed, now=now)
        return bool(with_rows(connection, [ids[0].user_key]))


def _read_statuses(connection: sa.Connection, marks: Collection[str]) -> dict[str, UserStatus]:
    found: dict[str, UserStatus] = {}
    for some in chunks(marks):
        found |= _statuses_in(connection.execute(_STATUS_OF_MARKS, {"marks": some}))
    return found


def _statuses_in(rows: Iterable[Any]) -> dict[str, UserStatus]:
    """Statuses by mark, each out of the mark's rows in both tables."""
    found: dict[str, UserStatus] = {}
    for mark, allowed, decided_at, erased_at in rows:
        before = found.get(mark, UserStatus())
        if decided_at is not None:
            found[mark] = UserStatus(allowed, decided_at, before.erased_at)
        else:
            found[mark] = UserStatus(before.training_allowed, before.decided_at, erased_at)
    return found


def _status_query(
    *conditions: Callable[[sa.Table], sa.ColumnElement[bool]],
) -> sa.CompoundSelect[Any]:
    """Mark, training_allowed, decided_at and erased_at; NULL where a table has no such column."""
    decided, erased = consents.c, tombstones.c
    no_decision, no_time = sa.cast(sa.null(), sa.Boolean), sa.cast(sa.null(), UtcTime)
    decisions = sa.select(decided.mark, decided.training_allowed, decided.decided_at, no_time)
    erasures = sa.select(erased.mark, no_decision, no_time, erased.erased_at)
    return sa.union_all(
        decisions.where(*(each(consents) for each in conditions)),
        erasures.where(*(each(tombstones) for each in conditions)),
    )


# Executed for every tip request, so both are built once.
_STATUS_OF_MARKS = _status_query(
    lambda table: table.c.mark.in_(sa.bindparam("marks", expanding=True))
)
_ERASED = sa.select(erased_prints.c.print).where(
    erased_prints.c.print.in_(sa.bindparam("prints", expanding=True))
)


def _carry_decisions_over(
    connection: sa.Connection,
    status: Mapping[HashedIds, UserStatus],
    known: Mapping[str, UserStatus],
) -> None:
    """Record these users' decisions and erasures under their hash of today."""
    for ids, found in status.items():
        if not ids or found == known.get(ids[0].mark, UserStatus()):
            continue
        if found.decided_at:
            allowed = found.training_allowed
            record_consent(connection, ids[:1], allowed=allowed, now=found.decided_at)
        if found.erased_at:
            add_tombstones(connection, ids[:1], now=found.erased_at)


def _upsert(
    connection: sa.Connection,
    table: sa.Table,
    ids: Iterable[HashedId],
    values: Mapping[str, Any],
) -> None:
    rows = [{"mark": each.mark, "key_id": each.key_id, **values} for each in ids]
    upsert(connection, table, rows)
