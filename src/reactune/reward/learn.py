"""Reactions -> a reward model with its quality, or the reason why there is none.

Reads as many reactions as help: where twice as many gained nothing, the rest is left. What was
validated on some users is fitted again on all of them before it is used.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from reactune.records import Example
from reactune.reward import quality
from reactune.reward.comparisons import SEED, Reactions
from reactune.reward.features import Floats
from reactune.reward.fit import (
    FOLDS,
    Candidate,
    Validated,
    curve,
    dense_candidates,
    fit_with_error,
    standardised,
    validate,
)
from reactune.reward.model import RewardModel, assemble_model
from reactune.reward.quality import Accuracy, accuracy_of_folds

FIRST_REACTIONS = 4_000  # read at first; then twice as many, while that helps
MOST_REACTIONS = 32_000  # of long prompts, what two cores read in an hour
Read = Callable[[Sequence[Example]], Floats]
"""Features of examples: shape (examples, width)."""


@dataclass(frozen=True)
class Quality:
    """What a reward is worth on people it did not learn from, beside other rankings."""

    reactions: int
    """How many were read."""
    available: int
    users: int
    within: str = ""
    """Tips were compared within one `context` or one `kind`."""
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)
    """By ranking: `reward`, `TF-IDF`, `longer tip`."""
    curve: Mapping[int, Accuracy] = field(default_factory=dict)
    """Accuracy of the reward by the number of reactions that it learned from."""
    correlates: Mapping[str, float] = field(default_factory=dict)
    """Rank correlation of the reward with what people can see in a tip."""
    variance: float = 0.0
    """Prior variance of a reward: how strong the regularisation is."""
    scale: float = 0.0


@dataclass(frozen=True)
class Learned:
    """A reward model, or the reason why there is none; and the examples that were read."""

    model: RewardModel | None
    """Of all that was read: it scores texts, and chooses among candidates."""
    reason: str
    quality: Quality
    examples: Sequence[Example] = field(default=(), repr=False)
    features: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)
    """Of these examples, shape (examples, width)."""
    teacher: RewardModel | None = None
    """Of those alone who may train a generator: held-out users can judge what it taught."""

    def line(self) -> str:
        """One line for the person at the terminal."""
        known = self.quality
        read = f"{known.reactions:,} reactions of {known.users:,} users in"
        if known.reactions < known.available:
            read = f"{known.reactions:,} of {known.available:,} reactions in"
        if self.model is None:
            return f"{read}; no reward: {self.reason}"
        shown = (f"{name} {each.estimate}" for name, each in known.accuracies.items())
        right = f"right on other users' pairs within one {known.within}: {', '.join(shown)}"
        return f"{read}; {right}; then fitted on {len(self.examples):,}"


def learn(
    examples: Sequence[Example],
    read: Read,
    layers: Sequence[int],
    *,
    held_out: Sequence[Example] = (),
    base_digest: str,
    fingerprint: str,
) -> Learned:
    """A reward model from reactions of many users, where it certainly ranks better than chance.

    What was validated on the examples is fitted on `held_out` as well, if all of the examples were
    read and no more than `MOST_REACTIONS` are read in all. `layers` of the base of this digest are
    what `read` reads; they and `fingerprint`, which is that of the data, stand in the model.
    """
    drawn = _by_drawn_users(examples)
    size = FIRST_REACTIONS
    while True:
        some = drawn[:size]
        reactions = Reactions(some)
        users = len(set(reactions.users))
        known = Quality(len(some), len(examples), users)
        if users < FOLDS or reactions.liked.all() or not reactions.liked.any():
            reason = f"{users:,} users with {len(some):,} reactions are too few to compare"
            return Learned(None, reason, known)
        features = read(some)
        values, mean, deviation = standardised(features)
        validated = validate(reactions, dense_candidates(values))
        if validated is None:
            return Learned(None, "no reactions to texts that only one fold of users saw", known)
        found = _quality(reactions, validated, known)
        reward = found.accuracies.get("reward")
        if len(some) == len(drawn) or size >= MOST_REACTIONS or not _helps(found):
            break
        size *= 2
    if reward is None or not reward.is_above_chance:
        reason = f"it is not certainly right more often than chance: {reward or 'no pairs'}"
        return Learned(None, reason, found, some, features)

    def fitted(rows: Reactions, scaled: Floats) -> RewardModel:
        candidate = Candidate(scaled, validated.chosen.variance)
        return assemble_model(
            fit_with_error(rows, candidate, start=validated.whole),
            validated.scale,
            mean,
            deviation,
            layers=layers,
            base_digest=base_digest,
            facts={
                "data": fingerprint,
                "reactions": len(rows),
                "accuracy": reward.estimate.value,
                "low": reward.estimate.low,
                "high": reward.estimate.high,
                "within": found.within,
            },
        )

    teacher = model = fitted(reactions, values)
    count = len(drawn) + len(held_out)
    if held_out and len(some) == len(drawn) and count <= MOST_REACTIONS:
        others = read(held_out)
        some, features = [*some, *held_out], np.concatenate([features, others])
        model = fitted(Reactions(some), ((features - mean) / deviation).astype(np.float32))
    return Learned(model, "", found, some, features, teacher)


def _quality(reactions: Reactions, validated: Validated, known: Quality) -> Quality:
    folds = validated.folds
    longer = np.where(np.isnan(validated.scores), np.nan, quality.lengths(reactions))
    accuracies = {
        "reward": accuracy_of_folds(reactions, validated.scores, folds),
        "longer tip": accuracy_of_folds(reactions, longer, folds, is_fitted=False),
    }
    words = quality.tfidf(reactions)
    if words is not None and (by_words := validate(reactions, quality.tfidf_candidates(words))):
        accuracies["TF-IDF"] = accuracy_of_folds(reactions, by_words.scores, folds)
    smaller = {
        count: accuracy_of_folds(reactions, scores, folds)
        for count, scores in curve(reactions, validated.chosen, folds).items()
    }
    learned = round(known.reactions * (FOLDS - 1) / FOLDS)
    points = {**smaller, learned: accuracies["reward"]}
    return Quality(
        reactions=known.reactions,
        available=known.available,
        users=known.users,
        within=quality.groups_of(reactions, folds)[0],
        accuracies={name: each for name, each in accuracies.items() if each},
        curve={count: each for count, each in points.items() if each},
        correlates=quality.correlates(reactions, validated.scores),
        variance=validated.chosen.variance,
        scale=validated.scale,
    )


def _helps(found: Quality) -> bool:
    """Whether the last doubling of the reactions gained a point or more, so that more may help."""
    if len(found.curve) < 2:
        return True
    before, last = (found.curve[count] for count in sorted(found.curve)[-2:])
    return last.estimate.value - before.estimate.value >= quality.LEAST_GAIN


def _by_drawn_users(examples: Sequence[Example]) -> list[Example]:
    """The examples user by user, users in an order drawn by the seed."""
    users = sorted({each.user_key for each in examples})
    random.Random(SEED).shuffle(users)
    place = {user: number for number, user in enumerate(users)}
    return sorted(examples, key=lambda each: (place[each.user_key], each.tip_id))
