"""Clients of the service: a lost answer is requested again under the same id, so nothing doubles.

`Client` and `AsyncClient` differ only in how they wait. What they do is written once, as
generators: each yields the next `Step` and receives its result.
"""

import asyncio
import fcntl
import json
import logging
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from reactune.environment import server_address
from reactune.errors import DataError
from reactune.process import tell_of_forks
from reactune.records import MAX_DWELL_MS, REACTIONS, Reaction, is_tip_id, whole_dwell_ms

TRIES = 4
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.2, 10.0
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
WAITS_IN_OUTBOX = RETRIED | {401, 403}  # a report waits for a new key instead of being lost
MAX_REASON_CHARS = 300
NOT_SENT = 0  # instead of a status: what no request can hold
REMEMBERED_REPORTS = 10_000  # ids of sent reports that are kept, so that none is accepted twice

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class ServiceError(DataError):
    """The service refused, or answered none of the tries; `status` is 0 without an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnsendableError(DataError):
    """No request can hold the values: a NaN, an infinity, half a surrogate pair, no JSON."""


@dataclass(frozen=True)
class ClientTip:
    """What the app shows, and the id that its reports name.

    Not `recorded` while the service's database is away: reports on the tip count for nothing.
    """

    tip_id: str
    content: str
    recorded: bool = True


@dataclass(frozen=True)
class Report:
    """One request that must arrive once."""

    report_id: str
    path: str
    body: Mapping[str, Any]


class Outbox:
    """A file of reports, shared by the processes of an app; one of them sends at a time.

    Where the file cannot be read or written, every call is a `DataError`, and kept nothing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with self._worded():
            file.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as store:
            store.execute(
                "CREATE TABLE IF NOT EXISTS reports (place INTEGER PRIMARY KEY AUTOINCREMENT,"
                " report_id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, body TEXT NOT NULL,"
                " answer INTEGER)"
            )

    def add(self, report: Report) -> bool:
        """Write a report to disk; False if its id is known already."""
        row = (report.report_id, report.path, json.dumps(dict(report.body)))
        with self._open() as store:
            added = store.execute(
                "INSERT INTO reports (report_id, path, body) VALUES (?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                row,
            )
            return added.rowcount == 1

    def waiting(self, limit: int = 100) -> list[Report]:
        """The oldest reports without an answer, in the order in which they were added."""
        with self._open() as store:
            rows = store.execute(
                "SELECT report_id, path, body FROM reports WHERE answer IS NULL"
                " ORDER BY place LIMIT ?",
                (limit,),
            ).fetchall()
        return [Report(report_id, path, json.loads(body)) for report_id, path, body in rows]

    def settle(self, report: Report, status: int) -> None:
        """Keep the status that the service answered with: the report is not sent again."""
        with self._open() as store:
            store.execute(
                "UPDATE reports SET answer = ?, body = '{}' WHERE report_id = ?",
                (status, report.report_id),
            )
            store.execute(
                "DELETE FROM reports WHERE answer IS NOT NULL"
                " AND place <= (SELECT max(place) FROM reports) - ?",
                (REMEMBERED_REPORTS,),
            )

    def refused(self) -> dict[str, int]:
        """The ids of reports that were set aside, with the service's status.

        `NOT_SENT` (0) where no request can hold the report.
        """
        with self._open() as store:
            query = "SELECT report_id, answer FROM reports WHERE answer NOT BETWEEN 200 AND 299"
            return dict(store.execute(query).fetchall())

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Whether this process may send until the block ends; the right ends with the process."""
        with ExitStack() as held:
            with self._worded():
                lock = held.enter_context(self._file.with_suffix(".lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                yield True
            finally:
                # A child that was forked meanwhile has the file open for as long as it lives.
                fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with (
            self._worded(),
            closing(sqlite3.connect(self._file, timeout=30, isolation_level=None)) as store,
        ):
            store.execute("PRAGMA journal_mode = WAL")
            store.execute("PRAGMA synchronous = FULL")
            store.execute("BEGIN IMMEDIATE")
            yield store
            store.execute("COMMIT")

    @contextmanager
    def _worded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            advice = "see to the disk and its rights, or give another file"
            raise DataError(f"outbox {self._file}: {reason}; {advice}") from error


@dataclass(frozen=True)
class Post:
    """A request to send; the result is the response, or the error of the transport."""

    path: str
    body: Mapping[str, Any]


Step = Post | float | Callable[[], Any]
"""A request, seconds to wait, or a function of the outbox, which writes to disk."""
Steps = Generator[Step, Any, Result]
Answer = httpx.Response | httpx.RequestError | UnsendableError


def tip_steps(
    user: str, kind: str, context: Mapping[str, Any], names: Sequence[str]
) -> Steps[ClientTip]:
    """Request a tip, every time under the same id."""
    if not isinstance(context, Mapping):
        raise UnsendableError(f"context is a {type(context).__name__}; give a dictionary")
    body = {"user": user, "kind": kind, "context": dict(context), "names": list(names)}
    response = yield from request_steps("/v1/tips", {**body, "tip_id": uuid.uuid4().hex})
    try:
        tip = response.json()
        return ClientTip(tip["tip_id"], tip["content"], tip.get("recorded", True))
    except (ValueError, TypeError, KeyError) as error:
        reason = "the answer is no tip; is the URL that of `reactune serve`, without a path?"
        raise ServiceError(reason, response.status_code) from error


def report_steps(outbox: Outbox | None, path: str, body: Mapping[str, Any]) -> Steps[None]:
    """Send a report, or add it to the outbox and send what waits there."""
    if outbox is None:
        yield from request_steps(path, body)
        return
    report = Report(uuid.uuid4().hex, path, body)
    yield partial(outbox.add, report)
    yield from flush_steps(outbox)


def request_steps(path: str, body: Mapping[str, Any]) -> Steps[httpx.Response]:
    """Send a request until it is answered for good, at most `TRIES` times."""
    waits = retry_waits()
    while True:
        answer: Answer = yield Post(path, body)
        seconds = next(waits, None)
        if seconds is None or not _is_retried(answer):
            return _response(answer)
        yield seconds(_retry_after(answer))


def flush_steps(outbox: Outbox | None) -> Steps[int]:
    """Send what waits in the outbox; how many reports were settled.

    Ends at the first report that the service cannot accept now, so that the order is kept. A
    report that it never accepts is set aside, logged, and listed by `Outbox.refused`.
    """
    settled = 0
    if outbox is None:
        return settled
    with outbox.sending() as may_send:
        while may_send and (waiting := (yield outbox.waiting)):
            for report in waiting:
                answer: Answer = yield Post(report.path, report.body)
                if _is_to_wait(answer):
                    return settled
                status, reason = _refusal_of(answer)
                if reason:
                    log.warning("report %s is set aside: %s", report.report_id, reason)
                yield partial(outbox.settle, report, status)
                settled += 1
    return settled


def _is_to_wait(answer: Answer) -> bool:
    """Whether the service, or what stands before it, may accept the same report later."""
    if isinstance(answer, httpx.Response):
        # A redirect comes from another address than the service's: the URL is to be corrected.
        return answer.status_code in WAITS_IN_OUTBOX or answer.is_redirect
    return isinstance(answer, httpx.RequestError)


def _refusal_of(answer: Answer) -> tuple[int, str]:
    """The status to keep, and why the report was refused, or nothing."""
    if not isinstance(answer, httpx.Response):
        return NOT_SENT, str(answer)
    if answer.is_success:
        return answer.status_code, ""
    return answer.status_code, f"status {answer.status_code}: {answer.text[:MAX_REASON_CHARS]}"


def retry_waits(
    tries: int = TRIES, *, draw: Callable[[], float] = random.random
) -> Iterator[Callable[[str], float]]:
    """Between two tries each, a function from the answer's Retry-After to the seconds to wait.

    Without Retry-After it is "full jitter": uniform below a limit that doubles, so that many
    clients do not return at the same moment (Brooker, AWS Architecture Blog, 2015).
    """
    for number in range(tries - 1):
        limit = min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**number)

        def seconds(retry_after: str, limit: float = limit) -> float:
            if retry_after.isdigit():
                return min(float(retry_after), MAX_WAIT_SECONDS) + draw()
            return limit * draw()

        yield seconds


def _is_retried(answer: Answer) -> bool:
    if isinstance(answer, httpx.Response):
        return answer.status_code in RETRIED
    return isinstance(answer, httpx.RequestError)


def _retry_after(answer: Answer) -> str:
    if isinstance(answer, httpx.Response):
        after: str = answer.headers.get("retry-after", "")
        return after
    return ""


def _response(answer: Answer) -> httpx.Response:
    if isinstance(answer, UnsendableError):
        raise answer
    if isinstance(answer, httpx.RequestError):
        reason = f"the service does not answer ({type(answer).__name__}); is it running?"
        raise ServiceError(reason, 0) from answer
    if not answer.is_success:
        _, reason = _refusal_of(answer)
        raise ServiceError(reason, answer.status_code)
    return answer


def _shown_path(tip_id: str) -> str:
    _check_tip_id(tip_id)
    return f"/v1/tips/{quote(tip_id, safe='')}/shown"


def _reaction_body(tip_id: str, reaction: Reaction, dwell_ms: float) -> dict[str, Any]:
    """The report, refused here where the service would refuse it."""
    _check_tip_id(tip_id)
    if reaction not in REACTIONS:
        raise DataError(f"reaction {reaction!r}: give one of {', '.join(REACTIONS)}")
    whole = whole_dwell_ms(dwell_ms)
    if whole is None:
        raise DataError(f"dwell_ms = {dwell_ms!r}: give milliseconds, 0 to {MAX_DWELL_MS}")
    return {"tip_id": tip_id, "reaction": reaction, "dwell_ms": whole}


def _check_tip_id(tip_id: str) -> None:
    if not is_tip_id(tip_id):
        raise DataError(f"tip_id {tip_id!a}: no tip has such an id; give the id of the tip")


def _request_of(step: Post) -> dict[str, Any]:
    """The arguments of the request."""
    try:
        text = json.dumps(dict(step.body), ensure_ascii=False, allow_nan=False)
        content = text.encode() if step.body else b""
        url = httpx.URL(step.path)
    except (ValueError, TypeError, RecursionError, httpx.InvalidURL) as error:
        # Its message may quote the values.
        raise UnsendableError(
            f"no request can hold the values ({type(error).__name__}); give JSON of finite numbers "
            "and texts of whole characters"
        ) from None
    headers = {"content-type": "application/json"} if content else {}
    return {"url": url, "content": content, "headers": headers}


def connection(url: str, api_key: str, timeout_seconds: float) -> dict[str, Any]:
    """The arguments of httpx's clients. White space around a key does not count.

    Raises:
        DataError: no request can be sent to such a URL, or with such a key.
    """
    try:
        address = server_address(str(url))
    except ValueError as error:
        raise DataError(f"url = {url!r} is no address of a server; {error}") from error
    key = api_key.strip()
    if not (key.isascii() and key.isprintable()):
        raise DataError("api_key: it has other characters than those `reactune keys create` prints")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # Proxies and netrc files of the environment do not apply.
    return {"base_url": address, "headers": headers, "timeout": timeout_seconds, "trust_env": False}


class Client:
    """Calls the service; close it, or use it in a `with` statement.

    With an `outbox` (a file), `shown` and `react` return when the report is on disk here, and
    `flush` sends what waits; without one they return when the service has recorded it. A URL or a
    key that no request can hold is a `DataError`.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        outbox: Path | None = None,
        timeout_seconds: float = 30,
    ) -> None:
        self._place = connection(url, api_key, timeout_seconds)
        self._http: httpx.Client | None = httpx.Client(**self._place)
        self._outbox = None if outbox is None else Outbox(outbox)
        tell_of_forks(self)

    def tip(
        self, user: str, kind: str, context: Mapping[str, Any], *, names: Sequence[str] = ()
    ) -> ClientTip:
        """A tip for a user; an answer that is lost does not lead to a second tip.

        Raises:
            ServiceError: the service refuses, or answered none of the tries.
            UnsendableError: the context is no mapping, or holds what JSON cannot express, such as
                NaN.
        """
        return self._run(tip_steps(user, kind, context, names))

    def shown(self, tip_id: str) -> None:
        """The user sees the tip now.

        Raises:
            DataError: an id that no tip can have, or an outbox that cannot be written; nothing
                is sent or kept.
            ServiceError: without an outbox, as `tip`.
        """
        self._run(report_steps(self._outbox, _shown_path(tip_id), {}))

    def react(self, tip_id: str, reaction: Reaction, dwell_ms: float) -> None:
        """The user's reaction, and for how many milliseconds the tip was visible before it.

        Raises:
            DataError: another reaction, no dwell time, an id that no tip can have, or an outbox
                that cannot be written; nothing is sent or kept.
            ServiceError: without an outbox, as `tip`.
        """
        body = _reaction_body(tip_id, reaction, dwell_ms)
        self._run(report_steps(self._outbox, "/v1/reactions", body))

    def flush(self) -> int:
        """Send what waits in the outbox, oldest first; how many reports were settled.

        Ends at the first report that the service cannot accept now, so that the order is kept.
        """
        return self._run(flush_steps(self._outbox))

    def close(self) -> None:
        """Close the connection; what waits in the outbox stays there."""
        if self._http is not None:
            self._http.close()

    def after_fork(self) -> None:
        """In a child: the connections are the parent's, and stay open for it."""
        self._http = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, steps: Steps[Result]) -> Result:
        result: Any = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(result)
                except StopIteration as stop:
                    finished: Result = stop.value
                    return finished
                result = self._do(step)

    def _do(self, step: Step) -> Any:
        if isinstance(step, float):
            return time.sleep(step)
        if not isinstance(step, Post):
            return step()
        try:
            if self._http is None:
                self._http = httpx.Client(**self._place)
            return self._http.post(**_request_of(step))
        except (httpx.RequestError, UnsendableError) as error:
            return error


class AsyncClient:
    """`Client` for an event loop; `aclose` it, or use it in an `async with` statement."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        outbox: Path | None = None,
        timeout_seconds: float = 30,
    ) -> None:
        self._place = connection(url, api_key, timeout_seconds)
        self._http: httpx.AsyncClient | None = httpx.AsyncClient(**self._place)
        self._outbox = None if outbox is None else Outbox(outbox)
        tell_of_forks(self)

    async def tip(
        self, user: str, kind: str, context: Mapping[str, Any], *, names: Sequence[str] = ()
    ) -> ClientTip:
        """As `Client.tip`."""
        return await self._run(tip_steps(user, kind, context, names))

    async def shown(self, tip_id: str) -> None:
        """As `Client.shown`."""
        await self._run(report_steps(self._outbox, _shown_path(tip_id), {}))

    async def react(self, tip_id: str, reaction: Reaction, dwell_ms: float) -> None:
        """As `Client.react`."""
        body = _reaction_body(tip_id, reaction, dwell_ms)
        await self._run(report_steps(self._outbox, "/v1/reactions", body))

    async def flush(self) -> int:
        """As `Client.flush`."""
        return await self._run(flush_steps(self._outbox))

    async def aclose(self) -> None:
        """As `Client.close`."""
        if self._http is not None:
            await self._http.aclose()

    def after_fork(self) -> None:
        """As `Client.after_fork`."""
        self._http = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _run(self, steps: Steps[Result]) -> Result:
        result: Any = None
        with closing(steps):
            while True:
                try:
                    step = steps.send(result)
                except StopIteration as stop:
                    finished: Result = stop.value
                    return finished
                result = await self._do(step)

    async def _do(self, step: Step) -> Any:
        if isinstance(step, float):
            return await asyncio.sleep(step)
        if not isinstance(step, Post):
            return await asyncio.to_thread(step)
        try:
            if self._http is None:
                self._http = httpx.AsyncClient(**self._place)
            return await self._http.post(**_request_of(step))
        except (httpx.RequestError, UnsendableError) as error:
            return error
