"""Generators compared by rewards that other people's reactions taught.

The people who judge are neither those whose reactions trained the generator nor those whose reward
model was its teacher. Rewards are linear in the features, so the people can be
drawn anew, and the judge fitted anew, some hundred times: an interval holds what is uncertain of
the judge as well as of the contexts.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reactune.config.sections import ServeConfig
from reactune.generation.samples import (
    Sample,
    features_of_rows,
    features_of_samples,
    write_samples,
)
from reactune.model.files import BaseModel
from reactune.model.logprobs import best_dtype, open_model, score
from reactune.model.prompt import Chat, completion_ids, rebuild
from reactune.records import Estimate, Example, Prompt, plain_words
from reactune.reward.cache import reward_rows
from reactune.reward.comparisons import SEED, Reactions, compare
from reactune.reward.features import Floats as Features
from reactune.reward.fit import dense_candidates, fit, standardised, validate
from reactune.reward.model import RewardModel, rewards
from reactune.reward.quality import Accuracy, accuracy_of_folds, resampled

REFITS = 300
MOST_REACTIONS = 2_000  # that a judge learns from
PROMPTS, TIPS = 120, 2  # held-out contexts, and texts that each generator writes for one
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """Weights of rewards as log-odds: of all judging people first, then of resamples of them.

    `weights` has the shape (1 + refits, width), `counts` says how often each user was drawn.
    """

    weights: Floats = field(repr=False)
    counts: Mapping[str, Floats] = field(repr=False)
    accuracy: Accuracy


@dataclass(frozen=True)
class Beside:
    """A generator beside another one.

    `win_rate` is the chance that a tip of the first has the higher reward than one of the other in
    the same context, `gain` the mean difference of their rewards, in log-odds.
    """

    win_rate: Estimate
    gain: Estimate

    def __str__(self) -> str:
        """As the gate's line has it."""
        return f"win rate {self.win_rate}, gain {self.gain}"


@dataclass(frozen=True)
class Writer:
    """A generator that is judged: the base model, with an adapter or without.

    `prompts` are what it reads in place of the usual prompts, as a few-shot base does.
    """

    name: str
    adapter: Path | None = None
    prompts: Sequence[Sequence[int]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Writing:
    """How a generator writes, on the same prompts as the others.

    `shown` is the share of its texts that a service would show. Of those: the mean reward by the
    teacher; the mean number of words; the share of different pairs of neighbouring words; the mean
    similarity of two tips (Jaccard index of their words); and the mean log-probability per token
    under the base model.
    """

    model: str
    shown: float
    reward: float
    words: float
    distinct_pairs: float
    similarity: float
    logprob: float


@dataclass(frozen=True)
class JudgeRow:
    """The tuned model beside another one, and the gain that the teacher sees."""

    model: str
    beside: Beside
    teacher_gain: float


@dataclass(frozen=True)
class JudgeReport:
    """What other people's rewards say about tips that were never shown."""

    accuracy: Accuracy
    reactions: int
    prompts: int
    rows: tuple[JudgeRow, ...]
    writing: tuple[Writing, ...]


def judge_writers(
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    writers: Sequence[Writer],
    reward: RewardModel,
    settings: ServeConfig,
    *,
    alpha: float,
) -> JudgeReport | None:
    """The first of the writers beside each of the others, by people who taught neither it nor
    `reward`, its teacher.

    `examples` are their reactions; tips are written for their contexts (`contexts_of`). None where
    these people are too few to judge.
    """
    judging = _drawn(examples, MOST_REACTIONS)
    rows = reward_rows(chat, judging)
    judge = fit_judge(Reactions(judging), features_of_rows(base, rows, reward.layers, "the judges"))
    if judge is None:
        return None
    contexts = contexts_of(examples)
    asked = [rebuild(chat, each.kind, each.context_json) for each in contexts]
    users = [each.user_key for each in contexts]
    written = {each.name: _written(base, chat, asked, each, settings) for each in writers}
    # All in one pass: the layers are opened once, and a prompt is computed once for all writers.
    everything = [some for samples in written.values() for some in samples]
    found = features_of_samples(
        base, chat, asked * len(written), everything, reward.layers, "the writers"
    )
    ends = range(len(asked), len(found) + 1, len(asked))
    features = {
        name: found[end - len(asked) : end] for name, end in zip(written, ends, strict=True)
    }
    taught = {
        name: float(rewards(reward, np.concatenate(some))[0].mean()) if any(map(len, some)) else 0.0
        for name, some in features.items()
    }
    first, *others = [each.name for each in writers]
    rows_beside = []
    for other in others:
        one = beside(judge, features[first], features[other], users, alpha=alpha)
        if one is not None:
            rows_beside.append(JudgeRow(other, one, taught[first] - taught[other]))
    return JudgeReport(
        accuracy=judge.accuracy,
        reactions=len(judging),
        prompts=len(asked),
        rows=tuple(rows_beside),
        writing=_writing(base, chat, asked, written, taught),
    )


def contexts_of(examples: Sequence[Example]) -> list[Example]:
    """The examples whose contexts are asked about: each context once, drawn by a seed."""
    different = {(each.kind, each.context_json): each for each in examples}
    return _drawn(list(different.values()), PROMPTS)


def _drawn(examples: Sequence[Example], limit: int) -> list[Example]:
    ordered = sorted(examples, key=lambda each: each.tip_id)
    return random.Random(SEED).sample(ordered, min(limit, len(ordered)))


def _written(
    base: BaseModel, chat: Chat, asked: Sequence[Prompt], writer: Writer, settings: ServeConfig
) -> list[tuple[Sample, ...]]:
    return write_samples(
        base,
        writer.adapter,
        chat,
        asked,
        settings,
        count=TIPS,
        seed=SEED,
        name=writer.name,
        read=writer.prompts,
    )


def _writing(
    base: BaseModel,
    chat: Chat,
    asked: Sequence[Prompt],
    written: Mapping[str, Sequence[Sequence[Sample]]],
    taught: Mapping[str, float],
) -> tuple[Writing, ...]:
    found = []
    with open_model(base.folder, dtype=best_dtype()) as model:
        for name, samples in written.items():
            texts = [each.text for some in samples for each in some]
            rows = [
                (prompt.token_ids, completion_ids(chat, each.text))
                for prompt, some in zip(asked, samples, strict=True)
                for each in some
            ]
            logprobs = [float(values.mean()) for values in score(model, rows)]
            found.append(
                Writing(
                    model=name,
                    shown=len(texts) / (TIPS * len(asked)),
                    reward=taught[name],
                    words=_mean([len(text.split()) for text in texts]),
                    distinct_pairs=distinct_pairs(texts),
                    similarity=similarity(texts),
                    logprob=_mean(logprobs),
                )
            )
    return tuple(found)


def distinct_pairs(texts: Sequence[str]) -> float:
    """The share of different ones among all pairs of neighbouring words (distinct-2)."""
    words = [plain_words(text).split() for text in texts]
    pairs = [pair for some in words for pair in itertools.pairwise(some)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def similarity(texts: Sequence[str]) -> float:
    """The mean Jaccard index of the words of two texts."""
    words = [frozenset(plain_words(text).split()) for text in texts]
    found = [
        len(one & other) / max(1, len(one | other))
        for one, other in itertools.combinations(words, 2)
    ]
    return _mean(found)


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values)) if values else 0.0


def fit_judge(reactions: Reactions, values: Features) -> Judge | None:
    """A judge of the people of these reactions, from features of shape (reactions, width).

    None where they are too few, or their rewards do not certainly rank better than chance.
    """
    scaled, _, deviation = standardised(values)
    validated = validate(reactions, dense_candidates(scaled))
    if validated is None:
        return None
    accuracy = accuracy_of_folds(reactions, validated.scores, validated.folds)
    if accuracy is None or not accuracy.is_above_chance:
        return None
    users = sorted(set(reactions.users))
    places: dict[str, list[int]] = {user: [] for user in users}
    for place, user in enumerate(reactions.users):
        places[user].append(place)
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(users), np.full(len(users), 1 / len(users)), size=REFITS)
    counts = np.vstack([np.ones(len(users), int), drawn])
    weights: list[Floats] = []
    for row in counts:
        some = [p for user, n in zip(users, row.tolist(), strict=True) for p in places[user] * n]
        comparisons = compare(reactions, np.array(some))
        fitted = fit(reactions, validated.chosen, comparisons, start=validated.whole)
        weights.append(validated.scale * fitted.weights / deviation)
    return Judge(
        np.array(weights),
        dict(zip(users, counts.T.astype(float), strict=True)),
        accuracy,
    )


def beside(
    judge: Judge,
    first: Sequence[Features],
    other: Sequence[Features],
    users: Sequence[str],
    *,
    alpha: float,
) -> Beside | None:
    """Two generators on the same prompts: features of their tips by prompt, (tips, width).

    `users` are those of the prompts. Prompts for which one of the two has no tip are left out;
    None where none is left.
    """
    wins, gains, weights, asked = [], [], [], []
    for one, two, user in zip(first, other, users, strict=True):
        if not len(one) or not len(two):
            continue
        left, right = one @ judge.weights.T, two @ judge.weights.T  # (tips, 1 + refits)
        difference = left[:, None] - right[None]
        wins.append(np.where(difference == 0, 0.5, difference > 0).mean((0, 1)))
        gains.append(difference.mean((0, 1)))
        weights.append(judge.counts.get(user, np.ones(len(judge.weights))))
        asked.append(user)
    if not wins:
        return None
    clusters, drawn = len(set(asked)), np.array(weights)
    return Beside(
        resampled(_means(np.array(wins), drawn), clusters=clusters, alpha=alpha, bounds=(0.0, 1.0)),
        resampled(_means(np.array(gains), drawn), clusters=clusters, alpha=alpha),
    )


def _means(values: Floats, weights: Floats) -> Floats:
    """The weighted mean over prompts, of each column; NaN where no prompt was drawn."""
    totals = weights.sum(0)
    means = np.full(len(totals), np.nan)
    np.divide((values * weights).sum(0), totals, out=means, where=totals > 0)
    return means
