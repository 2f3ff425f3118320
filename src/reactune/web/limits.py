"""What a request may weigh, and how refusals are worded: without anything that was sent.

Which requests there are is left to `api.py`.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reactune.errors import AwayError, CanaryError, DataError, PrivacyError, ReactuneError
from reactune.recorder import BusyError
from reactune.serving import UnknownTipError

MAX_BODY_BYTES = 256 * 1024
TIPS_AT_ONCE = 64
AGAIN = {"retry-after": "1"}

log = logging.getLogger(__name__)


class FullError(CanaryError):
    """More tips are asked for than may wait."""


class Places:
    """Lets so many tips be written at once and so many more wait; refuses the rest."""

    def __init__(self, waiting: int, at_once: int = TIPS_AT_ONCE) -> None:
        self.free = asyncio.Semaphore(at_once)
        self.most, self.taken = waiting + at_once, 0

    async def __aenter__(self) -> None:
        if self.taken >= self.most:
            raise FullError("too many tips are being written; try again in a moment")
        self.taken += 1
        try:
            await self.free.acquire()
        except asyncio.CancelledError:
            self.taken -= 1
            raise

    async def __aexit__(self, *error: object) -> None:
        self.taken -= 1
        self.free.release()


class BodyLimit:
    """Refuses bodies above `max_bytes` with 413, whatever length they claim."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body first, at most `max_bytes` of it, then pass it on whole."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            more = message.get("more_body", False)
            if sum(map(len, chunks)) > self.max_bytes:
                answer = refusal(413, f"the body is larger than {self.max_bytes:,} bytes")
                await answer(scope, receive, send)
                return
        body: list[Message] = [{"type": "http.request", "body": b"".join(chunks)}]

        async def replay() -> Message:
            return body.pop() if body else await receive()

        await self.app(scope, replay, send)


def refusal(
    status: int, reason: str, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> JSONResponse:
    """The one form in which the API says no; OpenAI's clients are told in theirs."""
    told: object = reason
    if path.startswith("/v1/chat/"):
        told = {"message": reason, "type": "reactune_error", "param": None, "code": str(status)}
    return JSONResponse({"error": told}, status_code=status, headers=dict(headers or {}))


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Our own errors: 404 for an unknown tip, 422 for what was sent, 503 for what is away."""
    path = request.url.path
    if isinstance(error, BusyError | FullError):
        return refusal(503, str(error), AGAIN, path=path)
    if isinstance(error, AwayError | sa.exc.SQLAlchemyError):
        # What SQLAlchemy says may quote a value; ours does not.
        cause: BaseException = error
        said = "no connection"
        if isinstance(error, AwayError):
            cause, said = error.__cause__ or error, str(error)
        log.error("%s: %s", type(cause).__name__, said)
        reason = "the database does not answer; try again in a moment"
        return refusal(503, reason, AGAIN, path=path)
    if isinstance(error, UnknownTipError):
        return refusal(404, str(error), path=path)
    if isinstance(error, DataError | PrivacyError):
        return refusal(422, str(error), path=path)
    assert isinstance(error, ReactuneError)
    log.error("%s", error)
    return refusal(503, str(error), AGAIN, path=path)


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that does not fit: which field, and what it should be, but not what it was."""
    assert isinstance(error, RequestValidationError)
    reason = "; ".join(sorted({_problem(each) for each in error.errors()}))
    return refusal(422, reason, path=request.url.path)


async def answer_http(request: Request, error: Exception) -> JSONResponse:
    """No such path or method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail), path=request.url.path)


def _problem(problem: dict[str, Any]) -> str:
    # Deeper places and unknown fields are words of the sender's.
    place: Sequence[object] = problem["loc"][1:2]
    if problem["type"] == "extra_forbidden":
        return "an unknown field; see /openapi.json"
    if problem["type"] == "json_invalid":
        return "the body is not JSON"
    return f"{'.'.join(map(str, place)) or 'body'}: {problem['msg']}"
