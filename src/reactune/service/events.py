"""Events of tips, on disk when their future is done: many requests share one transaction.

One thread writes, so that SQLite has one writer (decision 20). Rows of erased users, and of tips
that were erased, are not written.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

import sqlalchemy as sa

from reactune.errors import AwayError, DataError
from reactune.privacy.consent import HashedIds, admit, erased_tips, lock_for_writing
from reactune.privacy.hashing import HashingKey
from reactune.records import Exposure, Reaction
from reactune.store.database import insert_new, writing
from reactune.store.schema import UtcTime, early_reactions, rollouts, silent_answers, tip_scores

EARLY_REACTION_LIFETIME = timedelta(days=30)
MAX_BATCH = 500
MAX_WAITING = 20_000  # events; beyond, the database does not keep up and no more are accepted

# Half a surrogate pair, a NUL on PostgreSQL, a number beyond its column.
UNSTORABLE = (sa.exc.DataError, ValueError, OverflowError)

Status = Literal["recorded", "kept", "erased"]
"""`kept`: the tip is not known yet, so the event waits for it."""

log = logging.getLogger(__name__)


class BusyError(DataError):
    """More events wait to be written than the database keeps up with."""


@dataclass(frozen=True)
class TipCreated:
    """A new exposure, with its user's hashed ids under every key.

    `has_app_id` where the app chose the tip's id: only then can a reaction have come before.
    """

    exposure: Exposure
    hashed_ids: HashedIds = field(default=(), repr=False)
    has_app_id: bool = True

    @property
    def tip_id(self) -> str:
        """The new tip's id."""
        return self.exposure.tip_id


@dataclass(frozen=True)
class TipShown:
    """The user saw a tip."""

    tip_id: str
    at: datetime


@dataclass(frozen=True)
class TipReaction:
    """The user reacted to a tip."""

    tip_id: str
    reaction: Reaction
    dwell_ms: int
    at: datetime


@dataclass(frozen=True)
class ShadowAnswer:
    """The challenger's answer in the shadow phase: the columns of `silent_answers`, no text."""

    answer_id: str
    rollout_id: str
    verdict: str
    answer_ms: int
    prompt_tokens: int
    tokens_read: int | None
    at: datetime

    @property
    def tip_id(self) -> str:
        """The answer's id, which is in no row of `tip_scores`."""
        return self.answer_id


Report = TipShown | TipReaction
Event = TipCreated | Report | ShadowAnswer
Waiting = Future[Status] | asyncio.Future[Status]
"""What a thread or an event loop waits for."""
Batch = Sequence[tuple[Event, Waiting]]
Outcome = Status | Exception


class Recorder:
    """Accepts events from any thread or event loop; one transaction holds all that are waiting.

    No timer: while one transaction is on its way to disk, the next batch collects.
    """

    def __init__(self, engine: sa.Engine, keys: Sequence[HashingKey] = ()) -> None:
        self._engine, self._keys = engine, keys
        self._queue: deque[tuple[Event, Waiting]] = deque()
        self._lock = threading.Lock()
        self._is_writing = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="reactune-recorder")
        self.transactions = 0

    @property
    def waiting(self) -> int:
        """How many events no transaction holds yet."""
        return len(self._queue)

    def submit(self, event: Event) -> Future[Status]:
        """A future that is done when the event is on disk, or that holds the error.

        Raises:
            BusyError: too many events wait already.
        """
        future: Future[Status] = Future()
        self._accept(event, future)
        return future

    async def write(self, event: Event, *, timeout_seconds: float | None = None) -> Status:
        """Return when the event is on disk; the event loop goes on meanwhile.

        Raises:
            AwayError: the database does not answer; the event is not written. After
                `timeout_seconds`, it may still be written later.
            BusyError: too many events wait already.
            DataError: the database cannot hold one of the event's values.
            sqlalchemy.exc.IntegrityError: a tip with this id exists.
        """
        future: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        self._accept(event, future)
        if timeout_seconds is None:
            return await future
        await asyncio.wait({future}, timeout=timeout_seconds)
        if not future.done():
            raise AwayError("the database has not answered in time; check it")
        return future.result()

    def close(self) -> None:
        """Return when every accepted event is on disk or has failed."""
        self._writer.shutdown()

    def _accept(self, event: Event, future: Waiting) -> None:
        if len(self._queue) >= MAX_WAITING:
            raise BusyError("the database does not keep up; try again in a moment")
        with self._lock:
            self._queue.append((event, future))
            if not self._is_writing:
                self._is_writing = True
                self._writer.submit(self._write_all)

    def _write_all(self) -> None:
        while batch := self._next_batch():
            try:
                self._commit(batch)
            except BaseException:
                # This thread ends here; the next event starts another.
                with self._lock:
                    self._is_writing = False
                _settle(batch, [AwayError("the event was not written; repeat it")] * len(batch))
                raise

    def _next_batch(self) -> list[tuple[Event, Waiting]]:
        with self._lock:
            count = min(MAX_BATCH, len(self._queue))
            self._is_writing = count > 0
            return [self._queue.popleft() for _ in range(count)]

    def _commit(self, batch: Batch) -> None:
        try:
            with writing(self._engine) as connection:
                events = [event for event, _ in batch]
                statuses = write_events(connection, events, keys=self._keys)
        except (sa.exc.IntegrityError, *UNSTORABLE) as error:
            # One event violates a constraint, or holds a value that no column can: written one by
            # one, the others succeed.
            if len(batch) > 1:
                for each in batch:
                    self._commit([each])
            elif isinstance(error, sa.exc.IntegrityError):
                _fail(batch, error)
            else:
                _fail(batch, _unstorable(error))
            return
        except (DataError, sa.exc.SQLAlchemyError) as error:
            _fail(batch, error)
            return
        self.transactions += 1
        _settle(batch, statuses)


def _unstorable(error: Exception) -> DataError:
    refusal = DataError("the database cannot hold one of the values; send whole characters")
    refusal.__cause__ = error
    return refusal


def _fail(batch: Batch, error: DataError | sa.exc.SQLAlchemyError) -> None:
    cause = type(error.__cause__ or error).__name__
    log.error("%d events were not written: %s", len(batch), cause)
    _settle(batch, [error] * len(batch))


def _settle(batch: Batch, outcomes: Sequence[Outcome]) -> None:
    """Tell everybody who waits and was not told; one call for each event loop wakes it once."""
    told: dict[asyncio.AbstractEventLoop, list[tuple[Waiting, Outcome]]] = {}
    for (_, future), outcome in zip(batch, outcomes, strict=True):
        if isinstance(future, asyncio.Future):
            told.setdefault(future.get_loop(), []).append((future, outcome))
        elif not future.done() and future.set_running_or_notify_cancel():
            _tell(future, outcome)
    for loop, some in told.items():
        with suppress(RuntimeError):  # a loop that was closed waits for nothing
            loop.call_soon_threadsafe(_tell_all, some)


def _tell_all(some: Sequence[tuple[Waiting, Outcome]]) -> None:
    for future, outcome in some:
        if not future.done():
            _tell(future, outcome)


def _tell(future: Waiting, outcome: Outcome) -> None:
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def write_events(
    connection: sa.Connection, events: Sequence[Event], *, keys: Sequence[HashingKey] = ()
) -> list[Status]:
    """Write events in their order; the status of each.

    `erased`: nothing was written, because the tip was erased, or its user was after it was
    created, or because the shadow answer's rollout has ended.

    Raises:
        sqlalchemy.exc.IntegrityError: a tip with one of these ids exists.
    """
    created = [event for event in events if isinstance(event, TipCreated)]
    shadow = [event for event in events if isinstance(event, ShadowAnswer)]
    reports = [event for event in events if isinstance(event, TipShown | TipReaction)]
    stored = _insert_exposures(connection, created) | _insert_shadow(connection, shadow)
    known = _known_tips(connection, {report.tip_id for report in reports})
    erased = erased_tips(connection, keys, {report.tip_id for report in reports} - known)
    early = [report for report in reports if report.tip_id not in known | erased]
    _apply(connection, tip_scores, [report for report in reports if report.tip_id in known])
    _keep_early(connection, early)
    if with_app_id := [event.tip_id for event in created if event.has_app_id]:
        match_early_reactions(connection, with_app_id)
    kept = {report.tip_id for report in early}
    return [
        "recorded" if tip_id in stored | known else "kept" if tip_id in kept else "erased"
        for tip_id in (event.tip_id for event in events)
    ]


def match_early_reactions(connection: sa.Connection, tip_ids: Sequence[str] | None = None) -> int:
    """Move kept reactions to their tips, where these exist by now; how many.

    A reaction that the tip has already is later than the kept one, and stays. Without `tip_ids`,
    all kept reactions are considered.
    """
    if tip_ids is None:
        rows = connection.execute(_TAKE_ALL_EARLY).mappings()
    else:
        rows = connection.execute(_TAKE_EARLY, {"tip_ids": tip_ids}).mappings()
    early = [{f"e_{name}": value for name, value in row.items()} for row in rows]
    if early:
        connection.execute(_update_from_early(), early)
    return len(early)


def delete_expired_reactions(connection: sa.Connection, *, now: datetime) -> int:
    """Delete kept reactions whose tip did not arrive within 30 days; how many."""
    is_expired = early_reactions.c.arrived_at < now - EARLY_REACTION_LIFETIME
    return connection.execute(sa.delete(early_reactions).where(is_expired)).rowcount


def _insert_exposures(connection: sa.Connection, events: Sequence[TipCreated]) -> set[str]:
    if not events:
        lock_for_writing(connection)  # reports need it, too; else `admit` takes it
        return set()
    rows = admit(connection, [(event.hashed_ids, dict(vars(event.exposure))) for event in events])
    # The rows of users who refuse training have one column more.
    for has_column in (False, True):
        if some := [row for row in rows if ("training_allowed" in row) is has_column]:
            connection.execute(_INSERT, some)
    return {row["tip_id"] for row in rows}


def _insert_shadow(connection: sa.Connection, answers: Sequence[ShadowAnswer]) -> set[str]:
    """Insert the answers of rollouts that are still open; their ids."""
    if not answers:
        return set()
    is_open = rollouts.c.closed_at.is_(None)
    open_ids = set(connection.execute(sa.select(rollouts.c.rollout_id).where(is_open)).scalars())
    rows = [asdict(answer) for answer in answers if answer.rollout_id in open_ids]
    if rows:
        connection.execute(silent_answers.insert(), rows)
    return {row["answer_id"] for row in rows}


def _known_tips(connection: sa.Connection, tip_ids: set[str]) -> set[str]:
    if not tip_ids:
        return set()
    return set(connection.execute(_EXISTING, {"tip_ids": list(tip_ids)}).scalars())


def _keep_early(connection: sa.Connection, reports: Sequence[Report]) -> None:
    if not reports:
        return
    rows = {each.tip_id: {"tip_id": each.tip_id, "arrived_at": each.at} for each in reports}
    # The same order in every process, so that two of them cannot deadlock.
    insert_new(connection, early_reactions, [rows[tip_id] for tip_id in sorted(rows)])
    _apply(connection, early_reactions, reports)


def _apply(connection: sa.Connection, table: sa.Table, reports: Sequence[Report]) -> None:
    reports = sorted(reports, key=lambda report: report.tip_id)
    shown = [{"of": each.tip_id, "now": each.at} for each in reports if isinstance(each, TipShown)]
    reactions = [
        {"of": each.tip_id, "did": each.reaction, "dwell": each.dwell_ms, "now": each.at}
        for each in reports
        if isinstance(each, TipReaction)
    ]
    if shown:
        connection.execute(_set_shown(table), shown)
    if reactions:
        connection.execute(_set_reaction(table), reactions)


@cache
def _set_shown(table: sa.Table) -> sa.Update:
    """The first time stands; `shown_at` is never before `created_at`, whatever the clock does."""
    now = sa.bindparam("now", type_=UtcTime)
    at: sa.ColumnElement[Any] = now
    if "created_at" in table.c:
        at = sa.case((table.c.created_at > now, table.c.created_at), else_=now)
    here = table.c.tip_id == sa.bindparam("of")
    return table.update().where(here).values(shown_at=sa.func.coalesce(table.c.shown_at, at))


@cache
def _set_reaction(table: sa.Table) -> sa.Update:
    """A later reaction replaces the earlier one; an equal one leaves `reacted_at` as it is."""
    did, dwell = sa.bindparam("did", type_=sa.Text), sa.bindparam("dwell", type_=sa.Integer)
    now = sa.bindparam("now", type_=UtcTime)
    is_same = sa.and_(table.c.reaction == did, table.c.dwell_ms == dwell)
    here = table.c.tip_id == sa.bindparam("of")
    at = sa.case((is_same, table.c.reacted_at), else_=now)
    return table.update().where(here).values(reaction=did, dwell_ms=dwell, reacted_at=at)


@cache
def _update_from_early() -> sa.Update:
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


# Executed for every tip and reaction, so they are built once.
_TIP_IDS: sa.BindParameter[str] = sa.bindparam("tip_ids", expanding=True)
_INSERT = tip_scores.insert()
_EXISTING = sa.select(tip_scores.c.tip_id).where(tip_scores.c.tip_id.in_(_TIP_IDS))
_TAKE_ALL_EARLY = (
    sa.delete(early_reactions)
    .where(sa.exists().where(tip_scores.c.tip_id == early_reactions.c.tip_id))
    .returning(*early_reactions.c)
)
_TAKE_EARLY = _TAKE_ALL_EARLY.where(early_reactions.c.tip_id.in_(_TIP_IDS))
