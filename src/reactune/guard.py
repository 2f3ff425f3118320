"""What may be shown: a verdict on every text that a model wrote, before anybody reads it.

Pure functions; what is shown instead is left to `answering.py`.
"""

import json
import re
import unicodedata
from collections import Counter
from typing import Literal

from reactune.config import ServeConfig
from reactune.detect.detectors import by_form
from reactune.detect.placeholders import refill, scrub
from reactune.records import Prompt

GuardVerdict = Literal[
    "passed", "empty", "overlong", "repeated", "placeholder", "personal data", "unsafe", "garbled"
]
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NUL and half surrogates: no database takes them
GRAM = 4  # words: three times the same four are a loop
LOOPS = 3


def judge_text(text: str, prompt: Prompt, settings: ServeConfig) -> GuardVerdict:
    """The first thing that is wrong with a text, or `passed`.

    `personal data` is what shows by its form: what the context held the model knows as
    placeholders only, and a name that it made up is nobody's. `repeated` is a loop in the text, or
    a tip that the context names among `recent_tips`.
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
    if _loops(text) or _plain(text) in _recent_tips(prompt):
        return "repeated"
    return "passed"


def _holds_personal_data(text: str, prompt: Prompt) -> bool:
    found: dict[str, str] = {}
    scrub(text, placeholders=found, detect=by_form)
    return any(value not in prompt.text for value in found.values())


def _is_unsafe(shown: str, listed: tuple[str, ...]) -> bool:
    plain = f" {_plain(shown)} "
    return any(f" {_plain(each)} " in plain for each in listed if _plain(each))


def _loops(text: str) -> bool:
    words = _plain(text).split()
    grams = Counter(tuple(words[at : at + GRAM]) for at in range(len(words) - GRAM + 1))
    sentences = Counter(filter(None, map(_plain, re.split(r"[.!?\n]+", text))))
    return any(count >= LOOPS for count in (*grams.values(), *sentences.values()))


def _recent_tips(prompt: Prompt) -> set[str]:
    recent = json.loads(prompt.context_json)["context"].get("recent_tips", [])
    return {_plain(each) for each in ([recent] if isinstance(recent, str) else recent)}


def _plain(text: str) -> str:
    """Words in small letters, without signs: two texts that a person would call the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))
