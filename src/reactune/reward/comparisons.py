"""Reactions as comparisons: what a linear reward is fitted on and validated on.

Two tips of one context, one liked and one not, are compared with each other. A reaction in a
context without its opposite is compared with what was to be expected of the person, the kind and
the hour, so that the reward learns the tip and not the person.
"""

import math
import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby

import numpy as np
import numpy.typing as npt

from reactune.records import Example, plain_words

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
ROUNDS = 4  # disliked tips of its context that a liked one is compared with, at most
PRIOR_REACTIONS = 4.0  # how many reactions a person's own past must have to weigh as all people's
SEED = 7


@dataclass(frozen=True)
class Reactions:
    """Examples of the people to learn from or to be judged by, in the order of their features."""

    examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def liked(self) -> npt.NDArray[np.bool_]:
        """Whether each was liked."""
        return np.array([each.label for each in self.examples], bool)

    @cached_property
    def users(self) -> list[str]:
        """Whose reaction each is."""
        return [each.user_key for each in self.examples]

    @cached_property
    def contexts(self) -> list[str]:
        """Kind and context of each, equal for tips of one prompt."""
        return [f"{each.kind} {each.context_json}" for each in self.examples]

    @cached_property
    def visits(self) -> list[tuple[str, str, int]]:
        """Context, user and minute of each, equal for tips that one person saw together."""
        return [
            (context, each.user_key, int(each.created_at.timestamp() // 60))
            for context, each in zip(self.contexts, self.examples, strict=True)
        ]

    @cached_property
    def kinds(self) -> list[str]:
        """The kind of each."""
        return [each.kind for each in self.examples]

    @cached_property
    def texts(self) -> list[str]:
        """Each text as its plain words, by which texts that are the same are recognised."""
        return [plain_words(each.tip) for each in self.examples]

    @cached_property
    def circumstances(self) -> Floats:
        """What is known of a reaction besides the tip, one row each.

        A column for each kind, two waves of the hour of the day (UTC), and the log-odds of a like
        in the user's earlier reactions.
        """
        names = sorted(set(self.kinds))
        kinds = np.array([[float(kind == name) for name in names] for kind in self.kinds])
        turns = [2 * math.pi * _hour(each) / 24 for each in self.examples]
        waves = np.array([[math.sin(t), math.cos(t), math.sin(2 * t), math.cos(2 * t)]
                          for t in turns])  # fmt: skip
        return np.hstack([kinds, waves, self._earlier_likes()[:, None]])

    def _earlier_likes(self) -> Floats:
        share = float(np.clip(self.liked.mean(), 0.01, 0.99))
        seen: dict[str, list[float]] = defaultdict(lambda: [share * PRIOR_REACTIONS,
                                                            PRIOR_REACTIONS])  # fmt: skip
        found = np.zeros(len(self))
        order = sorted(range(len(self)), key=lambda place: self.examples[place].created_at)
        # What came at one moment is not earlier than anything else of that moment.
        for _, moment in groupby(order, key=lambda place: self.examples[place].created_at):
            places = list(moment)
            for place in places:
                past = seen[self.users[place]]
                odds = past[0] / (past[1] - past[0])
                found[place] = math.log(odds) - math.log(share / (1 - share))
            for place in places:
                past = seen[self.users[place]]
                past[0] += self.liked[place]
                past[1] += 1
        return found


@dataclass(frozen=True)
class Comparisons:
    """Each row: a tip, the one it is compared with (-1: none), the outcome, and its weight."""

    first: Places
    second: Places
    outcome: Floats
    """1 where the first is liked (of two: and the second is not), else 0."""
    weight: Floats

    def __len__(self) -> int:
        return len(self.first)

    def differences(self, values: Floats) -> Floats:
        """Values of the first minus those of the second, if there is one; values by reaction."""
        second = values[self.second]
        second[self.second < 0] = 0
        difference: Floats = values[self.first] - second
        return difference


def compare(reactions: Reactions, chosen: Places) -> Comparisons:
    """The comparisons that the chosen reactions give among themselves.

    What one person saw in one context within a minute is compared first; what has no opposite
    there, with others' reactions in the same context. With both labels every liked tip meets at
    most `ROUNDS` disliked ones and the other way round; the weights of such comparisons sum to
    their reactions minus one, for so many are independent. All others are compared with none.
    """
    at_once = _by_label(reactions, chosen.tolist(), reactions.visits)
    groups = [some for some in at_once if all(some)]
    rest = sorted(place for some in at_once if not all(some) for place in chain(*some))
    first, second, outcome, weight = [], [], [], []
    for liked, disliked in groups + _by_label(reactions, rest, reactions.contexts):
        pairs = _pairs(liked, disliked)
        for one, other in pairs:
            first.append(one)
            second.append(other)
            outcome.append(1.0)
            weight.append(min(1.0, (len(liked) + len(disliked) - 1) / len(pairs)))
        for one in () if pairs else liked + disliked:
            first.append(one)
            second.append(-1)
            outcome.append(float(reactions.liked[one]))
            weight.append(1.0)
    return Comparisons(
        np.array(first, np.int64), np.array(second, np.int64), np.array(outcome), np.array(weight)
    )


def folds_by_user(reactions: Reactions, count: int) -> Places:
    """The fold of each reaction, from 0: no user is in two, and all have about as many users."""
    users = sorted(set(reactions.users))
    random.Random(SEED).shuffle(users)
    fold = {user: place % count for place, user in enumerate(users)}
    return np.array([fold[user] for user in reactions.users], np.int64)


def with_new_texts(reactions: Reactions, judged: Places, learned: Places) -> Places:
    """Those of `judged` whose texts are not among `learned`.

    Raises:
        ValueError: a user is in both, so this is no judgement on other people.
    """
    users = {reactions.users[place] for place in learned.tolist()}
    if shared := users & {reactions.users[place] for place in judged.tolist()}:
        raise ValueError(f"{len(shared):,} users are in both sides of a split")
    known = {reactions.texts[place] for place in learned.tolist()}
    kept = [place for place in judged.tolist() if reactions.texts[place] not in known]
    return np.array(kept, np.int64)


def _by_label(
    reactions: Reactions, places: Sequence[int], names: Sequence[Hashable]
) -> list[tuple[list[int], list[int]]]:
    """The liked and the disliked places of each name."""
    found: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for place in places:
        found[names[place]][0 if reactions.liked[place] else 1].append(place)
    return list(found.values())


def _pairs(liked: Sequence[int], disliked: Sequence[int]) -> list[tuple[int, int]]:
    if len(liked) < len(disliked):
        return [(one, other) for other, one in _pairs(disliked, liked)]
    return [
        (one, disliked[(place + shift) % len(disliked)])
        for shift in range(min(ROUNDS, len(disliked)))
        for place, one in enumerate(liked)
    ]


def _hour(example: Example) -> float:
    return example.created_at.hour + example.created_at.minute / 60
