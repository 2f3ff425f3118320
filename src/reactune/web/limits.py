"""What a request may weigh, and how refusals are worded: without anything that was sent.

Which requests there are is left to `api.py`.
"""

import logging
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reactune.errors import DataError, PrivacyError, ReactuneError
from reactune.serving import UnknownTipError

MAX_BODY_BYTES = 256 * 1024

log = logging.getLogger(__name__)


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


def refusal(status: int, reason: str) -> JSONResponse:
    """The one form in which the API says no."""
    return JSONResponse({"error": reason}, status_code=status)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Our own errors: 404 for an unknown tip, 422 for what was sent, 503 for what is away."""
    cause = error if isinstance(error, sa.exc.SQLAlchemyError) else error.__cause__
    if isinstance(cause, sa.exc.SQLAlchemyError):
        log.error("%s: %s", type(cause).__name__, error if error is not cause else "no connection")
        return refusal(503, "the database does not answer; try again in a moment")
    if isinstance(error, UnknownTipError):
        return refusal(404, str(error))
    if isinstance(error, DataError | PrivacyError):
        return refusal(422, str(error))
    assert isinstance(error, ReactuneError)
    log.error("%s", error)
    return refusal(503, str(error))


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """A body that does not fit: which field, and what it should be, but not what it was."""
    assert isinstance(error, RequestValidationError)
    return refusal(422, "; ".join(sorted({_problem(each) for each in error.errors()})))


async def answer_http(request: Request, error: Exception) -> JSONResponse:
    """No such path or method, or a body that cannot be read."""
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, str(error.detail))


def _problem(problem: dict[str, Any]) -> str:
    # Deeper places and unknown fields are words of the sender's.
    place: Sequence[object] = problem["loc"][1:2]
    if problem["type"] == "extra_forbidden":
        return "an unknown field; see /openapi.json"
    if problem["type"] == "json_invalid":
        return "the body is not JSON"
    return f"{'.'.join(map(str, place)) or 'body'}: {problem['msg']}"
