"""Training rows of a model's own tips: for each context the best against the worst of several.

West-of-N (arXiv:2401.12086): the model that will be trained writes tips for contexts of the
training part, a reward model ranks them, and what it tells apart most clearly becomes a pair.
Brakes against what a reward is wrong about (arXiv:2210.10760): the lower bound of the reward
chooses the best, an improbable text is no example, and near copies of tips that people liked
already teach nothing new.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reactune.generation.samples import Sample
from reactune.records import Prompt, plain_words

LEAST_LOGPROB = 0.1  # share of the samples, the least probable ones, that are no best tip
MOST_ALIKE = 0.8  # Jaccard similarity of words, from which a text is a copy
Words = frozenset[str]


@dataclass(frozen=True)
class Ranked:
    """A sample with its reward, and the lower bound of that."""

    sample: Sample
    reward: float
    low: float


@dataclass(frozen=True)
class Preferred:
    """Of one prompt the best and the worst tip; `margin` is the difference of their rewards."""

    prompt: Prompt = field(repr=False)
    best: Sample
    worst: Sample
    margin: float


def best_against_worst(
    prompts: Sequence[Prompt], ranked: Sequence[Sequence[Ranked]], *, liked: Sequence[str]
) -> list[Preferred]:
    """One pair a prompt, those whose margin is at least the median.

    `liked` are the tips that people liked already: a near copy of one is not the best.
    """
    floor = _floor([each.sample.logprob for some in ranked for each in some])
    known = [_words(text) for text in liked]
    found = []
    for prompt, some in zip(prompts, ranked, strict=True):
        worst = min(some, key=lambda each: each.reward, default=None)
        good = [each for each in some if each.sample.logprob >= floor]
        for best in sorted(good, key=lambda each: -each.low):
            if not _is_copy(best.sample.text, known):
                break
        else:
            continue
        if worst is None or best.reward <= worst.reward:
            continue
        found.append(Preferred(prompt, best.sample, worst.sample, best.reward - worst.reward))
    if not found:
        return []
    median = float(np.median([each.margin for each in found]))
    return [each for each in found if each.margin >= median]


def _floor(logprobs: Sequence[float]) -> float:
    return float(np.quantile(logprobs, LEAST_LOGPROB)) if logprobs else 0.0


def _words(text: str) -> Words:
    return frozenset(plain_words(text).split())


def _is_copy(text: str, known: Sequence[Words]) -> bool:
    words = _words(text)
    return any(len(words & each) >= MOST_ALIKE * len(words | each) for each in known)
