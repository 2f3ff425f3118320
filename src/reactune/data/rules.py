"""Which labelled tips become examples, and which part they fall into.

Pure functions: examples in, examples out, whatever their order. Tips that are nearly the same are
found by `nearness.py`; files and thresholds are `dataset.py`'s.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from reactune.config import DatasetConfig
from reactune.data.nearness import first_of_each

Part = Literal["train", "validation", "test"]
Question = tuple[str, str, str]  # kind, context and text of a tip
PARTS: tuple[Part, ...] = ("train", "validation", "test")


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

    @property
    def text(self) -> str:
        """The tip as it is compared: runs of white space count as one space."""
        return " ".join(self.tip.split())


@dataclass(frozen=True)
class Chosen:
    """The examples that the rules leave, and how many each rule removed."""

    examples: tuple[Example, ...]
    removed: Mapping[str, int]


Progress = Callable[[str, int], None]


def choose(examples: Iterable[Example], settings: DatasetConfig, *, progress: Progress) -> Chosen:
    """Apply the rules in order: repeats, contradictions, duplicates, cap. Oldest first comes out.

    `progress` is told the name of each rule and the number of examples it left.
    """
    kept = sorted(examples, key=_age)
    removed = {}
    for name, rule in RULES:
        before = len(kept)
        kept = rule(kept, settings)
        removed[name] = before - len(kept)
        progress(name, len(kept))
    return Chosen(tuple(kept), removed)


def part_of(user_key: str, settings: DatasetConfig) -> Part:
    """The part that a user's examples fall into; it stays as long as seed and shares stay."""
    digest = hashlib.sha256(f"{settings.seed}:{user_key}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    train, validation, _ = settings.split
    if place < train:
        return "train"
    return "validation" if place < train + validation else "test"


def split(
    examples: Iterable[Example], settings: DatasetConfig
) -> tuple[dict[Part, tuple[Example, ...]], int]:
    """The examples by part, sorted by tip_id, and how many were removed because they leaked.

    No user is in two parts, and no tip text either: a text that stands in an earlier part, in
    whatever case, is removed from the later one.
    """
    by_part: dict[Part, list[Example]] = {part: [] for part in PARTS}
    for example in sorted(examples, key=lambda example: example.tip_id):
        by_part[part_of(example.user_key, settings)].append(example)
    seen: set[str] = set()
    leaked = 0
    parts: dict[Part, tuple[Example, ...]] = {}
    for part in PARTS:
        parts[part] = tuple(e for e in by_part[part] if e.text.casefold() not in seen)
        leaked += len(by_part[part]) - len(parts[part])
        seen |= {example.text.casefold() for example in parts[part]}
    return parts, leaked


def drop_repeats(examples: Sequence[Example], settings: DatasetConfig) -> list[Example]:
    """One example per tip_id, the newest: a source may hold a tip twice, the store never does."""
    newest = {example.tip_id: example for example in sorted(examples, key=_age)}
    return sorted(newest.values(), key=_age)


def settle_contradictions(examples: Sequence[Example], settings: DatasetConfig) -> list[Example]:
    """Of one text in one context with both labels, those with the label that more users gave.

    Each user has one vote, their newest reaction; a tie removes all of them. The same text in two
    contexts is no contradiction: that it fits one and not the other is what is to be learned.
    """
    votes: dict[Question, dict[str, int]] = defaultdict(dict)
    for example in sorted(examples, key=_age):
        votes[_question(example)][example.user_key] = 1 if example.label else -1
    lead = {question: sum(vote.values()) for question, vote in votes.items()}
    return [
        example
        for example in examples
        if (lead[_question(example)] > 0 if example.label else lead[_question(example)] < 0)
    ]


def drop_exact(examples: Sequence[Example], settings: DatasetConfig) -> list[Example]:
    """One example per kind, context, text and label: the oldest; a repetition is nothing new."""
    oldest: dict[tuple[Question, bool], Example] = {}
    for example in sorted(examples, key=_age):
        oldest.setdefault((_question(example), example.label), example)
    return list(oldest.values())


def drop_near(examples: Sequence[Example], settings: DatasetConfig) -> list[Example]:
    """One of all tips of a kind and label that are nearly the same, whatever the context.

    Oldest first, a tip stays if no tip that stayed is near it, so newer tips change nothing.
    """
    groups: dict[tuple[str, bool], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=_age):
        groups[example.kind, example.label].append(example)
    kept = []
    for group in groups.values():
        texts = [example.text for example in group]
        kept += [group[place] for place in first_of_each(texts, settings.near_duplicate)]
    return sorted(kept, key=_age)


def cap_users(examples: Sequence[Example], settings: DatasetConfig) -> list[Example]:
    """At most `max_per_user` examples of each user: the newest."""
    counts: Counter[str] = Counter()
    kept = []
    for example in sorted(examples, key=_age, reverse=True):
        counts[example.user_key] += 1
        if counts[example.user_key] <= settings.max_per_user:
            kept.append(example)
    return kept[::-1]


def _age(example: Example) -> tuple[datetime, str]:
    return example.created_at, example.tip_id


def _question(example: Example) -> Question:
    return example.kind, example.context_json, example.text


Rule = Callable[[Sequence[Example], DatasetConfig], list[Example]]
RULES: tuple[tuple[str, Rule], ...] = (
    ("repeated tip_id", drop_repeats),
    ("contradicted", settle_contradictions),
    ("exact duplicates", drop_exact),
    ("near duplicates", drop_near),
    ("over the cap per user", cap_users),
)
