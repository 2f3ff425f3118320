"""The service from an app in Python: tips now, reports for sure; with and without an event loop.

What is kept on disk meanwhile is in `outbox.py`.
"""

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from reactune.errors import DataError
from reactune.outbox import Outbox, Report
from reactune.records import Reaction

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
