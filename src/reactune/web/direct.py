"""The short way of a hot path: a valid request goes to its answer past the framework's routing.

FastAPI has every route all the same: it describes them in `/openapi.json`, and it answers each
request that is not valid here, so a refusal has one form (decision 63).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reactune.errors import ReactuneError
from reactune.web.access import refuse_error

JSON = b"application/json"


@dataclass(frozen=True)
class HotPath:
    """A path as it is declared, the form of its body, and its answer.

    `answer` gets the body and the headers; None where the headers are for FastAPI to refuse.
    """

    path: str
    body: type[BaseModel]
    answer: Callable[[Any, Headers], Awaitable[Response] | None]


class Direct:
    """Answers valid requests to `paths`, and passes on all others as they came.

    Stands inside of `BodyLimit`, which hands the body over in one message.
    """

    def __init__(self, app: ASGIApp, *, paths: Mapping[str, HotPath]) -> None:
        self.app, self.paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        hot = self.paths.get(scope["path"]) if scope["type"] == "http" else None
        if hot is None or scope["method"] != "POST" or not _is_json(scope):
            await self.app(scope, receive, send)
            return
        message = await receive()
        try:
            body = hot.body.model_validate_json(message["body"])
        except ValidationError:
            body = None
        answering = None if body is None else hot.answer(body, Headers(scope=scope))
        if answering is None:
            await self.app(scope, _before(message, receive), send)
            return
        scope["route"] = hot
        try:
            answer = await answering
        except (ReactuneError, sa.exc.SQLAlchemyError) as error:
            answer = await refuse_error(Request(scope), error)
        await answer(scope, receive, send)


def _is_json(scope: Scope) -> bool:
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return types == [JSON]


def _before(first: Message, receive: Receive) -> Receive:
    messages = [first]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
