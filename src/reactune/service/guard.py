"""The guard: whether a text may be shown to a user, and how much of it. Pure functions."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reactune.config.sections import ServeConfig
from reactune.pii.detectors import detect_patterns
from reactune.pii.spans import refill, scrub
from reactune.records import Completion, Prompt, plain_words

GuardVerdict = Literal[
    "passed", "empty", "overlong", "repeated", "placeholder", "personal data", "unsafe", "garbled",
    "special token", "cut",
]  # fmt: skip
# Marks of turns and of thinking of many models: a model may spell those of another one, too.
MARKS = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?think(?:ing)?>|</?tool_call>|\[/?INST\]|_of_turn>")
# What ends a sentence, with closing quotes and brackets; after a digit it may end "1." or "3.5".
SENTENCE_END = re.compile(r"(?<!\d)[.!?\u2026]+[\"'\u2019\u201d)\]]*(?=\s|$)|[\u3002\uff01\uff1f]")
ABBREVIATED = re.compile(r"(?:\b(?:[A-Za-z]|Mrs?|Ms|Dr|Prof|St|No|vs|etc|approx|e\.g|i\.e))\.$")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: databases refuse them
NGRAM_WORDS = 4
MAX_REPEATS = 2  # of the same n-gram or sentence in one text


@dataclass(frozen=True)
class Judged:
    """What of a model's answer may be shown, if `verdict` is `passed`.

    `is_cut` where the model was stopped at `max_tokens`, so that the text is a part of its answer.
    """

    text: str
    verdict: GuardVerdict
    is_cut: bool = False


def judge(
    completion: Completion, prompt: Prompt, settings: ServeConfig, *, marks: Sequence[str] = ()
) -> Judged:
    """Judge a model's answer; of one that was cut at `max_tokens`, its whole sentences.

    The verdict is `cut` where it has none, or `on_cut` is not `sentence`. `marks` are as in
    `judge_text`.
    """
    text = completion.text.strip()
    if completion.stopped != "length":
        return Judged(text, judge_text(text, prompt, settings, marks=marks))
    text = whole_sentences(text) if settings.on_cut == "sentence" else ""
    verdict = judge_text(text, prompt, settings, marks=marks) if text else "cut"
    return Judged(text, verdict, is_cut=True)


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if there is none."""
    ends = [
        match.end()
        for match in SENTENCE_END.finditer(text)
        if not ABBREVIATED.search(text[: match.end()])
    ]
    return text[: ends[-1]] if ends else ""


def judge_text(
    text: str, prompt: Prompt, settings: ServeConfig, *, marks: Sequence[str] = ()
) -> GuardVerdict:
    """The first reason against showing a text, or `passed`.

    `marks` are the texts of the model's special tokens. `personal data` is recognised by its form
    alone: the model reads placeholders in place of the context's personal data, and a name that it
    invented belongs to nobody. `repeated` is a loop in the text, or one of the context's
    `recent_tips`.
    """
    if UNSTORABLE.search(text):
        return "garbled"
    if MARKS.search(text) or any(mark in text for mark in marks):
        return "special token"
    shown = refill(text, prompt.placeholders)
    if not text or shown == "":
        return "empty"
    if shown is None:
        return "placeholder"
    if len(shown) > settings.max_tip_chars:
        return "overlong"
    if _holds_personal_data(text, prompt):
        return "personal data"
    if _is_unsafe(shown, settings.unsafe_texts):
        return "unsafe"
    if _has_loop(text) or plain_words(text) in _recent_tips(prompt):
        return "repeated"
    return "passed"


def _holds_personal_data(text: str, prompt: Prompt) -> bool:
    found: dict[str, str] = {}
    scrub(text, placeholders=found, detect=detect_patterns)
    return any(value not in prompt.text for value in found.values())


def _is_unsafe(shown: str, listed: tuple[str, ...]) -> bool:
    words = f" {plain_words(shown)} "
    phrases = filter(None, map(plain_words, listed))
    return any(f" {phrase} " in words for phrase in phrases)


def _has_loop(text: str) -> bool:
    words = plain_words(text).split()
    starts = range(len(words) - NGRAM_WORDS + 1)
    ngrams = Counter(tuple(words[start : start + NGRAM_WORDS]) for start in starts)
    sentences = Counter(filter(None, map(plain_words, re.split(r"[.!?\n]+", text))))
    return any(count > MAX_REPEATS for count in (*ngrams.values(), *sentences.values()))


def _recent_tips(prompt: Prompt) -> set[str]:
    recent = prompt.context.get("recent_tips", [])
    return {plain_words(tip) for tip in ([recent] if isinstance(recent, str) else recent)}
