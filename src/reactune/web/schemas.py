"""A tip in the form of OpenAI's chat completions, so that an app only changes its base URL.

The conversation becomes the context of a tip, and the answer's id is the tip's. Streaming starts
when the tip is whole: what the guard has not seen, nobody sees.
"""

import json
import re
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictInt
from starlette.responses import JSONResponse, Response, StreamingResponse

from reactune.errors import DataError
from reactune.records import Arm, Reaction, Unit
from reactune.service.tips import MAX_DWELL_MS, Asked, Tip

Text = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | FiniteFloat
Value = Text | StrictBool | Number
Part = (
    Value
    | Annotated[list[Text], Field(max_length=200)]
    | Annotated[dict[Name, Value], Field(max_length=200)]
)
Context = Annotated[dict[Name, Part | None], Field(max_length=50)]


class Body(BaseModel):
    """A request: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TipRequest(Body):
    """Who asks, for what kind of tip, in which situation."""

    user: Annotated[str, Field(min_length=1, max_length=512)]
    """The app's id of the user; only a keyed hash of it is kept."""
    kind: Annotated[str, Field(pattern=r"^[\w][\w .:/-]{0,99}$")]
    """Kind of tip: letters, digits, spaces and `_ . : / -`."""
    context: Context = {}
    """Situation; keys outside the allow-list of the settings are dropped."""
    names: Annotated[list[Name], Field(max_length=50)] = []
    """Names of people the app knows of: the model sees placeholders instead."""
    tip_id: Annotated[str, Field(pattern=r"^[0-9a-zA-Z_-]{16,64}$")] | None = None
    """An id of yours, drawn at random: asked again with it, the same tip is given."""

    @property
    def parts(self) -> dict[str, Part]:
        """The context without what is null."""
        return {key: part for key, part in self.context.items() if part is not None}


class TrainingRequest(Body):
    """What a user decided."""

    allowed: StrictBool
    """Whether later models may learn from them."""


class ErasureAnswer(BaseModel):
    """What was written down; `reactune status` says whether it is done everywhere."""

    erasure: str


class TipAnswer(BaseModel):
    """The tip to show."""

    tip_id: str
    content: str
    recorded: bool
    """False while the database is away: the tip may be shown, but nothing of it is kept."""


class RouteAnswer(BaseModel):
    """Which arm a unit has, how likely that was, and where in [0, 1) it fell."""

    arm: Arm
    model_version: int
    rollout_id: str | None
    unit: Unit
    unit_key: str
    propensity: float
    bucket: float
    ranges: tuple[tuple[float, float], ...]
    """Half-open ranges of challenger and champion."""


class ReactionRequest(Body):
    """What the user did with a tip."""

    tip_id: Annotated[str, Field(min_length=1, max_length=200)]
    reaction: Reaction
    dwell_ms: Annotated[StrictInt, Field(ge=0, le=MAX_DWELL_MS)]
    """Milliseconds that the tip was looked at."""


MODEL = "reactune"
USER_HEADER, KIND_HEADER = "x-reactune-user", "x-reactune-kind"
UNRECORDED = {"x-reactune-recorded": "false"}
KIND = re.compile(r"[\w][\w .:/-]{0,99}")
# Ignoring these would give another answer than the one that was asked for.
REFUSED = ("tools", "functions", "tool_choice", "function_call", "audio", "logprobs")


class TextPart(BaseModel):
    """A piece of a message that is text."""

    model_config = ConfigDict(frozen=True)

    type: Literal["text"]
    text: Annotated[str, Field(max_length=20_000)]


class Message(BaseModel):
    """One message of the conversation; other fields are OpenAI's, and not used."""

    model_config = ConfigDict(frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Annotated[str, Field(max_length=20_000)] | Annotated[list[TextPart], Field(max_length=50)]
    )

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class ChatRequest(BaseModel):
    """OpenAI's request. How tips are sampled is set in `[serve]`, because exposures tell it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    model: Annotated[str, Field(max_length=200)] = MODEL
    messages: Annotated[list[Message], Field(min_length=1, max_length=100)]
    user: Annotated[str, Field(max_length=512)] = ""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1

    def asked(self, user: str, kind: str) -> Asked:
        """The tip that is asked for: the newest message first, as long contexts lose their end.

        Raises:
            DataError: nobody is named, the kind is none, or the answer would have to be no tip.
        """
        found = [name for name in REFUSED if (self.model_extra or {}).get(name)]
        if found:
            raise DataError(f"{', '.join(found)}: a tip is one text; leave that out")
        if not (user or self.user):
            raise DataError(f"say who gets the tip: header {USER_HEADER}, or user in the body")
        if not KIND.fullmatch(kind):
            raise DataError(f"{KIND_HEADER}: letters, digits, spaces and _ . : / -")
        spoken = [each for each in self.messages if each.role in ("user", "assistant")]
        if len(spoken) == len(self.messages) == 1:
            text = spoken[0].text
        else:
            text = "\n".join(f"{each.role}: {each.text}" for each in reversed(self.messages))
        return Asked(user or self.user, kind, {"free_text": text})


def chat_answer(body: ChatRequest, tip: Tip) -> Response:
    """The tip as one completion, or as the events of a stream.

    A header says so where the database was away, and nothing of the tip is kept.
    """
    headers = None if tip.recorded else UNRECORDED
    if body.stream:
        events = _events(body, tip)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    message = {"role": "assistant", "content": tip.content, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return JSONResponse(
        {**_head("chat.completion", tip), "choices": [choice], "usage": _usage(tip)},
        headers=headers,
    )


def _events(body: ChatRequest, tip: Tip) -> Iterator[str]:
    head = _head("chat.completion.chunk", tip)
    pieces = re.findall(r"\s*\S+\s*$|\s*\S+", tip.content)
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}]
    for delta in (*deltas, *({"content": piece} for piece in pieces)):
        yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if (body.stream_options or {}).get("include_usage"):
        yield _event({**head, "choices": [], "usage": _usage(tip)})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


def _head(kind: str, tip: Tip) -> dict[str, Any]:
    return {"id": tip.tip_id, "object": kind, "created": int(time.time()), "model": MODEL}


def _usage(tip: Tip) -> dict[str, int]:
    return {
        "prompt_tokens": tip.prompt_tokens,
        "completion_tokens": tip.tokens,
        "total_tokens": tip.prompt_tokens + tip.tokens,
    }
