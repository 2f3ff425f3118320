"""What requests and answers of the API hold, with the size of each part.

What is done with them is left to `serving.py`.
"""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, StrictInt

from reactune.records import Arm, Reaction, Unit
from reactune.serving import MAX_DWELL_MS

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


class LiveRollout(BaseModel):
    """What is live."""

    rollout_id: str
    champion: int
    challenger: int | None
    phase: str
    share: float
    salt: str
    unit: Unit
    planned_units: int
    opened_at: datetime
    share_since: datetime


class ReactionRequest(Body):
    """What the user did with a tip."""

    tip_id: Annotated[str, Field(min_length=1, max_length=200)]
    reaction: Reaction
    dwell_ms: Annotated[StrictInt, Field(ge=0, le=MAX_DWELL_MS)]
    """Milliseconds that the tip was looked at."""
