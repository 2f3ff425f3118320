"""What the demo's people like, and what they then do: the hidden part, never shown to a learner.

A small model of people, described in docs/demo.md. What they notice in a text is `reading.py`'s.
"""

import math
import random
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from statistics import NormalDist

from reactune.demo.situations import KINDS, Value
from reactune.records import Reaction


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VERBS = _names(
    "add allow answer apply arrange ask avoid back bake batch begin block book break breathe "
    "bring brush buy call cancel carry catch celebrate change check chew choose clean clear "
    "close collect commit compare complete connect consider cook copy count create cut dance "
    "decide decorate dedicate delegate design dim disconnect discuss divide do document draft "
    "draw drink drop eat edit email embrace empty end engage enjoy ensure establish estimate "
    "explore fetch file fill find finish fix focus fold follow get give go grab group hand "
    "have help hold identify include interview invite join journal keep know learn leave let "
    "lie lift light limit list listen lock log look make manage mark massage meditate meet "
    "mix move mute name note offer open order organise organize pack park pause pay phone "
    "pick pitch place plan play polish pour practice practise prepare press print prioritise "
    "prioritize profile pull put reach read record reduce refill reflect register relax "
    "remember remind remove rename renew repair reply reserve reset rest restock return "
    "review reward ring rise roll rotate run save say scan schedule see send separate set "
    "shake share show sign sip sit skip sleep slow smile snack solve sort speak spend split "
    "spread stand start stay step stick stop store stretch study summarise summarize swap "
    "sweep switch take talk tell text thank think tidy tie track train treat trim try turn "
    "unplug update upgrade use visit wait wake walk warm wash watch water wear weed wipe wrap "
    "write"
)
NUMBERS = _names("one two three four five six seven eight nine ten fifteen twenty thirty")
LITTLE_WORDS = _names(
    "a an the of to in on for and or with your you is are be it this that at by from as about "
    "not more up down so if can will into out back new"
)
PARTS_OF_DAY = {
    "morning": _names("morning breakfast sunrise dawn wake coffee"),
    "noon": _names("noon midday lunch lunchtime"),
    "afternoon": _names("afternoon lunch tea snack"),
    "evening": _names("evening dinner supper tonight night sunset bed bedtime wind lights"),
}
WORDS_OF_KIND = {
    "focus": _names(
        "focus timer task distraction start finish phone desk quiet first step single block "
        "concentrate silence tab notification work attention begin complete mute"
    ),
    "break": _names(
        "break walk stretch breathe breath tea coffee rest window outside music relax pause "
        "fresh air eyes sit nap snack unwind recharge water"
    ),
    "health": _names(
        "water drink walk stretch sleep eat fruit vegetable breath breathe posture exercise "
        "healthy meal breakfast rest snack stairs shoulder hydrated move eyes health glass"
    ),
    "planning": _names(
        "plan list first before after then schedule priority prioritize order calendar "
        "deadline early time tomorrow next start block set step today"
    ),
    "social": _names(
        "friend friends call text message invite visit photo coffee family sister ask meet "
        "chat phone share send letter neighbour touch hello together note"
    ),
}
# Goals of settings and notes of free text, and what would serve them.
WORDS_OF_WISH = {
    "sleep more": _names("sleep bed bedtime nap rest night early"),
    "move more": _names("walk stretch move run bike exercise steps stairs stand dance outside"),
    "finish on time": _names("timer deadline schedule first start finish time minutes done"),
    "worry less": _names("breathe breath calm relax worry note slow list step rest"),
    "see friends more": _names("friend friends call text invite visit meet message together"),
    "eat better": _names("eat fruit vegetable meal breakfast lunch dinner cook snack water soup"),
    "bad sleep": _names("nap rest sleep bed early tired coffee night"),
    "noisy office": _names("quiet headphones noise door music silence room"),
    "stiff back": _names("stretch back stand walk shoulders posture sit"),
    "much to do": _names("first list one priority prioritize step timer small"),
    "no breakfast yet": _names("breakfast eat snack fruit toast"),
    "kids asleep": _names("quiet asleep kids calm evening"),
    "late train": _names("train wait ride late platform"),
    "sunny day": _names("sun sunny outside walk park"),
    "busy phone": _names("phone mute silent notifications airplane off"),
    "tired eyes": _names("eyes look screen window blink rest"),
    "rain outside": _names("rain umbrella inside indoor cosy warm"),
    "headache": _names("water rest dark head air break"),
    "low battery": _names("charge battery plug"),
    "quiet house": _names("quiet house silence home"),
    "sister in town": _names("sister"),
    "old friend moved away": _names("friend call letter write moved"),
}


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


# How much an average person cares, in logits. A tip that meets all wishes has +3, a bad one -5.
CARES: Mapping[str, float] = {
    "opens_with_action": 1.1,
    "names_a_task": 1.3,
    "names_an_amount": 0.7,
    "fits_the_hour": 0.5,
    "clashes_with_the_hour": -0.7,
    "fits_the_person": 0.7,
    "fits_the_kind": 0.7,
    "about_itself": -1.8,
    "repeats_itself": -1.5,
    "breaks_off": -1.4,
}
COMFORT = 2.2
NOVELTY = 6.0
START = -2.8
DISPOSED = 0.8  # nobody does more than this share even of perfect tips
AT_ONCE, LEFT_OPEN = 0.08, 0.06  # shares of `done` that tell nothing: ticked off unread, forgotten
SNOOZE, AWAY = 0.22, 0.32  # of the tips not done
COIN = 0.26  # chance of `done` where tastes are off
SECONDS_PER_WORD = 0.3
DOING_SECONDS, DOING_SPREAD = 38.0, 0.55
GLANCE_SPREAD = 0.6
NORMAL = NormalDist()


@dataclass(frozen=True)
class Person:
    """Somebody of the audience; `cares` multiplies the weights, the rest is added, in logits."""

    user_id: str
    role: str
    presence: float
    generosity: float
    cares: Mapping[str, float] = field(repr=False)
    kinds: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class Chances:
    """What one person does with one tip at one moment: probabilities, and seconds of a glance."""

    done: float
    dismiss: float
    snooze: float
    away: float
    glance_seconds: float
    reading_seconds: float


def person(user_id: str, role: str, draw: random.Random) -> Person:
    """Draw somebody: how present, how easy to please, and what they care about more than others."""
    return Person(
        user_id=user_id,
        role=role,
        presence=min(0.95, max(0.15, draw.gauss(0.65, 0.2))),
        generosity=draw.gauss(0, 0.5),
        cares={name: draw.lognormvariate(0, 0.3) for name in (*CARES, "comfort", "novelty")},
        kinds={kind: draw.gauss(0, 0.3) for kind in KINDS},
    )


def comfort(words: int) -> float:
    """How well a length reads: 1 from 8 to 18 words, falling to 0 at 3 and at 30."""
    if words < 8:
        return max(0.0, (words - 3) / 5)
    return max(0.0, min(1.0, (30 - words) / 12))


def liking(reader: Person, reading: Reading, *, kind: str, staleness: float, mood: float) -> float:
    """How much the person likes the tip, in logits. `staleness` is 0 (never seen) to 1."""
    noticed = sum(
        weight * reader.cares[name] * float(getattr(reading, name))
        for name, weight in CARES.items()
    )
    return (
        START
        + noticed
        + COMFORT * reader.cares["comfort"] * comfort(reading.words)
        - NOVELTY * reader.cares["novelty"] * staleness
        + reader.generosity
        + reader.kinds.get(kind, 0.0)
        + mood
    )


def chances(liked: float, words: int) -> Chances:
    """What somebody does who likes a tip that much."""
    return _chances(DISPOSED * logistic(liked), logistic(liked), words)


def coin_chances(reader: Person) -> Chances:
    """What somebody does who does not read: the same for every tip."""
    done = logistic(math.log(COIN / (1 - COIN)) + reader.generosity)
    return _chances(done, 0.5, 12)


def _chances(done: float, interest: float, words: int) -> Chances:
    left = 1 - done
    return Chances(
        done=done,
        dismiss=left * (1 - SNOOZE - AWAY),
        snooze=left * SNOOZE,
        away=left * AWAY,
        glance_seconds=1.8 + 2.5 * interest,
        reading_seconds=SECONDS_PER_WORD * words,
    )


def act(chance: Chances, draw: random.Random) -> tuple[Reaction | None, int | None]:
    """Draw the reaction, and how long the person stayed, in milliseconds (None: nobody knows)."""
    at = draw.random()
    if at < chance.done:
        return "done", _milliseconds(_doing_seconds(chance, draw))
    if at < chance.done + chance.dismiss:
        return "dismiss", _milliseconds(_glance(chance.glance_seconds, draw))
    if at < chance.done + chance.dismiss + chance.snooze:
        return "snooze", _milliseconds(_glance(2 * chance.glance_seconds, draw))
    return None, None


def done_between(chance: Chances, seconds: tuple[float, float]) -> float:
    """The probability of `done` with a dwell time between the two, both ends included."""
    low, high = seconds
    read = chance.reading_seconds
    doing = _below(high - read, DOING_SECONDS, DOING_SPREAD) - _below(
        low - read, DOING_SECONDS, DOING_SPREAD
    )
    at_once = _uniform(low, high, 2, 12)
    left_open = _uniform(low, high, 150, 900)
    inside = (1 - AT_ONCE - LEFT_OPEN) * doing + AT_ONCE * at_once + LEFT_OPEN * left_open
    return chance.done * inside


def dismissed_below(chance: Chances, seconds: float) -> float:
    """The probability of `dismiss` in less than that time."""
    return chance.dismiss * _below(seconds, chance.glance_seconds, GLANCE_SPREAD)


def logistic(logit: float) -> float:
    """The probability of a logit."""
    return 1 / (1 + math.exp(-logit)) if logit > 0 else 1 - 1 / (1 + math.exp(logit))


def _doing_seconds(chance: Chances, draw: random.Random) -> float:
    at = draw.random()
    if at < AT_ONCE:
        return draw.uniform(2, 12)
    if at < AT_ONCE + LEFT_OPEN:
        return draw.uniform(150, 900)
    return chance.reading_seconds + draw.lognormvariate(math.log(DOING_SECONDS), DOING_SPREAD)


def _glance(median_seconds: float, draw: random.Random) -> float:
    return draw.lognormvariate(math.log(median_seconds), GLANCE_SPREAD)


def _below(seconds: float, median: float, spread: float) -> float:
    if seconds <= 0:
        return 0.0
    return NORMAL.cdf((math.log(seconds) - math.log(median)) / spread)


def _uniform(low: float, high: float, first: float, last: float) -> float:
    return max(0.0, min(high, last) - max(low, first)) / (last - first)


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
