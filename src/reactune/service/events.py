"""Group commit: facts of many requests in one transaction, each confirmed when it is on disk.

One thread writes, so that SQLite has one writer; what is written is in `exposures.py`.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from reactune.errors import AwayError, DataError
from reactune.privacy.consent import HashedIds, admit, erased_tips
from reactune.privacy.hashing import HashingKey
from reactune.records import Reaction
from reactune.store.database import writing
from reactune.store.schema import UtcTime, early_reactions, rollouts, silent_answers, tip_scores

Written = Literal["recorded", "kept", "erased"]
KEEP_EARLY = timedelta(days=30)


@dataclass(frozen=True)
class Given:
    """A tip, as a row of `tip_scores`, and what its user is called.

    `awaited` unless nobody knew the tip's id before: then no reaction can wait for it.
    """

    row: Mapping[str, Any]
    names: HashedIds = field(default=(), repr=False)
    awaited: bool = True

    @property
    def tip_id(self) -> str:
        """The tip that was given."""
        return str(self.row["tip_id"])


@dataclass(frozen=True)
class Shown:
    """The user saw a tip."""

    tip_id: str
    at: datetime


@dataclass(frozen=True)
class Reacted:
    """The user did something with a tip."""

    tip_id: str
    reaction: Reaction
    dwell_ms: int
    at: datetime


@dataclass(frozen=True)
class Silent:
    """A challenger answered where nobody saw it: a row of `silent_answers`, without the answer."""

    row: Mapping[str, Any]

    @property
    def tip_id(self) -> str:
        """The id of the answer, which is no tip."""
        return str(self.row["answer_id"])


Fact = Given | Shown | Reacted | Silent


def write_facts(
    connection: sa.Connection, facts: Sequence[Fact], *, keys: Sequence[HashingKey] = ()
) -> list[Written]:
    """Write facts in their order; per fact, whether its tip was there or it is kept for it.

    Nothing is written of a tip that was erased, nor of one whose user was while it was written,
    nor of a silent answer whose rollout has ended.

    Raises:
        sqlalchemy.exc.IntegrityError: a tip of that id was given before.
    """
    given = admit(connection, [(f.names, dict(f.row)) for f in facts if isinstance(f, Given)])
    if given:
        _insert(connection, given)
    silent = _insert_silent(connection, [fact for fact in facts if isinstance(fact, Silent)])
    later = [fact for fact in facts if isinstance(fact, Shown | Reacted)]
    known = _known(connection, {fact.tip_id for fact in later})
    erased = erased_tips(connection, keys, {fact.tip_id for fact in later} - known)
    early = [fact for fact in later if fact.tip_id not in known | erased]
    _write(connection, tip_scores, [fact for fact in later if fact.tip_id in known])
    if early:
        _make_room(connection, early)
        _write(connection, early_reactions, early)
    stored = {row["tip_id"] for row in given} | silent | known
    if awaited := [f.tip_id for f in facts if isinstance(f, Given) and f.awaited]:
        reconcile(connection, awaited)
    kept = {fact.tip_id for fact in early}
    return [
        "recorded" if tip_id in stored else "kept" if tip_id in kept else "erased"
        for tip_id in (fact.tip_id for fact in facts)
    ]


def reconcile(connection: sa.Connection, tip_ids: Sequence[str] | None = None) -> int:
    """Give kept reactions to their tips, where these are there by now; how many.

    A reaction that the tip got meanwhile is the later one, and stays.
    """
    if tip_ids is None:
        rows = connection.execute(_TAKE_ALL).mappings()
    else:
        rows = connection.execute(_TAKE_THEIRS, {"tip_ids": tip_ids}).mappings()
    found = [{f"e_{name}": value for name, value in row.items()} for row in rows]
    if found:
        connection.execute(_from_early(), found)
    return len(found)


def forget_early(connection: sa.Connection, *, now: datetime) -> int:
    """Delete reactions whose tip did not come in 30 days; how many."""
    is_old = early_reactions.c.arrived_at < now - KEEP_EARLY
    return connection.execute(sa.delete(early_reactions).where(is_old)).rowcount


def _insert(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Those of people who refuse training have a column more."""
    for flagged in (False, True):
        if some := [row for row in rows if ("training_allowed" in row) is flagged]:
            connection.execute(_INSERT, some)


def _insert_silent(connection: sa.Connection, facts: Sequence[Silent]) -> set[str]:
    """The ids of those whose rollout is still open: they are written."""
    if not facts:
        return set()
    is_open = rollouts.c.closed_at.is_(None)
    here = set(connection.execute(sa.select(rollouts.c.rollout_id).where(is_open)).scalars())
    found = [dict(fact.row) for fact in facts if fact.row["rollout_id"] in here]
    if found:
        connection.execute(silent_answers.insert(), found)
    return {row["answer_id"] for row in found}


def _known(connection: sa.Connection, tip_ids: set[str]) -> set[str]:
    if not tip_ids:
        return set()
    return set(connection.execute(_THERE, {"tip_ids": list(tip_ids)}).scalars())


def _make_room(connection: sa.Connection, facts: Sequence[Shown | Reacted]) -> None:
    is_postgres = connection.dialect.name == "postgresql"
    insert = (postgresql.insert if is_postgres else sqlite.insert)(early_reactions)
    rows = {fact.tip_id: {"tip_id": fact.tip_id, "arrived_at": fact.at} for fact in facts}
    # In one order everywhere, so that two processes cannot wait for each other.
    connection.execute(insert.on_conflict_do_nothing(), [rows[name] for name in sorted(rows)])


def _write(connection: sa.Connection, table: sa.Table, facts: Sequence[Shown | Reacted]) -> None:
    facts = sorted(facts, key=lambda fact: fact.tip_id)
    shown = [{"of": fact.tip_id, "now": fact.at} for fact in facts if isinstance(fact, Shown)]
    reacted = [
        {"of": fact.tip_id, "did": fact.reaction, "dwell": fact.dwell_ms, "now": fact.at}
        for fact in facts
        if isinstance(fact, Reacted)
    ]
    if shown:
        connection.execute(_show(table), shown)
    if reacted:
        connection.execute(_react(table), reacted)


@cache
def _show(table: sa.Table) -> sa.Update:
    """Of several times shown the first stands; a clock that went back gives none before the tip."""
    now = sa.bindparam("now", type_=UtcTime)
    at: sa.ColumnElement[Any] = now
    if "created_at" in table.c:
        at = sa.case((table.c.created_at > now, table.c.created_at), else_=now)
    here = table.c.tip_id == sa.bindparam("of")
    return table.update().where(here).values(shown_at=sa.func.coalesce(table.c.shown_at, at))


@cache
def _react(table: sa.Table) -> sa.Update:
    """A later reaction rewrites the former; the same one again changes nothing."""
    did, dwell = sa.bindparam("did", type_=sa.Text), sa.bindparam("dwell", type_=sa.Integer)
    now = sa.bindparam("now", type_=UtcTime)
    is_same = sa.and_(table.c.reaction == did, table.c.dwell_ms == dwell)
    here = table.c.tip_id == sa.bindparam("of")
    at = sa.case((is_same, table.c.reacted_at), else_=now)
    return table.update().where(here).values(reaction=did, dwell_ms=dwell, reacted_at=at)


@cache
def _from_early() -> sa.Update:
    row = tip_scores.c
    values = {
        name: sa.case(
            (row.reaction.is_(None), sa.bindparam(f"e_{name}", type_=row[name].type)),
            else_=row[name],
        )
        for name in ("reaction", "dwell_ms", "reacted_at")
    }
    shown = sa.func.coalesce(row.shown_at, sa.bindparam("e_shown_at", type_=row.shown_at.type))
    here = row.tip_id == sa.bindparam("e_tip_id")
    return tip_scores.update().where(here).values(shown_at=shown, **values)


# Executed for every tip and reaction, so they are put together once.
_TIP_IDS: sa.BindParameter[str] = sa.bindparam("tip_ids", expanding=True)
_INSERT = tip_scores.insert()
_THERE = sa.select(tip_scores.c.tip_id).where(tip_scores.c.tip_id.in_(_TIP_IDS))
_TAKE_ALL = (
    sa.delete(early_reactions)
    .where(sa.exists().where(tip_scores.c.tip_id == early_reactions.c.tip_id))
    .returning(*early_reactions.c)
)
_TAKE_THEIRS = _TAKE_ALL.where(early_reactions.c.tip_id.in_(_TIP_IDS))


BATCH = 500
MAX_WAITING = 20_000  # facts; beyond, the database does not keep up and no more are taken

log = logging.getLogger(__name__)
_Waiting = tuple[Fact, Future[Written]]


class BusyError(DataError):
    """More is waiting to be written than the database takes; try again in a moment."""


class Recorder:
    """Takes facts from many threads and event loops; a transaction holds all that came meanwhile.

    Nothing waits for a timer: while one transaction is on its way to disk the next one gathers.
    """

    def __init__(self, engine: sa.Engine, keys: Sequence[HashingKey] = ()) -> None:
        self._engine, self._keys = engine, keys
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._is_writing = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="reactune-recorder")
        self.transactions = 0

    @property
    def waiting(self) -> int:
        """Facts that are not on disk yet."""
        return len(self._waiting)

    def record(self, fact: Fact) -> Future[Written]:
        """A future that is done when the fact is on disk, or fails with what kept it from there.

        Raises:
            BusyError: too many facts wait already.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise BusyError("the database does not keep up; try again in a moment")
        done: Future[Written] = Future()
        with self._lock:
            self._waiting.append((fact, done))
            if not self._is_writing:
                self._is_writing = True
                self._writer.submit(self._write_all)
        return done

    async def on_disk(self, fact: Fact, *, within: float | None = None) -> Written:
        """Wait, without holding up the event loop, until the fact is on disk.

        Raises:
            AwayError: the database does not answer; the fact is not written. After `within`
                seconds of no answer: it may be written yet.
            sqlalchemy.exc.IntegrityError: a tip of that id was given before.
        """
        done = asyncio.wrap_future(self.record(fact))
        if within is None:
            return await done
        await asyncio.wait({done}, timeout=within)
        if not done.done():
            raise AwayError("the database has not answered yet; see to it")
        return done.result()

    def close(self) -> None:
        """Return when all that was taken is on disk or refused."""
        self._writer.shutdown()

    def _write_all(self) -> None:
        while batch := self._next():
            try:
                self._commit(batch)
            finally:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(AwayError("the last change was not written; repeat it"))

    def _next(self) -> list[_Waiting]:
        with self._lock:
            count = min(BATCH, len(self._waiting))
            self._is_writing = count > 0
            return [self._waiting.popleft() for _ in range(count)]

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        try:
            with writing(self._engine) as connection:
                facts = [fact for fact, _ in batch]
                written = write_facts(connection, facts, keys=self._keys)
        except sa.exc.IntegrityError as error:
            # One of them cannot be written: the others must not suffer for it.
            if len(batch) == 1:
                _fail(batch, error)
            else:
                for each in batch:
                    self._commit([each])
            return
        except (DataError, sa.exc.SQLAlchemyError) as error:
            _fail(batch, error)
            return
        self.transactions += 1
        for (_, done), how in zip(batch, written, strict=True):
            if done.set_running_or_notify_cancel():
                done.set_result(how)


def _fail(batch: Sequence[_Waiting], error: DataError | sa.exc.SQLAlchemyError) -> None:
    log.error("%d facts were not written: %s", len(batch), type(error.__cause__ or error).__name__)
    for _, done in batch:
        if done.set_running_or_notify_cancel():
            done.set_exception(error)
