"""Who visits the demo's app: the protocol of an audience, and the built-in one.

An audience says when which user asks for a tip, and how the user reacts to the one that is shown.
"""

import importlib
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from reactune.config.sections import LabelConfig
from reactune.demo import preferences
from reactune.demo.pool import read_pool
from reactune.demo.preferences import WORD, plain_text, stem, tip_features
from reactune.demo.situations import TASKS, Situation, Value
from reactune.errors import ConfigError
from reactune.records import Reaction

TASTES = ("default", "none")
USERS = 400
FIRST_DAY = datetime(2026, 3, 2, tzinfo=UTC)
OWN_MEMORY, SHARED_MEMORY = 10, 60  # tips that a person, and all people of a role, remember
SIMILAR = 0.6  # Jaccard similarity of words


@dataclass(frozen=True)
class Visit:
    """A user asks for a tip; `context` is as for `reactune.model.prompt.assemble`."""

    visit_id: str
    user_id: str
    kind: str
    context: Mapping[str, Value]
    moment: datetime


@dataclass(frozen=True)
class Response:
    """What a user did with a tip: a reaction and its dwell time, or None and None."""

    reaction: Reaction | None
    dwell_ms: int | None


class Audience(Protocol):
    """Users who visit and react. Constructed as `Class(seed=1, tastes="default")`."""

    def __init__(self, seed: int, tastes: str = "default") -> None: ...

    def visits(self, day: int) -> Iterable[Visit]:
        """The visits of one day (0, 1, 2, ...) in order of time; each call returns the same."""

    def react(self, visit: Visit, tip: str) -> Response:
        """The reaction to a tip. Called once a visit, in the order of visits."""


def load_audience(name: str, *, seed: int, tastes: str = "default") -> Audience:
    """The audience that `module:Class` names.

    Raises:
        ConfigError: it cannot be imported or constructed, or lacks a method.
    """
    module_name, _, class_name = name.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
        audience: Audience = make(seed=seed, tastes=tastes)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"audience {name!r} cannot be constructed ({error}); name a class as module:Class that "
            "takes seed and tastes, as reactune.demo.audience:Town does"
        ) from error
    missing = [method for method in ("visits", "react") if not hasattr(audience, method)]
    if missing:
        raise ConfigError(
            f"audience {name!r} has no method {' and no method '.join(missing)}; add it as "
            "docs/demo.md describes"
        )
    return audience


class Town:
    """The built-in audience: four hundred people in eight roles, with hidden preferences."""

    def __init__(
        self,
        seed: int,
        tastes: str = "default",
        *,
        users: int = USERS,
        situations: Sequence[Situation] | None = None,
    ) -> None:
        """Draw the people; `situations` are those they can be in (default: the pool's)."""
        if tastes not in TASTES:
            raise ConfigError(f"tastes {tastes!r} are unknown; choose one of {', '.join(TASTES)}")
        draw = random.Random(f"{seed} people")
        roles = tuple(TASKS)
        self.seed = seed
        self.tastes = tastes
        names = [f"user-{number:04}" for number in range(users)]
        self.people = {
            name: preferences.draw_person(name, roles[number % len(roles)], draw)
            for number, name in enumerate(names)
        }
        self._upcoming = _by_role(read_pool().situations if situations is None else situations)
        for role, upcoming in self._upcoming.items():
            random.Random(f"{seed} {role}").shuffle(upcoming)
        self._days: list[tuple[Visit, ...]] = []
        self._own: dict[str, deque[frozenset[str]]] = defaultdict(lambda: deque(maxlen=OWN_MEMORY))
        self._shared: dict[str, deque[frozenset[str]]] = defaultdict(
            lambda: deque(maxlen=SHARED_MEMORY)
        )

    def visits(self, day: int) -> tuple[Visit, ...]:
        """The visits of one day in order of time; the same when asked again."""
        while len(self._days) <= day:
            self._days.append(self._next_day())
        return self._days[day]

    def react(self, visit: Visit, tip: str) -> Response:
        """Draw what the visitor does with the tip, and remember the tip."""
        chance = self.chances(visit, tip)
        self.remember(visit, tip)
        return Response(
            *preferences.draw_reaction(chance, random.Random(f"{self.seed} {visit.visit_id} acts"))
        )

    def chances(self, visit: Visit, tip: str) -> preferences.Chances:
        """The probabilities of reactions, given all tips shown so far; changes nothing."""
        person = self.people[visit.user_id]
        if self.tastes == "none":
            return preferences.coin_chances(person)
        features = tip_features(tip, visit.kind, visit.context)
        liked = preferences.liking(
            person,
            features,
            kind=visit.kind,
            staleness=self.staleness(visit, tip),
            mood=random.Random(f"{self.seed} {visit.visit_id} mood").gauss(0, 0.4),
        )
        return preferences.chances(liked, features.words)

    def remember(self, visit: Visit, tip: str) -> None:
        """Note that the tip was shown to the visitor, which people of the same role know of."""
        words = words_of(tip)
        self._own[visit.user_id].append(words)
        self._shared[self.people[visit.user_id].role].append(words)

    def staleness(self, visit: Visit, tip: str) -> float:
        """How often the visitor and people of the same role saw a similar tip, 0 to 1."""
        words = words_of(tip)
        own = _count_similar(words, self._own[visit.user_id])
        shared = _count_similar(words, self._shared[self.people[visit.user_id].role])
        return min(1.0, 0.5 * own + max(0, shared - own) / 12)

    def _next_day(self) -> tuple[Visit, ...]:
        day = len(self._days)
        draw = random.Random(f"{self.seed} day {day}")
        planned: list[tuple[datetime, str, Situation]] = []
        for user_id, visitor in self.people.items():
            if draw.random() >= visitor.presence:
                continue
            for _ in range(draw.choices((1, 2, 3), (70, 22, 8))[0]):
                situation = self._next_situation(visitor.role)
                moment = FIRST_DAY + timedelta(
                    days=day, hours=situation.hour, seconds=draw.randrange(3600)
                )
                planned.append((moment, user_id, situation))
        planned.sort(key=lambda plan: plan[:2])
        return tuple(
            Visit(
                visit_id=f"{day:03}-{number:04}",
                user_id=user_id,
                kind=situation.kind,
                context=situation.context,
                moment=moment,
            )
            for number, (moment, user_id, situation) in enumerate(planned)
        )

    def _next_situation(self, role: str) -> Situation:
        """All situations of a role in turn, again and again, always in the same order.

        So the pooled tip of a situation comes back only after people have forgotten it.
        """
        upcoming = self._upcoming[role]
        upcoming.rotate(-1)
        return upcoming[-1]


def expected_reward(
    audience: Town, visit: Visit, tip: str, *, labels: LabelConfig | None = None
) -> float:
    """The probability that the tip becomes a positive under the label rule."""
    low, high = (labels or LabelConfig()).positive_dwell_ms
    return preferences.done_between(audience.chances(visit, tip), (low / 1000, high / 1000))


def expected_harm(
    audience: Town, visit: Visit, tip: str, *, labels: LabelConfig | None = None
) -> float:
    """The probability that the tip becomes a negative under the label rule."""
    below = (labels or LabelConfig()).negative_dwell_below_ms
    return preferences.dismissed_below(audience.chances(visit, tip), below / 1000)


def words_of(tip: str) -> frozenset[str]:
    """The tip's words without endings and order, as people remember it."""
    return frozenset(stem(word) for word in WORD.findall(plain_text(tip)))


def _count_similar(words: frozenset[str], remembered: Iterable[frozenset[str]]) -> int:
    return sum(len(words & other) >= SIMILAR * len(words | other) for other in remembered if words)


def _by_role(situations: Iterable[Situation]) -> dict[str, deque[Situation]]:
    by_role: dict[str, deque[Situation]] = {role: deque() for role in TASKS}
    for situation in situations:
        by_role[situation.role].append(situation)
    missing = [role for role, upcoming in by_role.items() if not upcoming]
    if missing:
        raise ConfigError(
            f"no situations for the roles {', '.join(missing)}; write a larger pool of tips with "
            "`python -m reactune.demo.pool`"
        )
    return by_role
