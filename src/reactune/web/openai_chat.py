"""A tip in the form of OpenAI's chat completions, so that an app only changes its base URL.

The conversation becomes the context of a tip, and the answer's id is the tip's id. A stream starts
after the guard has read the whole tip (decision 21).
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from reactune.errors import DataError
from reactune.privacy.user_ids import MAX_ID_CHARS
from reactune.service.tips import KIND, Tip, TipRequest
from reactune.web.schemas import Text

MODEL = "reactune"
USER_HEADER, KIND_HEADER = "x-reactune-user", "x-reactune-kind"
CHAT_KIND = "chat"  # of a tip whose request names none
UNRECORDED = {"x-reactune-recorded": "false"}
# Ignoring one of these would return another kind of answer than the client expects, unless it is
# empty or has one of the values that ask for nothing more than a text. Tools that must not be
# called ask for nothing, too.
CHOICE_OF = {"tools": "tool_choice", "functions": "function_call"}
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (),
    "functions": (),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "logprobs": (),
    "top_logprobs": (),
}


class TextPart(BaseModel):
    """A part of a message that is text; a model's refusal says nothing of the user."""

    model_config = ConfigDict(frozen=True)

    type: Literal["text", "refusal"]
    text: Text = ""


def _one_refusal(content: Any, read: Callable[[Any], Any]) -> Any:
    """One sentence in place of pydantic's, which has one for each form a content may have."""
    try:
        return read(content)
    except ValidationError:
        raise PydanticCustomError(
            "content", "give a text of at most 20,000 characters, or 50 parts of type text"
        ) from None


class Message(BaseModel):
    """One message of the conversation; OpenAI's other fields are ignored.

    A message that only calls a tool has no content.
    """

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        Text | Annotated[list[TextPart], Field(max_length=50)] | None, WrapValidator(_one_refusal)
    ] = None

    @property
    def text(self) -> str:
        """The message's text; none of one without content."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatBody(BaseModel):
    """OpenAI's request. Sampling parameters are ignored: `[serve]` sets them for every tip."""

    model_config = ConfigDict(frozen=True, extra="allow")

    model: Annotated[str, Field(max_length=200)] | None = MODEL
    messages: Annotated[list[Message], Field(min_length=1, max_length=100)]
    user: Annotated[str, Field(max_length=MAX_ID_CHARS)] | None = None
    safety_identifier: Annotated[str, Field(max_length=MAX_ID_CHARS)] | None = None
    """OpenAI's later name of `user`."""
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None


def tip_request(body: ChatBody, *, user: str, kind: str) -> TipRequest:
    """The tip to create; `user` is the header's, which takes precedence over the body's two.

    The newest message comes first, because long contexts lose their end.

    Raises:
        DataError: no user, an invalid kind, or an option that a tip does not support.
    """
    asked = body.model_extra or {}
    unsupported = [
        name
        for name, harmless in UNSUPPORTED.items()
        if asked.get(name)
        and asked[name] not in harmless
        and asked.get(CHOICE_OF.get(name, "")) != "none"
    ]
    if unsupported:
        raise DataError(f"{', '.join(unsupported)}: a tip is one text; leave that out")
    user = user or body.user or body.safety_identifier or ""
    if not user:
        raise DataError(f"no user: give the header {USER_HEADER}, or user in the body")
    if not KIND.fullmatch(kind):
        raise DataError(f"{KIND_HEADER}: letters, digits, spaces and _ . : / -")
    messages = [message for message in body.messages if message.text]
    if not messages:
        raise DataError("messages: no text in any of them; give one")
    if [message.role for message in messages] in (["user"], ["assistant"]):
        text = messages[0].text
    else:
        text = "\n".join(f"{each.role}: {each.text}" for each in reversed(messages))
    return TipRequest(user, kind, {"free_text": text})


def models_answer() -> dict[str, Any]:
    """OpenAI's list of models: the one name, behind which the rollout chooses."""
    return {"object": "list", "data": [model_answer(MODEL)]}


def model_answer(name: str) -> dict[str, Any]:
    """OpenAI's description of one model.

    Raises:
        HTTPException: 404 for another name than the one there is.
    """
    if name != MODEL:
        raise HTTPException(404, f"no model of this name; there is one, {MODEL}")
    return {"id": MODEL, "object": "model", "created": 0, "owned_by": MODEL}


def chat_answer(body: ChatBody, tip: Tip) -> Response:
    """The tip as one completion, or as the events of a stream.

    A header reports a tip that is not recorded, because the database is away.
    """
    headers = None if tip.recorded else UNRECORDED
    if body.stream:
        events = _events(body, tip)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    message = {"role": "assistant", "content": tip.content, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(tip)}
    return JSONResponse(
        {**_head("chat.completion", tip), "choices": [choice], "usage": _usage(tip)},
        headers=headers,
    )


def _events(body: ChatBody, tip: Tip) -> Iterator[str]:
    head = _head("chat.completion.chunk", tip)
    words = re.findall(r"\s*\S+\s*$|\s*\S+", tip.content)
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    for delta in deltas:
        yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": _reason(tip)}]})
    if (body.stream_options or {}).get("include_usage"):
        yield _event({**head, "choices": [], "usage": _usage(tip)})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _head(kind: str, tip: Tip) -> dict[str, Any]:
    return {"id": tip.tip_id, "object": kind, "created": int(time.time()), "model": MODEL}


def _reason(tip: Tip) -> Literal["stop", "length"]:
    return "length" if tip.cut else "stop"


def _usage(tip: Tip) -> dict[str, int]:
    return {
        "prompt_tokens": tip.prompt_tokens,
        "completion_tokens": tip.tokens,
        "total_tokens": tip.prompt_tokens + tip.tokens,
    }
