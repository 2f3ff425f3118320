"""Bodies of requests and answers; a request with an unknown field is refused."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    StrictInt,
)

from reactune.privacy.user_ids import MAX_ID_CHARS
from reactune.records import MAX_DWELL_MS, MAX_TIP_ID_CHARS, Arm, Reaction, Unit, whole_dwell_ms
from reactune.service.tips import KIND, TIP_ID

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
UserId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


def _rounded(dwell_ms: Any) -> Any:
    """A browser's fraction of a millisecond rounded; what is no time stays, and is refused."""
    whole = whole_dwell_ms(dwell_ms) if isinstance(dwell_ms, float) else None
    return dwell_ms if whole is None else whole


DwellMs = Annotated[StrictInt, BeforeValidator(_rounded), Field(ge=0, le=MAX_DWELL_MS)]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TipBody(Body):
    """The user, the kind of tip, and the situation."""

    user: UserId
    """The app's id of the user; only a keyed hash of it is stored."""
    kind: Annotated[str, Field(pattern=f"^{KIND.pattern}$")]
    """Kind of tip: letters, digits, spaces and `_ . : / -`."""
    context: Context = {}
    """Situation; keys outside the allow-list of the settings are dropped."""
    names: Annotated[list[Name], Field(max_length=50)] = []
    """Names of people the app knows of: the model sees placeholders instead."""
    tip_id: Annotated[str, Field(pattern=f"^{TIP_ID.pattern}$")] | None = None
    """An id of the app's own, drawn at random: the same id always returns the same tip."""


class TipAnswer(BaseModel):
    """The tip to show."""

    tip_id: str
    content: str
    recorded: bool
    """False while the database is away: the tip may be shown, but counts in no comparison."""


class ReactionBody(Body):
    """The user's reaction to a tip."""

    tip_id: Annotated[str, Field(min_length=1, max_length=MAX_TIP_ID_CHARS)]
    reaction: Reaction
    dwell_ms: DwellMs
    """Milliseconds that the tip was visible; a fraction, such as 20999.6, is rounded."""


class TrainingBody(Body):
    """The user's decision."""

    allowed: StrictBool
    """Whether later models may learn from the user."""


class ErasureAnswer(BaseModel):
    """The erasure's id; `reactune status` says whether it is complete."""

    erasure: str


class RouteAnswer(BaseModel):
    """The arm of a unit, its probability, and the unit's place in [0, 1)."""

    arm: Arm
    model_version: int
    rollout_id: str | None
    unit: Unit
    unit_key: str
    propensity: float
    bucket: float
    ranges: tuple[tuple[float, float], ...]
    """Half-open ranges of challenger and champion."""
