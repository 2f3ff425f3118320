"""What crosses a wall between rooms: frozen values, and the manifests of a run folder.

No room's logic stands here, and nothing heavy is imported.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

Reaction = Literal["done", "dismiss", "snooze"]
REACTIONS: tuple[Reaction, ...] = ("done", "dismiss", "snooze")
Arm = Literal["champion", "challenger"]
Phase = Literal["idle", "shadow", "canary", "ramp", "holdback", "closed"]
Unit = Literal["tip", "user_day", "user"]
Verdict = Literal["promote", "roll back", "wait"]
STAGES = ("extract", "dataset", "train", "evaluate", "export", "register", "deploy")
REVIEW_STEPS = ("compare", "decide", "promote", "rollback", "wait")


@dataclass(frozen=True)
class Prompt:
    """One assembled prompt: what the model sees, what is logged, and what fills it in again."""

    kind: str
    context_json: str
    text: str
    token_ids: tuple[int, ...]
    placeholders: Mapping[str, str] = field(default_factory=dict, repr=False)


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


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of the tip generator. `name` is immutable on the model server."""

    version: int
    name: str
    run_id: str
    gguf: Path
    sha256: str
    prompt_folder: Path
    base: str
    quantisation: str
    adapter: Path | None = None


class Runtime(Protocol):
    """A model server: Ollama, or llama.cpp in a process of ours. Same calls, same meaning."""

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

    def retire(self, model: ModelVersion) -> None:
        """Free what the version holds on the server; unknown versions are fine."""

    def close(self) -> None:
        """Stop what this connection started."""


@dataclass(frozen=True)
class Rollout:
    """What is live: the one truth. `challenger` is None while the phase is idle or closed.

    In `shadow` it answers nobody aloud, so `share` is 0; in `holdback` it is the former champion.
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


@dataclass(frozen=True)
class Manifest:
    """What one stage of a run read and wrote; written last, so its presence means done.

    `kept_at` is where the outputs are where this is a copy, made for another worker. `erased` says
    what was taken out of inputs and outputs since, and their digests of before.
    """

    stage: str
    outcome: Literal["done", "waiting", "refused"]
    summary: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    counts: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    finished_at: str
    kept_at: str = ""
    erased: Sequence[Mapping[str, Any]] = field(default_factory=list)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one, crash or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a stage's folder, atomically."""
    write_atomically(folder / "manifest.json", json.dumps(asdict(manifest), indent=2, default=str))


def read_manifest(folder: Path) -> Manifest | None:
    """The stage's manifest if it is whole and every output is as it was written, else None.

    Outputs that are kept elsewhere are looked at when they are fetched.
    """
    manifest = stated_manifest(folder)
    if manifest is None:
        return None
    intact = bool(manifest.kept_at) or all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        for name, digest in manifest.outputs.items()
    )
    return manifest if intact else None


def stated_manifest(folder: Path) -> Manifest | None:
    """The stage's manifest if it is whole, whatever became of the outputs; else None."""
    file = folder / "manifest.json"
    if not file.is_file():
        return None
    try:
        return Manifest(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
