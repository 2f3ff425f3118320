"""What a reader notices in a tip: its form, and how it fits the moment it was written for.

Plain properties of text and situation, 0 to 1; how much anyone cares is decided in `tastes.py`.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from reactune.demo.words import (
    LITTLE_WORDS,
    NUMBERS,
    PARTS_OF_DAY,
    VERBS,
    WORDS_OF_KIND,
    WORDS_OF_WISH,
)
from reactune.demo.world import Value

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
UNITS = r"(?:minutes?|mins?|hours?|seconds?|times?|steps?|glass(?:es)?|pages?|breaths?|am|pm)"
AMOUNT = re.compile(rf"\b(?:\d+|{'|'.join(NUMBERS)}|a|an|half an)[\s-]*{UNITS}\b|\b\d+\b", re.I)
ABOUT_ITSELF = re.compile(
    r"\b(?:tips?|sentences?|suggestions?|smollm|assistant|assist|ai|chatbot|users?|the text|"
    r"version|i'm|i'd|i'll|i've|i|my|me|here's|here is|this is|example|prompt|advice|coach|notes|"
    r"settings|time of day|free text|revised|rewritten)\b|\b(?:goal|task):",
    re.I,
)


@dataclass(frozen=True)
class Reading:
    """A tip as one reads it at its moment; every share is between 0 and 1."""

    words: int
    opens_with_action: float
    names_a_task: float
    names_an_amount: float
    fits_the_hour: float
    clashes_with_the_hour: float
    fits_the_person: float
    fits_the_kind: float
    about_itself: float
    repeats_itself: float
    breaks_off: float


def read(tip: str, kind: str, context: Mapping[str, Value]) -> Reading:
    """Read a tip for one kind of moment. A text without words reads as empty, never as an error."""
    plain = plain_text(tip)
    words = WORD.findall(plain)
    content = stems(words)
    part = part_of_day(str(context.get("time_of_day", "")))
    of_part = stems(PARTS_OF_DAY.get(part, ()))
    of_others = stems(chain.from_iterable(PARTS_OF_DAY.values())) - of_part
    return Reading(
        words=len(words),
        opens_with_action=_action(plain, words),
        names_a_task=_task(content, context.get("open_tasks", [])),
        names_an_amount=1.0 if AMOUNT.search(plain) else 0.0,
        fits_the_hour=float(bool(content & of_part)),
        clashes_with_the_hour=float(bool(part and content & of_others and not content & of_part)),
        fits_the_person=float(bool(content & stems(_wishes(context)))),
        fits_the_kind=min(1.0, len(content & stems(WORDS_OF_KIND.get(kind, ()))) / 2),
        about_itself=min(1.0, len(ABOUT_ITSELF.findall(plain)) / 2),
        repeats_itself=_repetition(words),
        breaks_off=0.0 if re.search(r"[.!?]$", plain.rstrip("\"'*) ")) else 1.0,
    )


def plain_text(tip: str) -> str:
    """The tip in lower case on one line, without the quotes and stars around it."""
    text = " ".join(tip.lower().replace("\u2019", "'").split())
    return text.strip("\"'*#-\u201c\u201d ")


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """The word without the ending of plural, past or progressive: enough to meet its kin."""
    for ending in ("ing", "ies", "es", "ed", "s"):
        if len(word) - len(ending) >= 3 and word.endswith(ending):
            return word[: -len(ending)]
    return word


def stems(words: Iterable[str]) -> frozenset[str]:
    """The stems of the words that say something."""
    return frozenset(stem(word) for word in words if word not in LITTLE_WORDS)


def part_of_day(time_of_day: str) -> str:
    """The part of day that a text names first: morning, noon, afternoon, evening or none."""
    return next((word for word in WORD.findall(time_of_day.lower()) if word in PARTS_OF_DAY), "")


def _action(plain: str, words: list[str]) -> float:
    """1 if the tip opens with an action, 0.6 if one follows a short opening, else 0."""
    if not words:
        return 0.0
    soft = ("please", "just", "now", "today", "always", "never", "first", "don't", "do", "not")
    opening = next((word for word in words[:3] if word not in soft), "")
    if opening in VERBS:
        return 1.0
    before, comma, after = plain.partition(",")
    following = WORD.findall(after)[:1]
    near = bool(comma) and len(WORD.findall(before)) <= 8
    return 0.6 if near and following and following[0] in VERBS else 0.0


def _task(content: Collection[str], tasks: Value) -> float:
    """How much of the best-met open task the tip names; two of its words are all."""
    best = 0.0
    for task in tasks if isinstance(tasks, list) else []:
        named = stems(WORD.findall(task.lower()))
        if named:
            best = max(best, len(named & set(content)) / min(2, len(named)))
    return min(1.0, best)


def _wishes(context: Mapping[str, Value]) -> tuple[str, ...]:
    """The words that would serve the goal in the settings, and the note."""
    settings = context.get("user_settings", {})
    goal = str(settings.get("goal", "")) if isinstance(settings, dict) else ""
    note = str(context.get("free_text", ""))
    return (*WORDS_OF_WISH.get(goal, ()), *WORDS_OF_WISH.get(note, ()))


def _repetition(words: list[str]) -> float:
    """How much of the text is words it used before, from 0 (as usual) to 1."""
    if len(words) < 6:
        return 0.0
    again = 1 - len(set(words)) / len(words)
    return min(1.0, max(0.0, (again - 0.25) / 0.35))
