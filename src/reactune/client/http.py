"""The service from an app in Python: tips now, reports for sure; with and without an event loop.

What is kept on disk meanwhile is in `outbox.py`.
"""

import asyncio
import fcntl
import json
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from reactune.errors import DataError
from reactune.records import Reaction

REMEMBERED = (
    10_000  # ids of reports sent that are remembered, so that none is sent under the same id
)


@dataclass(frozen=True)
class Report:
    """One request that must arrive once."""

    report_id: str
    path: str
    body: Mapping[str, Any]


class Outbox:
    """A file with reports, shared by the processes of an app; one of them sends at a time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as store:
            store.execute(
                "CREATE TABLE IF NOT EXISTS reports (place INTEGER PRIMARY KEY AUTOINCREMENT,"
                " report_id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, body TEXT NOT NULL,"
                " answer INTEGER)"
            )

    def add(self, report: Report) -> bool:
        """Keep a report; it is on disk when this returns. False if its id was there already."""
        row = (report.report_id, report.path, json.dumps(dict(report.body)))
        with self._open() as store:
            added = store.execute(
                "INSERT INTO reports (report_id, path, body) VALUES (?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                row,
            )
            return added.rowcount == 1

    def waiting(self, most: int = 100) -> list[Report]:
        """The oldest reports that have no answer yet, in the order in which they came."""
        with self._open() as store:
            rows = store.execute(
                "SELECT report_id, path, body FROM reports WHERE answer IS NULL"
                " ORDER BY place LIMIT ?",
                (most,),
            ).fetchall()
        return [Report(name, path, json.loads(body)) for name, path, body in rows]

    def settle(self, report: Report, answer: int) -> None:
        """Note the status that the service answered with: this report is not sent again."""
        with self._open() as store:
            store.execute(
                "UPDATE reports SET answer = ?, body = '{}' WHERE report_id = ?",
                (answer, report.report_id),
            )
            store.execute(
                "DELETE FROM reports WHERE answer IS NOT NULL"
                " AND place <= (SELECT max(place) FROM reports) - ?",
                (REMEMBERED,),
            )

    def refused(self) -> dict[str, int]:
        """Reports that the service would not have, with its status."""
        with self._open() as store:
            return dict(
                store.execute(
                    "SELECT report_id, answer FROM reports WHERE answer >= 400"
                ).fetchall()
            )

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Whether it is us who may send now; the right ends with the process."""
        with self._file.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        store = sqlite3.connect(self._file, timeout=30, isolation_level=None)
        try:
            store.execute("PRAGMA journal_mode = WAL")
            store.execute("PRAGMA synchronous = FULL")
            store.execute("BEGIN IMMEDIATE")
            yield store
            store.execute("COMMIT")
        finally:
            store.close()


TRIES = 4
FIRST_SECONDS, MOST_SECONDS = 0.2, 10.0
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
KEEP = AGAIN | {401, 403}  # a report waits for a new key; it is not lost for an old one


class ServiceError(DataError):
    """The service did not do it, however often it was asked; `status` is 0 without an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ClientTip:
    """What the app shows, and the id under which it reports what became of it.

    Not `recorded` while the service's database is away: reports of it are kept for nothing.
    """

    tip_id: str
    content: str
    recorded: bool = True


def waits(
    tries: int = TRIES, *, draw: Callable[[], float] = random.random
) -> Iterator[Callable[[str], float]]:
    """Between tries: seconds to wait, from the answer's Retry-After or drawn anew each time.

    Full jitter: uniform below a limit that doubles, so that many apps do not come back at once.
    """
    for number in range(tries - 1):
        limit = min(MOST_SECONDS, FIRST_SECONDS * 2**number)

        def seconds(told: str, limit: float = limit) -> float:
            return min(float(told), MOST_SECONDS) + draw() if told.isdigit() else limit * draw()

        yield seconds


class Client:
    """Asks the service; close it, or use it in a `with` statement.

    With an `outbox` (a file), `shown` and `react` return when the report is on disk here, and
    `flush` sends what waits; without one they return when the service has it.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        outbox: Path | None = None,
        timeout_seconds: float = 30,
    ) -> None:
        self._http = httpx.Client(
            base_url=url, headers=_headers(api_key), timeout=timeout_seconds, trust_env=False
        )
        self._outbox = None if outbox is None else Outbox(outbox)

    def tip(
        self, user: str, kind: str, context: Mapping[str, Any], *, names: Sequence[str] = ()
    ) -> ClientTip:
        """A tip for a user; a try that was lost on the way gives no second one.

        Raises:
            ServiceError: the service refuses, or did not answer any of the tries.
        """
        answer = self._ask("/v1/tips", _tip_body(user, kind, context, names)).json()
        return _tip_of(answer)

    def shown(self, tip_id: str) -> None:
        """The user sees the tip now."""
        self._report(f"/v1/tips/{tip_id}/shown", {})

    def react(self, tip_id: str, reaction: Reaction, dwell_ms: int) -> None:
        """What the user did, after so many milliseconds of looking at the tip."""
        self._report("/v1/reactions", _reaction_body(tip_id, reaction, dwell_ms))

    def flush(self) -> int:
        """Send what waits in the outbox, oldest first; how many reports were settled.

        Ends at the first that the service cannot take now: order matters more than haste.
        """
        settled = 0
        if self._outbox is None:
            return settled
        with self._outbox.sending() as is_ours:
            while is_ours and (waiting := self._outbox.waiting()):
                for report in waiting:
                    try:
                        status = self._send(report.path, report.body).status_code
                    except httpx.TransportError:
                        return settled
                    if status in KEEP:
                        return settled
                    self._outbox.settle(report, status)
                    settled += 1
        return settled

    def close(self) -> None:
        """Let go of the connection; what waits in the outbox stays there."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _report(self, path: str, body: Mapping[str, Any]) -> None:
        if self._outbox is None:
            self._ask(path, body)
            return
        self._outbox.add(Report(uuid.uuid4().hex, path, body))
        self.flush()

    def _ask(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        between = waits()
        while True:
            answer: httpx.Response | httpx.TransportError
            try:
                answer = self._send(path, body)
            except httpx.TransportError as error:
                answer = error
            seconds = next(between, None)
            if not _is_worth_another(answer) or seconds is None:
                return _final(answer)
            time.sleep(seconds(_retry_after(answer)))

    def _send(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return self._http.post(path, json=dict(body) or None)


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
        self._http = httpx.AsyncClient(
            base_url=url, headers=_headers(api_key), timeout=timeout_seconds, trust_env=False
        )
        self._outbox = None if outbox is None else Outbox(outbox)

    async def tip(
        self, user: str, kind: str, context: Mapping[str, Any], *, names: Sequence[str] = ()
    ) -> ClientTip:
        """As `Client.tip`."""
        answer = (await self._ask("/v1/tips", _tip_body(user, kind, context, names))).json()
        return _tip_of(answer)

    async def shown(self, tip_id: str) -> None:
        """As `Client.shown`."""
        await self._report(f"/v1/tips/{tip_id}/shown", {})

    async def react(self, tip_id: str, reaction: Reaction, dwell_ms: int) -> None:
        """As `Client.react`."""
        await self._report("/v1/reactions", _reaction_body(tip_id, reaction, dwell_ms))

    async def flush(self) -> int:
        """As `Client.flush`."""
        settled, outbox = 0, self._outbox
        if outbox is None:
            return settled
        with outbox.sending() as is_ours:
            while is_ours and (waiting := await asyncio.to_thread(outbox.waiting)):
                for report in waiting:
                    try:
                        status = (await self._send(report.path, report.body)).status_code
                    except httpx.TransportError:
                        return settled
                    if status in KEEP:
                        return settled
                    await asyncio.to_thread(outbox.settle, report, status)
                    settled += 1
        return settled

    async def aclose(self) -> None:
        """As `Client.close`."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def _report(self, path: str, body: Mapping[str, Any]) -> None:
        if self._outbox is None:
            await self._ask(path, body)
            return
        await asyncio.to_thread(self._outbox.add, Report(uuid.uuid4().hex, path, body))
        await self.flush()

    async def _ask(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        between = waits()
        while True:
            answer: httpx.Response | httpx.TransportError
            try:
                answer = await self._send(path, body)
            except httpx.TransportError as error:
                answer = error
            seconds = next(between, None)
            if not _is_worth_another(answer) or seconds is None:
                return _final(answer)
            await asyncio.sleep(seconds(_retry_after(answer)))

    async def _send(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return await self._http.post(path, json=dict(body) or None)


def _headers(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _tip_body(
    user: str, kind: str, context: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    said = {"user": user, "kind": kind, "context": dict(context), "names": list(names)}
    return {**said, "tip_id": uuid.uuid4().hex}


def _tip_of(answer: Mapping[str, Any]) -> ClientTip:
    return ClientTip(answer["tip_id"], answer["content"], answer.get("recorded", True))


def _reaction_body(tip_id: str, reaction: Reaction, dwell_ms: int) -> dict[str, Any]:
    return {"tip_id": tip_id, "reaction": reaction, "dwell_ms": dwell_ms}


def _is_worth_another(answer: httpx.Response | httpx.TransportError) -> bool:
    return isinstance(answer, httpx.TransportError) or answer.status_code in AGAIN


def _retry_after(answer: httpx.Response | httpx.TransportError) -> str:
    return "" if isinstance(answer, httpx.TransportError) else answer.headers.get("retry-after", "")


def _final(answer: httpx.Response | httpx.TransportError) -> httpx.Response:
    if isinstance(answer, httpx.TransportError):
        told = f"the service does not answer ({type(answer).__name__}); is it running?"
        raise ServiceError(told, 0) from answer
    if answer.is_error:
        raise ServiceError(f"status {answer.status_code}: {answer.text[:300]}", answer.status_code)
    return answer
