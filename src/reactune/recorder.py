"""Group commit: facts of many requests in one transaction, each confirmed when it is on disk.

One thread writes, so that SQLite has one writer; what is written is in `exposures.py`.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import sqlalchemy as sa

from reactune.errors import AwayError, DataError
from reactune.exposures import Fact, Written, write_facts
from reactune.privacy import Key
from reactune.store import writing

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

    def __init__(self, engine: sa.Engine, keys: Sequence[Key] = ()) -> None:
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
