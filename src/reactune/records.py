"""Values that several packages share, and how a file is hashed and written whole.

Frozen dataclasses without logic of one package; importing them costs nothing.
"""

import codecs
import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol

from reactune.errors import DataError

Reaction = Literal["done", "dismiss", "snooze"]
REACTIONS: tuple[Reaction, ...] = ("done", "dismiss", "snooze")
REACTION_WORDS: Mapping[str, Reaction] = {
    **{name: name for name in REACTIONS},
    "dismissed": "dismiss",
    "snoozed": "snooze",
}
"""What apps write, in small letters, and the reaction that they mean."""
MAX_DWELL_MS = 2**31 - 1  # what a column of whole numbers holds: 24 days
MAX_TIP_ID_CHARS = 200
Arm = Literal["champion", "challenger"]
Phase = Literal["idle", "shadow", "canary", "ramp", "holdback", "closed"]
Unit = Literal["tip", "user_day", "user"]
Fallback = Literal["error", "timeout", "blocked", "stopped"]
Verdict = Literal["promote", "roll back", "wait"]
Actor = Literal["review", "hand"]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
NOT_UTF8 = "invalid UTF-8, perhaps Latin-1 or Windows-1252"
WORD = re.compile(r"[^\W_]+")
STAGES = ("extract", "dataset", "reward", "train", "evaluate", "export", "register", "deploy")
REVIEW_STEPS = ("compare", "decide", "promote", "rollback", "wait")


@dataclass(frozen=True)
class Prompt:
    """One assembled prompt: what the model sees, what is logged, what its placeholders stand for.

    `context` is what `context_json` holds, so that nobody parses it again.
    """

    kind: str
    context_json: str
    text: str
    token_ids: tuple[int, ...]
    placeholders: Mapping[str, str] = field(default_factory=dict, repr=False)
    context: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Sampling:
    """How a tip is drawn; logged with every exposure."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """What a model server answered. `logprob` is the text's sum, where the server tells."""

    text: str
    prompt_tokens: int
    tokens: int
    stopped: Literal["stop", "length"]
    seconds: float
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One tip that somebody liked or did not, and what it was an answer to."""

    tip_id: str
    user_key: str
    kind: str
    context_json: str
    instruction: str
    input: str
    prompt: str
    tip: str
    label: bool
    dwell_ms: int
    created_at: datetime


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of the tip generator. `name` is immutable on the model server.

    `reward` is the folder of the reward model that chooses among its texts, if there is one.
    """

    version: int
    name: str
    run_id: str
    gguf: Path
    sha256: str
    prompt_folder: Path
    base: str
    quantisation: str
    adapter: Path | None = None
    reward: Path | None = None


class Runtime(Protocol):
    """A model server, ours or somebody else's. Same calls, same meaning.

    This is all that the package calls on one, and each server implements all of it.
    """

    def check(self, *, versions: int = 1, base: str = "") -> str:
        """One line about the server, if it can be used from here; nothing is started.

        Raises:
            ReleaseError: it is away or not installed, cannot hold so many versions at once, or
                holds another model than `base`, the name of `[model] base`; with what to do.
            TimeoutError: that is not known in time.
        """

    def publish(self, model: ModelVersion) -> None:
        """Make the version answerable under its name; repeating it changes nothing.

        Raises:
            ReleaseError: the server is away, or refuses the file.
        """

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """Continue the rendered prompt (special tokens included) up to a stop token.

        Raises:
            ReleaseError: the server is away, slow beyond its time limit, or answers nonsense.
        """

    async def write(
        self, model: ModelVersion, prompt: str, sampling: Sampling, *, count: int = 1
    ) -> tuple[Completion, ...]:
        """`generate`, awaited, `count` times: the prompt is read once where the server can.

        The texts are drawn with seeds of their own, from `sampling.seed` upwards. All calls come
        from one event loop until `end_writing`.

        Raises:
            ReleaseError: as `generate`.
        """

    async def end_writing(self) -> None:
        """Close the connections of `write`, in its event loop; the next `write` opens new ones."""

    def token_logprobs(
        self, model: ModelVersion, prompt: Sequence[int], completion: Sequence[int]
    ) -> tuple[float, ...] | None:
        """The server's natural log-probability of each token id of a completion of the prompt.

        None: the server does not tell them of a text that it did not write.

        Raises:
            ReleaseError: as `generate`.
        """

    def chat_prompt_tokens(self, model: ModelVersion, user_text: str) -> int | None:
        """How many tokens the server's own chat template makes of a user message.

        None: the server has no such template.

        Raises:
            ReleaseError: as `generate`.
        """

    def set_aliases(
        self,
        models: Mapping[str, ModelVersion | None],
        *,
        fetch: Callable[[ModelVersion], object],
    ) -> list[str]:
        """Make each mutable tag follow its version, or remove it for None; a line per change.

        `fetch` brings the files of a version here before it is published. A server without such
        tags changes nothing.

        Raises:
            ReleaseError: the server is away, or refuses a version.
        """

    def retire(self, model: ModelVersion) -> None:
        """Free what the version holds on the server; unknown versions are fine."""

    def close(self) -> None:
        """Stop what this connection started."""


@dataclass(frozen=True)
class Rollout:
    """What is live: the one truth. `challenger` is None while the phase is idle or closed.

    In the phase `shadow` no user sees its answers, so `share` is 0; in `holdback` it is the former
    champion.
    """

    rollout_id: str
    champion: int
    challenger: int | None
    phase: Phase
    share: float
    salt: str
    unit: Unit
    planned_units: int
    opened_at: datetime
    share_since: datetime


@dataclass(frozen=True)
class Reason:
    """Why a rollout opened, changed, stayed or ended: who decided it, on which numbers, and when.

    `numbers` are plain JSON values; `actor` is `review`, or `hand` for a person.
    """

    actor: Actor
    text: str
    numbers: Mapping[str, Any]
    now: datetime


@dataclass(frozen=True)
class Exposure:
    """A tip as it was assigned, written and guarded: the columns of its row when it is created.

    `model_version` and `sampling_json` are None for a stored tip. `rollout_id` is None where the
    tip belongs to no comparison. `guard` lists the verdicts on texts that were not shown, then
    `passed`. `answer_ms` is the time until the text was there. `cut` where it is the whole
    sentences of an answer that `max_tokens` ended. Where a reward model chose, `choice_json` holds
    the candidates with their rewards, and `choice_chance` the chance of the one that is shown.
    """

    tip_id: str
    user_key: str
    key_id: str
    kind: str
    context_json: str
    source: Literal["llm", "stored"]
    tip_content: str
    model_version: int | None
    sampling_json: str | None
    fallback: Fallback | None
    guard: str
    arm: Arm
    rollout_id: str | None
    unit_key: str
    propensity: float
    created_at: datetime
    answer_ms: int
    cut: bool = False
    choice_json: str | None = None
    choice_chance: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Counts:
    """What came into a step, what went out, and what was refused, by reason."""

    came_in: int
    went_out: int
    refused: Mapping[str, int] = field(default_factory=dict)

    def line(self) -> str:
        """One line for the person at the terminal."""
        parts = [f"{count:,} {reason}" for reason, count in self.refused.items() if count]
        refused = f"; refused: {', '.join(parts)}" if parts else ""
        return f"{self.came_in:,} in, {self.went_out:,} out{refused}"


def is_tip_id(text: str) -> bool:
    """Whether the service may have given a tip this id."""
    return 0 < len(text) <= MAX_TIP_ID_CHARS and text.isprintable()


def whole_dwell_ms(dwell_ms: float) -> int | None:
    """A dwell time in whole milliseconds (browsers count fractions), or None if it is none."""
    if isinstance(dwell_ms, bool) or not isinstance(dwell_ms, Real):
        return None
    if not math.isfinite(dwell_ms) or not -0.5 <= dwell_ms <= MAX_DWELL_MS:
        return None
    return round(dwell_ms)


def read_utf8(path: Path) -> str:
    """The text of a file in UTF-8, whatever the locale says; a byte order mark is no part of it.

    Raises:
        OSError: the file cannot be read.
        DataError: it is in another encoding, which the message names.
    """
    return utf8_text(path.read_bytes(), str(path))


def utf8_text(data: bytes, name: str) -> str:
    """As `read_utf8`, of bytes that were read from what is called `name`."""
    if encoding := wide_encoding(data):
        raise DataError(f"{name}: is {encoding}, not UTF-8; save it as UTF-8")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line}: {NOT_UTF8}; save it as UTF-8") from error


def wide_encoding(data: bytes) -> str:
    """`UTF-16` or `UTF-32` if a text that begins so is in it, by its mark or its zero bytes."""
    # UTF-32's mark begins with that of UTF-16.
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    head = data[:4]
    is_wide = len(head) == 4 and (head[::2] == b"\0\0") != (head[1::2] == b"\0\0")
    return "UTF-16" if is_wide else ""


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_line(text: str) -> str:
    """The text with every run of white space as one space: line breaks do not make another text."""
    return " ".join(text.split())


def folded_text(text: str) -> str:
    """The text as people compare it: equal for texts that differ in white space and case only."""
    return one_line(text).casefold()


def plain_words(text: str) -> str:
    """The words alone, in small letters: equal for texts that differ in punctuation, too."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, with the endings of `path`, whose place it takes at the end.

    So a reader sees the old file or the whole new one, and after an error still the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{''.join(path.suffixes)}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one, crash or not."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
