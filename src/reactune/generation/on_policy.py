"""Training on a model's own tips: for each context the best against the worst of several.

West-of-N (arXiv:2401.12086): the model that will be trained writes tips for contexts of the
training part, a reward model ranks them, and what it tells apart most clearly becomes a pair for
DPO. Brakes against what a reward is wrong about (arXiv:2210.10760): the lower bound of the reward
chooses the best, an improbable text is no example, and near copies of tips that people liked
already teach nothing new.
"""

import itertools
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reactune.config.sections import ServeConfig, TrainConfig
from reactune.generation.samples import Sample, draw_samples, features_of_samples
from reactune.model.files import BaseModel
from reactune.model.logprobs import best_dtype, open_model
from reactune.model.prompt import Chat, rebuild
from reactune.records import Example, Prompt, plain_words, write_atomically
from reactune.reward.model import RewardModel, rewards
from reactune.train.job import Job
from reactune.train.trainer import Progress, Trained, pair_row, plan_job, train

ON_POLICY = "on-policy"  # the name of this training beside those of methods
CONTEXTS, TEXTS = 160, 6  # contexts of the training part, and texts for each
CONTEXTS_AT_ONCE = 40
EPOCHS = 2.0
LEAST_PAIRS = 24  # below it, nothing is trained
LEAST_SECONDS = 60.0  # of the time limit, below which nothing is written
WRITING_SHARE = 0.4  # of the time that is left, after which no more tips are written
PAIRS = Path("own-tips") / "pairs.json"  # removed by an erasure, as all that is trained on
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


def train_on_own_tips(
    folder: Path,
    first: Trained,
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    reward: RewardModel | None,
    *,
    serve: ServeConfig,
    settings: TrainConfig,
    progress: Callable[[Job], Progress],
) -> Trained | None:
    """Train `first` further, on tips that it writes for contexts of the examples.

    Within what it left of the time limit; None where there is no reward, where the time is too
    short, or where the reward tells too few tips apart. A training that was killed goes on, with
    the same tips.

    Raises:
        TrainingError: as `trainer.train`.
    """
    left = 60 * settings.time_budget_minutes - first.seconds
    if reward is None or left < LEAST_SECONDS:
        return None
    started = time.monotonic()
    file = folder / PAIRS
    if not file.is_file():
        until = started + WRITING_SHARE * left
        found = own_pairs(
            base,
            first.adapter,
            chat,
            examples,
            reward,
            serve,
            seed=settings.seed,
            goes_on=lambda: time.monotonic() < until,
        )
        pairs = [
            pair_row(chat, each.prompt.token_ids, each.best.text, each.worst.text) for each in found
        ]
        write_atomically(file, json.dumps(pairs))
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    if len(rows) < LEAST_PAIRS:
        return None
    job = plan_job(
        "dpo",
        rows,
        base_folder=base.folder,
        settings=settings.model_copy(update={"epochs": EPOCHS}),
        dtype=best_dtype(),
        max_seconds=max(LEAST_SECONDS, left - (time.monotonic() - started)),
    )
    job = replace(job, start=str(first.adapter.absolute()))
    trained = train(folder / ON_POLICY, job, rows, settings=settings, progress=progress(job))
    return replace(trained, method=ON_POLICY)


def own_pairs(
    base: BaseModel,
    adapter: Path | None,
    chat: Chat,
    examples: Sequence[Example],
    reward: RewardModel,
    serve: ServeConfig,
    *,
    seed: int,
    goes_on: Callable[[], bool] = lambda: True,
) -> list[Preferred]:
    """The pairs of tips that the model writes for contexts of the examples, drawn by the seed.

    `goes_on` is asked after each 40 contexts.
    """
    contexts = {(each.kind, each.context_json): None for each in examples}
    order = sorted(contexts)
    random.Random(seed).shuffle(order)
    chosen = order[:CONTEXTS]
    prompts: list[Prompt] = []
    samples: list[tuple[Sample, ...]] = []
    with open_model(base.folder, adapter, dtype=best_dtype()) as model:
        for number, start in enumerate(range(0, len(chosen), CONTEXTS_AT_ONCE)):
            if number and not goes_on():
                break
            some = [rebuild(chat, *each) for each in chosen[start : start + CONTEXTS_AT_ONCE]]
            prompts += some
            samples += draw_samples(
                model, chat, some, serve, count=TEXTS, seed=seed + number, name="its own"
            )
    ranked = rank(base, chat, prompts, samples, reward)
    liked = [each.tip for each in examples if each.label]
    return best_against_worst(prompts, ranked, liked=liked)


def rank(
    base: BaseModel,
    chat: Chat,
    prompts: Sequence[Prompt],
    samples: Sequence[Sequence[Sample]],
    reward: RewardModel,
) -> list[list[Ranked]]:
    """The samples of each prompt with their rewards."""
    features = features_of_samples(base, chat, prompts, samples, reward.layers, "its own tips")
    values, bounds = rewards(reward, np.concatenate(features))
    found = iter(zip(itertools.chain(*samples), values.tolist(), bounds.tolist(), strict=True))
    return [[Ranked(*next(found)) for _ in some] for some in samples]


def best_against_worst(
    prompts: Sequence[Prompt], ranked: Sequence[Sequence[Ranked]], *, liked: Sequence[str]
) -> list[Preferred]:
    """One pair a prompt, those whose margin is at least the median.

    `liked` are the tips that people liked already: a near copy of one is not the best.
    """
    floor = _floor([each.sample.logprob for some in ranked for each in some])
    known = _by_word(liked)
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


def _by_word(texts: Iterable[str]) -> dict[str, list[Words]]:
    """Each word, and the words of the texts that hold it."""
    found: dict[str, list[Words]] = defaultdict(list)
    for words in {_words(text) for text in texts}:
        for word in words:
            found[word].append(words)
    return found


def _is_copy(text: str, known: Mapping[str, Sequence[Words]]) -> bool:
    """Whether the text is a near copy of one of the known.

    A copy holds at least 80 % of its words, so one at least of its rarest words: only the texts
    with these are compared.
    """
    words = _words(text)
    rarest = sorted(words, key=lambda word: len(known.get(word, ())))
    needed = len(words) - math.ceil(MOST_ALIKE * len(words)) + 1
    return any(
        len(words & each) >= MOST_ALIKE * len(words | each)
        for word in rarest[:needed]
        for each in known.get(word, ())
    )
