"""What a policy without a model would have earned from the same people on the same visits.

For the report: whoever cannot beat the shortest or the most popular tip has learnt nothing.
"""

import importlib
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from reactune.config.sections import LabelConfig
from reactune.demo import preferences
from reactune.demo.pool import read_pool
from reactune.demo.preferences import WORD, plain_text, read, stem
from reactune.demo.situations import TASKS, Situation, Value
from reactune.errors import ConfigError
from reactune.records import Reaction
from reactune.store.labels import label_rule

TASTES = ("default", "none")
USERS = 400
FIRST_DAY = datetime(2026, 3, 2, tzinfo=UTC)
OWN_MEMORY, SHARED_MEMORY = 10, 60  # tips that one person, and one neighbourhood, remember
NEARLY_THE_SAME = 0.6  # Jaccard share of words


@dataclass(frozen=True)
class Visit:
    """Somebody opens the app and is shown one tip. `context` is what `prompt.assemble` takes."""

    visit_id: str
    user_id: str
    kind: str
    context: Mapping[str, Value]
    moment: datetime


@dataclass(frozen=True)
class Response:
    """What somebody did with a tip; no reaction is a reaction too."""

    reaction: Reaction | None
    dwell_ms: int | None


class Audience(Protocol):
    """People who are shown tips. Made as `Class(seed=1, tastes="default")`."""

    def __init__(self, seed: int, tastes: str = "default") -> None: ...

    def visits(self, day: int) -> Iterable[Visit]:
        """The visits of one day (0, 1, 2, ...) in order of time; the same when asked again."""

    def react(self, visit: Visit, tip: str) -> Response:
        """What the visitor does with the tip. Called once a visit, in the order of visits."""


def load_audience(name: str, *, seed: int, tastes: str = "default") -> Audience:
    """Make the audience that `module:Class` names.

    Raises:
        ConfigError: there is no such module or class, or it is not made from seed and tastes.
    """
    module_name, _, class_name = name.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), class_name)
        audience: Audience = make(seed=seed, tastes=tastes)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"audience {name!r} cannot be made ({error}); give module:Class of a class that takes "
            "seed and tastes, as reactune.demo.audience:Town does"
        ) from error
    missing = [method for method in ("visits", "react") if not hasattr(audience, method)]
    if missing:
        raise ConfigError(f"audience {name!r} has no {' and no '.join(missing)}; see docs/demo.md")
    return audience


class Town:
    """The built-in audience: some hundred people in eight walks of life, who talk to each other."""

    def __init__(
        self,
        seed: int,
        tastes: str = "default",
        *,
        users: int = USERS,
        situations: Sequence[Situation] | None = None,
    ) -> None:
        """Draw the people; `situations` are what may happen to them (default: the pool's)."""
        if tastes not in TASTES:
            raise ConfigError(f"tastes {tastes!r}: choose one of {', '.join(TASTES)}")
        draw = random.Random(f"{seed} people")
        roles = tuple(TASKS)
        self.seed = seed
        self.tastes = tastes
        names = [f"user-{number:04}" for number in range(users)]
        self.people = {
            name: preferences.person(name, roles[number % len(roles)], draw)
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
            *preferences.act(chance, random.Random(f"{self.seed} {visit.visit_id} acts"))
        )

    def chances(self, visit: Visit, tip: str) -> preferences.Chances:
        """What the visitor may do with the tip, given all tips shown so far. Changes nothing."""
        reader = self.people[visit.user_id]
        if self.tastes == "none":
            return preferences.coin_chances(reader)
        reading = read(tip, visit.kind, visit.context)
        liked = preferences.liking(
            reader,
            reading,
            kind=visit.kind,
            staleness=self.staleness(visit, tip),
            mood=random.Random(f"{self.seed} {visit.visit_id} mood").gauss(0, 0.4),
        )
        return preferences.chances(liked, reading.words)

    def remember(self, visit: Visit, tip: str) -> None:
        """Note that the tip was shown: to the visitor, and so to those the visitor talks to."""
        mark = words_of(tip)
        self._own[visit.user_id].append(mark)
        self._shared[self.people[visit.user_id].role].append(mark)

    def staleness(self, visit: Visit, tip: str) -> float:
        """How often the visitor and the neighbourhood have seen nearly this tip: 0 to 1."""
        mark = words_of(tip)
        own = _count_near(mark, self._own[visit.user_id])
        shared = _count_near(mark, self._shared[self.people[visit.user_id].role])
        return min(1.0, 0.5 * own + max(0, shared - own) / 12)

    def _next_day(self) -> tuple[Visit, ...]:
        day = len(self._days)
        draw = random.Random(f"{self.seed} day {day}")
        planned: list[tuple[datetime, str, Situation]] = []
        for user_id, visitor in self.people.items():
            if draw.random() >= visitor.presence:
                continue
            for _ in range(draw.choices((1, 2, 3), (70, 22, 8))[0]):
                situation = self._happen(visitor.role)
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

    def _happen(self, role: str) -> Situation:
        """Everything happens once before anything happens again, and then in the same order.

        So a tip that is tied to a situation comes back when it is forgotten, not before.
        """
        upcoming = self._upcoming[role]
        upcoming.rotate(-1)
        return upcoming[-1]


def expected_reward(
    audience: Town, visit: Visit, tip: str, *, labels: LabelConfig | None = None
) -> float:
    """The probability that the tip becomes a positive: what a policy earns, without the noise."""
    low, high = (labels or LabelConfig()).positive_dwell_ms
    return preferences.done_between(audience.chances(visit, tip), (low / 1000, high / 1000))


def expected_harm(
    audience: Town, visit: Visit, tip: str, *, labels: LabelConfig | None = None
) -> float:
    """The probability that the tip becomes a negative: a dismissal at a glance."""
    below = (labels or LabelConfig()).negative_dwell_below_ms
    return preferences.dismissed_below(audience.chances(visit, tip), below / 1000)


def words_of(tip: str) -> frozenset[str]:
    """The tip's words, without endings and order: what people remember of it."""
    return frozenset(stem(word) for word in WORD.findall(plain_text(tip)))


def _count_near(mark: frozenset[str], remembered: Iterable[frozenset[str]]) -> int:
    return sum(
        len(mark & other) >= NEARLY_THE_SAME * len(mark | other) for other in remembered if mark
    )


def _by_role(situations: Iterable[Situation]) -> dict[str, deque[Situation]]:
    by_role: dict[str, deque[Situation]] = {role: deque() for role in TASKS}
    for situation in situations:
        by_role[situation.role].append(situation)
    missing = [role for role, upcoming in by_role.items() if not upcoming]
    if missing:
        raise ConfigError(f"no situations for {', '.join(missing)}; make a larger pool of tips")
    return by_role


Policy = Callable[[Visit], str]


@dataclass(frozen=True)
class Shown:
    """A tip that somebody was shown in the past, and whether it became a positive."""

    kind: str
    tip: str
    is_positive: bool


@dataclass(frozen=True)
class Earned:
    """What a policy got: shares of tips that were positives and negatives, and how many tips."""

    reward: float
    harm: float
    tips: int


def shortest_tip(past: Sequence[Shown]) -> Policy:
    """Always the tip of the asked kind with the fewest characters."""
    return _one_per_kind(past, lambda tip, _: (-len(tip), tip))


def most_popular_tip(past: Sequence[Shown]) -> Policy:
    """Always the tip of the asked kind with the highest share of positives, (k + 1) / (n + 2).

    The rule of succession keeps a tip that one person liked below one that nine of ten did. Of
    equals the shorter.
    """
    return _one_per_kind(
        past, lambda tip, results: ((sum(results) + 1) / (len(results) + 2), -len(tip), tip)
    )


def earned(
    audience: Audience, shown: Iterable[tuple[Visit, str]], *, labels: LabelConfig
) -> Earned:
    """What these tips earn from a fresh audience; each is remembered, so repeats wear off.

    The built-in audience states its probabilities, so its numbers have no noise of reactions;
    another one is asked to react, once.
    """
    rule = label_rule(labels)
    rewards: list[float] = []
    harms: list[float] = []
    for visit, tip in shown:
        if isinstance(audience, Town):
            rewards.append(expected_reward(audience, visit, tip, labels=labels))
            harms.append(expected_harm(audience, visit, tip, labels=labels))
            audience.remember(visit, tip)
        else:
            response = audience.react(visit, tip)
            reaction = response.reaction, response.dwell_ms
            rewards.append(float(rule.positive.includes(*reaction)))
            harms.append(float(rule.negative.includes(*reaction)))
    count = len(rewards)
    return Earned(
        reward=sum(rewards) / count if count else 0.0,
        harm=sum(harms) / count if count else 0.0,
        tips=count,
    )


def _one_per_kind(
    past: Sequence[Shown], rank: Callable[[str, list[bool]], tuple[float, ...] | tuple[object, ...]]
) -> Policy:
    results: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for shown in past:
        results[shown.kind][shown.tip].append(shown.is_positive)
    best = {
        kind: max(tips, key=lambda tip, tips=tips: rank(tip, tips[tip]))  # type: ignore[misc]
        for kind, tips in results.items()
    }
    return lambda visit: best.get(visit.kind, "")
