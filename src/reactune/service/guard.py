"""The guard: whether a text may be shown to a user. Pure functions."""

import re
from collections import Counter
from typing import Literal

from reactune.config.sections import ServeConfig
from reactune.pii.detectors import detect_patterns
from reactune.pii.spans import refill, scrub
from reactune.records import Prompt, plain_words

GuardVerdict = Literal[
    "passed", "empty", "overlong", "repeated", "placeholder", "personal data", "unsafe", "garbled"
]
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL and lone surrogates: databases refuse them
NGRAM_WORDS = 4
MAX_REPEATS = 2  # of the same n-gram or sentence in one text


def judge_text(text: str, prompt: Prompt, settings: ServeConfig) -> GuardVerdict:
    """The first reason against showing a text, or `passed`.

    `personal data` is recognised by its form alone: the model reads placeholders in place of the
    context's personal data, and a name that it invented belongs to nobody. `repeated` is a loop in
    the text, or one of the context's `recent_tips`.
    """
    if UNSTORABLE.search(text):
        return "garbled"
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
