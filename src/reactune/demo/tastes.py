"""What the demo's people like, and what they then do: the hidden part, never shown to a learner.

A small model of people, described in docs/demo.md. What they notice in a text is `reading.py`'s.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

from reactune.demo.reading import Reading
from reactune.demo.world import KINDS
from reactune.records import Reaction

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
