"""What the demo's people like in a tip, and what they then do; the learner sees none of it.

A tip is read for ten features of its text; liking is their weighted sum, in logits; reaction and
dwell time are drawn from liking. docs/demo.md describes the model and its numbers.
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


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VERBS = _words(
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
NUMBERS = _words("one two three four five six seven eight nine ten fifteen twenty thirty")
STOP_WORDS = _words(
    "a an the of to in on for and or with your you is are be it this that at by from as about "
    "not more up down so if can will into out back new"
)
PARTS_OF_DAY = {
    "morning": _words("morning breakfast sunrise dawn wake coffee"),
    "noon": _words("noon midday lunch lunchtime"),
    "afternoon": _words("afternoon lunch tea snack"),
    "evening": _words("evening dinner supper tonight night sunset bed bedtime wind lights"),
}
WORDS_OF_KIND = {
    "focus": _words(
        "focus timer task distraction start finish phone desk quiet first step single block "
        "concentrate silence tab notification work attention begin complete mute"
    ),
    "break": _words(
        "break walk stretch breathe breath tea coffee rest window outside music relax pause "
        "fresh air eyes sit nap snack unwind recharge water"
    ),
    "health": _words(
        "water drink walk stretch sleep eat fruit vegetable breath breathe posture exercise "
        "healthy meal breakfast rest snack stairs shoulder hydrated move eyes health glass"
    ),
    "planning": _words(
        "plan list first before after then schedule priority prioritize order calendar "
        "deadline early time tomorrow next start block set step today"
    ),
    "social": _words(
        "friend friends call text message invite visit photo coffee family sister ask meet "
        "chat phone share send letter neighbour touch hello together note"
    ),
}
# Words that serve a goal of the settings, or a note of the free text.
WORDS_OF_NEED = {
    "sleep more": _words("sleep bed bedtime nap rest night early"),
    "move more": _words("walk stretch move run bike exercise steps stairs stand dance outside"),
    "finish on time": _words("timer deadline schedule first start finish time minutes done"),
    "worry less": _words("breathe breath calm relax worry note slow list step rest"),
    "see friends more": _words("friend friends call text invite visit meet message together"),
    "eat better": _words("eat fruit vegetable meal breakfast lunch dinner cook snack water soup"),
    "bad sleep": _words("nap rest sleep bed early tired coffee night"),
    "noisy office": _words("quiet headphones noise door music silence room"),
    "stiff back": _words("stretch back stand walk shoulders posture sit"),
    "much to do": _words("first list one priority prioritize step timer small"),
    "no breakfast yet": _words("breakfast eat snack fruit toast"),
    "kids asleep": _words("quiet asleep kids calm evening"),
    "late train": _words("train wait ride late platform"),
    "sunny day": _words("sun sunny outside walk park"),
    "busy phone": _words("phone mute silent notifications airplane off"),
    "tired eyes": _words("eyes look screen window blink rest"),
    "rain outside": _words("rain umbrella inside indoor cosy warm"),
    "headache": _words("water rest dark head air break"),
    "low battery": _words("charge battery plug"),
    "quiet house": _words("quiet house silence home"),
    "sister in town": _words("sister"),
    "old friend moved away": _words("friend call letter write moved"),
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

# Weights of the average person, in logits. The best tips reach +3, bad ones -5.
WEIGHTS: Mapping[str, float] = {
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
LENGTH_WEIGHT = 2.2
STALENESS_WEIGHT = 6.0
INTERCEPT = -2.8
MAX_DONE = 0.8  # share of perfect tips that are done
UNREAD, LEFT_OPEN = 0.08, 0.06  # shares of `done` that are no evidence
SNOOZE, NO_REACTION = 0.22, 0.32  # of the tips not done
COIN = 0.26  # probability of `done` where tastes are off
SECONDS_PER_WORD = 0.3
DOING_SECONDS, DOING_SPREAD = 38.0, 0.55
DISMISSAL_SPREAD = 0.6
NORMAL = NormalDist()


@dataclass(frozen=True)
class TipFeatures:
    """What people notice in a tip; all but the number of words are between 0 and 1."""

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


def tip_features(tip: str, kind: str, context: Mapping[str, Value]) -> TipFeatures:
    """The features of a tip for a kind and a context; any text has some, also an empty one."""
    plain = plain_text(tip)
    words = WORD.findall(plain)
    content = stems(words)
    part = part_of_day(str(context.get("time_of_day", "")))
    of_part = stems(PARTS_OF_DAY.get(part, ()))
    of_others = stems(chain.from_iterable(PARTS_OF_DAY.values())) - of_part
    return TipFeatures(
        words=len(words),
        opens_with_action=_action(plain, words),
        names_a_task=_task(content, context.get("open_tasks", [])),
        names_an_amount=1.0 if AMOUNT.search(plain) else 0.0,
        fits_the_hour=float(bool(content & of_part)),
        clashes_with_the_hour=float(bool(part and content & of_others and not content & of_part)),
        fits_the_person=float(bool(content & stems(_helpful_words(context)))),
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
    """The word without the ending of plural, past or progressive."""
    for ending in ("ing", "ies", "es", "ed", "s"):
        if len(word) - len(ending) >= 3 and word.endswith(ending):
            return word[: -len(ending)]
    return word


def stems(words: Iterable[str]) -> frozenset[str]:
    """The stems of the words that are no stop words."""
    return frozenset(stem(word) for word in words if word not in STOP_WORDS)


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


def _helpful_words(context: Mapping[str, Value]) -> tuple[str, ...]:
    """The words that serve the goal in the settings, and the note."""
    settings = context.get("user_settings", {})
    goal = str(settings.get("goal", "")) if isinstance(settings, dict) else ""
    note = str(context.get("free_text", ""))
    return (*WORDS_OF_NEED.get(goal, ()), *WORDS_OF_NEED.get(note, ()))


def _repetition(words: list[str]) -> float:
    """How many of the words repeat earlier ones: 0 up to a quarter, 1 from six in ten."""
    if len(words) < 6:
        return 0.0
    again = 1 - len(set(words)) / len(words)
    return min(1.0, max(0.0, (again - 0.25) / 0.35))


@dataclass(frozen=True)
class Person:
    """A person of the audience.

    `multipliers` scale the average weights; `generosity` and `kinds` are added, in logits.
    """

    user_id: str
    role: str
    presence: float
    generosity: float
    multipliers: Mapping[str, float] = field(repr=False)
    kinds: Mapping[str, float] = field(repr=False)


@dataclass(frozen=True)
class Chances:
    """Probabilities of what a person does with a tip, and how long it takes them.

    `dismissal_seconds` is the median before a dismissal.
    """

    done: float
    dismiss: float
    snooze: float
    no_reaction: float
    dismissal_seconds: float
    reading_seconds: float


def draw_person(user_id: str, role: str, draw: random.Random) -> Person:
    """Draw how often a person comes, how easy to please they are, and their weights."""
    return Person(
        user_id=user_id,
        role=role,
        presence=min(0.95, max(0.15, draw.gauss(0.65, 0.2))),
        generosity=draw.gauss(0, 0.5),
        multipliers={
            name: draw.lognormvariate(0, 0.3) for name in (*WEIGHTS, "length", "staleness")
        },
        kinds={kind: draw.gauss(0, 0.3) for kind in KINDS},
    )


def length_score(words: int) -> float:
    """1 from 8 to 18 words, falling to 0 at 3 and at 30."""
    if words < 8:
        return max(0.0, (words - 3) / 5)
    return max(0.0, min(1.0, (30 - words) / 12))


def liking(
    person: Person, features: TipFeatures, *, kind: str, staleness: float, mood: float
) -> float:
    """How much the person likes the tip, in logits; `staleness` is 0 (never seen) to 1."""
    noticed = sum(
        weight * person.multipliers[name] * float(getattr(features, name))
        for name, weight in WEIGHTS.items()
    )
    return (
        INTERCEPT
        + noticed
        + LENGTH_WEIGHT * person.multipliers["length"] * length_score(features.words)
        - STALENESS_WEIGHT * person.multipliers["staleness"] * staleness
        + person.generosity
        + person.kinds.get(kind, 0.0)
        + mood
    )


def chances(liked: float, words: int) -> Chances:
    """What a person does with a tip of that liking (logits) and length."""
    return _chances(MAX_DONE * logistic(liked), logistic(liked), words)


def coin_chances(person: Person) -> Chances:
    """What a person does where tastes are off: the same for every tip."""
    done = logistic(math.log(COIN / (1 - COIN)) + person.generosity)
    return _chances(done, 0.5, 12)


def _chances(done: float, interest: float, words: int) -> Chances:
    left = 1 - done
    return Chances(
        done=done,
        dismiss=left * (1 - SNOOZE - NO_REACTION),
        snooze=left * SNOOZE,
        no_reaction=left * NO_REACTION,
        dismissal_seconds=1.8 + 2.5 * interest,
        reading_seconds=SECONDS_PER_WORD * words,
    )


def draw_reaction(chance: Chances, draw: random.Random) -> tuple[Reaction | None, int | None]:
    """Draw the reaction and its dwell time in milliseconds; None without a reaction."""
    at = draw.random()
    if at < chance.done:
        return "done", _milliseconds(_doing_seconds(chance, draw))
    if at < chance.done + chance.dismiss:
        return "dismiss", _milliseconds(_log_normal(chance.dismissal_seconds, draw))
    if at < chance.done + chance.dismiss + chance.snooze:
        return "snooze", _milliseconds(_log_normal(2 * chance.dismissal_seconds, draw))
    return None, None


def done_between(chance: Chances, seconds: tuple[float, float]) -> float:
    """The probability of `done` with a dwell time between the two, both ends included."""
    low, high = seconds
    read = chance.reading_seconds
    doing = _below(high - read, DOING_SECONDS, DOING_SPREAD) - _below(
        low - read, DOING_SECONDS, DOING_SPREAD
    )
    unread = _uniform(low, high, 2, 12)
    left_open = _uniform(low, high, 150, 900)
    inside = (1 - UNREAD - LEFT_OPEN) * doing + UNREAD * unread + LEFT_OPEN * left_open
    return chance.done * inside


def dismissed_below(chance: Chances, seconds: float) -> float:
    """The probability of `dismiss` in less than that time."""
    return chance.dismiss * _below(seconds, chance.dismissal_seconds, DISMISSAL_SPREAD)


def logistic(logit: float) -> float:
    """The probability of a logit."""
    return 1 / (1 + math.exp(-logit)) if logit > 0 else 1 - 1 / (1 + math.exp(logit))


def _doing_seconds(chance: Chances, draw: random.Random) -> float:
    at = draw.random()
    if at < UNREAD:
        return draw.uniform(2, 12)
    if at < UNREAD + LEFT_OPEN:
        return draw.uniform(150, 900)
    return chance.reading_seconds + draw.lognormvariate(math.log(DOING_SECONDS), DOING_SPREAD)


def _log_normal(median_seconds: float, draw: random.Random) -> float:
    return draw.lognormvariate(math.log(median_seconds), DISMISSAL_SPREAD)


def _below(seconds: float, median: float, spread: float) -> float:
    if seconds <= 0:
        return 0.0
    return NORMAL.cdf((math.log(seconds) - math.log(median)) / spread)


def _uniform(low: float, high: float, first: float, last: float) -> float:
    return max(0.0, min(high, last) - max(low, first)) / (last - first)


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
