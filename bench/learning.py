"""What each piece of learning is worth, on three sources: the table of the README.

`bench/learning.py --data FOLDER --folder FOLDER` measures, and prints with 95 % intervals:

* `upworthy`: pairs of headlines of one story. Five folds by test over `pairs_train.jsonl`, three
  seeds of folds; then `pairs_heldout.jsonl` once, by what all of the first teach. A pair that
  shares a text with what was learned from is refused.
* `captions`: 90 pairs of captions of each cartoon whose ratings certainly differ (z above 2), five
  folds by cartoon, three seeds.
* `demo`: the true rate of positives, without noise, of tips for visits after the training, for
  base, few-shot base, TF-IDF, reward and tuned models, by one text or the best of four; seeds
  are audiences that `bench/gate.py` played in the same folder. `--cycle-seeds N` plays N of them
  for three cycles, and measures what each cycle tuned.

Every cell is written to the second folder when it is done; an interrupted bench goes on, and a
cell that was not measured is printed as such. `--only upworthy,captions` leaves sources out.
"""

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import sparse
from tqdm import tqdm

from gate import fresh_visits, played, played_cycles
from reactune.config.sections import ModelConfig, PromptConfig
from reactune.config.settings import Config
from reactune.data.dataset.exports import read_examples
from reactune.demo.audience import Town, Visit
from reactune.demo.report import policy_value
from reactune.environment import limit_spinning
from reactune.evaluate.gate import few_shot_rows, score_rows
from reactune.evaluate.pairs import Pair, read_pairs
from reactune.generation.samples import Sample, write_samples
from reactune.model.files import BaseModel, base_model
from reactune.model.prompt import Chat, assemble, completion_ids, load_chat, tip_token_ids
from reactune.records import Estimate, Example, Prompt, folded_text
from reactune.reward import quality
from reactune.reward.cache import cached_features, reward_rows
from reactune.reward.comparisons import Reactions
from reactune.reward.features import layers_of, open_layers, reward_layers, tip_features
from reactune.reward.fit import validate
from reactune.reward.learn import learn
from reactune.reward.model import load as load_reward
from reactune.reward.model import rewards
from reactune.reward.quality import share_won
from reactune.runs.folders import prompt_of_run
from record import Cells, record
from reward import NO_TIME, example

FOLDS = 5
PAIRS_PER_CARTOON, LEAST_Z, LEAST_RATINGS = 90, 2.0, 30
CANDIDATES = 4
DEMO_SEEDS = 5
CYCLES, DAY_AFTER_CYCLES = 3, 150


@dataclass(frozen=True)
class Labelled:
    """Pairs of one source, and their tips as reactions: chosen and rejected in turn."""

    pairs: list[Pair]
    groups: list[str]
    """What a split must not divide: the test, or the cartoon."""
    tips: list[Example]


def labelled(chat: Chat, pairs: list[Pair], groups: list[str]) -> Labelled:
    """The pairs with their tips as the dataset stage would give them, each pair seen at once."""
    tips = []
    for place, (pair, group) in enumerate(zip(pairs, groups, strict=True)):
        for label, text in ((True, pair.chosen), (False, pair.rejected)):
            name = f"{place:05}-{int(label)}"
            tip = example(chat, pair.kind, pair.context, text, user=group, label=label, tip_id=name)
            tips.append(replace(tip, created_at=NO_TIME + timedelta(days=place)))
    return Labelled(pairs, groups, tips)


def upworthy(chat: Chat, file: Path) -> Labelled:
    """The pairs of a file, by test."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    return labelled(chat, read_pairs(file), [line["test_id"] for line in lines])


def captions(chat: Chat, data: Path) -> Labelled:
    """Pairs of captions of one cartoon, drawn by a seed; no caption is in two pairs."""
    described = json.loads((data / "contexts.json").read_text(encoding="utf-8"))
    rows = pq.read_table(data / "captions.parquet").to_pylist()
    by_contest: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["count"] >= LEAST_RATINGS and row["caption"].strip():
            by_contest.setdefault(row["contest"], []).append(row)
    draw, pairs, groups = random.Random(7), [], []
    for contest, some in sorted(by_contest.items()):
        draw.shuffle(some)
        texts: set[str] = set()
        found = 0
        for one, other in zip(some[0::2], some[1::2], strict=False):
            error = (one["precision"] ** 2 + other["precision"] ** 2) ** 0.5
            both = {folded_text(one["caption"]), folded_text(other["caption"])}
            is_certain = abs(one["score"] - other["score"]) > LEAST_Z * error
            if found == PAIRS_PER_CARTOON or not is_certain or both & texts or len(both) < 2:
                continue
            better, worse = sorted((one, other), key=lambda row: -row["score"])
            context = {"description": described[str(contest)]["description"]}
            pairs.append(
                Pair("caption", context, better["caption"], worse["caption"], str(contest))
            )
            groups.append(str(contest))
            texts |= both
            found += 1
    return labelled(chat, pairs, groups)


def folds_of(groups: Sequence[str], seed: int) -> list[int]:
    """The fold of each pair: a group is in one fold."""
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    place = {name: number % FOLDS for number, name in enumerate(names)}
    return [place[group] for group in groups]


def split(source: Labelled, folds: list[int], fold: int) -> tuple[list[int], list[int]]:
    """Places of pairs to learn from, and of those to judge, which share no text with them."""
    learned = [place for place, each in enumerate(folds) if each != fold]
    known = {folded_text(t) for p in learned for t in _texts(source.pairs[p])}
    judged = [
        place
        for place, each in enumerate(folds)
        if each == fold and not known & {folded_text(t) for t in _texts(source.pairs[place])}
    ]
    return learned, judged


def _texts(pair: Pair) -> tuple[str, str]:
    return pair.chosen, pair.rejected


def tips_of(places: Sequence[int]) -> list[int]:
    """Places of the tips of pairs."""
    return [place for pair in places for place in (2 * pair, 2 * pair + 1)]


class Rankings:
    """Scores of tips by each method that needs no generator to be trained."""

    def __init__(self, base: BaseModel, chat: Chat, cache: Path) -> None:
        self.base, self.chat, self.cache = base, chat, cache
        self.layers = reward_layers(layers_of(base.folder))
        self.known: dict[tuple[str, str, str], Any] = {}
        self.likely: dict[tuple[str, str, str], float] = {}

    def read(self, some: Sequence[Example]) -> Any:
        """Features of the tips, computed once."""
        missing = [each for each in some if _key(each) not in self.known]
        if missing:

            def bar(total: int) -> Any:
                return tqdm(total=total, unit="tip", disable=None).update

            values = cached_features(
                self.base, self.chat, missing, self.layers, folder=self.cache, progress=bar
            )
            self.known |= {_key(e): v for e, v in zip(missing, values, strict=True)}
        return np.array([self.known[_key(each)] for each in some])

    def reward(self, learned: list[Example], judged: list[Example]) -> dict[str, Any]:
        """Ours: the reward model, and what a service goes by."""
        found = learn(
            learned, self.read, self.layers, base_digest=self.base.digest, fingerprint="bench"
        )
        if found.model is None:
            return {}
        mean, low = rewards(found.model, self.read(judged))
        return {"reward": mean, "system as served": low}

    def tfidf(self, learned: list[Example], judged: list[Example]) -> Any:
        """TF-IDF of words and pairs of words, by the same regression; None: too few words."""
        both = Reactions([*learned, *judged])
        words = quality.tfidf(both)
        if words is None:
            return None
        size = len(learned)
        rows = sparse.csr_matrix(words)
        found = validate(Reactions(learned), quality.tfidf_candidates(rows[:size]))
        return None if found is None else rows[size:] @ found.whole.weights

    def generator(self, judged: list[Example]) -> Any:
        """The base model's mean log-probability of each tip, computed once."""
        missing = [each for each in judged if _key(each) not in self.likely]
        if missing:
            rows = [
                (prompt, completion_ids(self.chat, each.tip))
                for (prompt, _), each in zip(reward_rows(self.chat, missing), missing, strict=True)
            ]
            kinds = [each.kind for each in missing]
            (scores,) = score_rows(self.base, None, [rows], name="base", kinds=kinds)
            self.likely |= {_key(e): s.mean() for e, s in zip(missing, scores, strict=True)}
        return np.array([self.likely[_key(each)] for each in judged])


def _key(example: Example) -> tuple[str, str, str]:
    return example.kind, example.context_json, example.tip


METHODS = ("longer text", "base by log-probability", "TF-IDF", "reward", "system as served")


def accuracies(
    ranks: Rankings, source: Labelled, learned: list[Example], judged: list[int]
) -> dict[str, list[float]]:
    """For each method, whether it is right on each of the judged pairs (0.5 for a tie)."""
    tips = [source.tips[place] for place in tips_of(judged)]
    scores: dict[str, Any] = {
        "longer text": np.array([float(len(each.tip)) for each in tips]),
        "base by log-probability": ranks.generator(tips),
        "TF-IDF": ranks.tfidf(learned, tips),
        **ranks.reward(learned, tips),
    }
    found = {}
    for name, values in scores.items():
        if values is not None:
            difference = values[0::2] - values[1::2]
            found[name] = np.where(difference == 0, 0.5, difference > 0).astype(float).tolist()
    return found


def by_folds(
    cells: Cells, name: str, ranks: Rankings, source: Labelled, *, seeds: int
) -> dict[str, Any]:
    """Each method's accuracy over all folds and seeds; the interval is clustered by group."""
    wins: dict[str, list[float]] = {}
    groups: dict[str, list[str]] = {}
    for seed, fold in itertools.product(range(seeds), range(FOLDS)):
        folds = folds_of(source.groups, seed)
        learned, judged = split(source, folds, fold)

        def measure(learned: list[int] = learned, judged: list[int] = judged) -> dict[str, Any]:
            taught = [source.tips[place] for place in tips_of(learned)]
            return {"judged": judged, "wins": accuracies(ranks, source, taught, judged)}

        cell = cells.get(f"{name} seed {seed} fold {fold}", measure)
        for method, some in cell["wins"].items():
            wins.setdefault(method, []).extend(some)
            groups.setdefault(method, []).extend(source.groups[p] for p in cell["judged"])
    return {
        method: {
            **asdict(share_won(np.array(some), groups[method])),
            "seeds": _by_seed(some, seeds),
            "pairs": len(some) // seeds,
        }
        for method, some in wins.items()
    }


def _by_seed(wins: list[float], seeds: int) -> list[float]:
    size = len(wins) // seeds
    return [statistics.fmean(wins[at * size : (at + 1) * size]) for at in range(seeds)]


def on_heldout(cells: Cells, ranks: Rankings, train: Labelled, heldout: Labelled) -> dict[str, Any]:
    """Each method on the pairs that were kept back, by what all others teach."""
    known = {folded_text(each.tip) for each in train.tips}
    judged = [
        place
        for place, pair in enumerate(heldout.pairs)
        if not known & {folded_text(t) for t in _texts(pair)}
    ]
    cell = cells.get(
        "upworthy heldout",
        lambda: {"wins": accuracies(ranks, heldout, train.tips, judged)},
    )
    groups = [heldout.groups[place] for place in judged]
    return {
        method: {**asdict(share_won(np.array(some), groups)), "pairs": len(some)}
        for method, some in cell["wins"].items()
    }


def demo_rates(folder: Path, seed: int) -> dict[str, float]:
    """True rates after one cycle of the demo."""
    config, run = played(folder, seed, tastes="default")
    return rates_of(config, run, fresh_visits(seed), seed)


def cycle_rates(folder: Path, seed: int) -> dict[str, float]:
    """True rates after each of several cycles of one demo, on the same visits after the last.

    What a later run tuned began from the base, as every training does, with more reactions, of
    which the latest are to tips of the models before it.
    """
    place = folder / f"{CYCLES}-cycles-{seed}"
    config, runs = played_cycles(place, seed, tastes="default", cycles=CYCLES)
    visits = fresh_visits(seed, DAY_AFTER_CYCLES)
    return {
        f"cycle {number}: {name}": rate
        for number, run in enumerate(runs, start=1)
        for name, rate in rates_of(config, run, visits, seed).items()
        if number == 1 or name.startswith("tuned")
    }


def rates_of(config: Config, run: Path, visits: Sequence[Visit], seed: int) -> dict[str, float]:
    """True rates of what each method would show, one text or the best of four."""
    base = base_model(config.model)
    chat = load_chat(base.folder, prompt_of_run(run, config.prompt), privacy=config.privacy)
    train = read_examples(run / "dataset")["train"]
    prompts = [assemble(chat, visit.kind, visit.context) for visit in visits]
    asked = [
        Example("", "", p.kind, p.context_json, "", "", "", "", False, 0, NO_TIME) for p in prompts
    ]
    shots = [prompt for prompt, _ in few_shot_rows(chat, asked, train)]
    reward = load_reward(run / "reward")
    written = {
        "base": write_samples(
            base, None, chat, prompts, config.serve, count=CANDIDATES, seed=seed, name="base"
        ),
        "few-shot base": write_samples(
            base,
            None,
            chat,
            prompts,
            config.serve,
            count=CANDIDATES,
            seed=seed,
            name="few",
            read=shots,
        ),
        "tuned": write_samples(
            base,
            run / "train" / "adapter",
            chat,
            prompts,
            config.serve,
            count=CANDIDATES,
            seed=seed,
            name="tuned",
        ),
    }
    words = _tfidf_of(train)

    def rate(choose: Callable[[Prompt, Sequence[Sample]], Sequence[Sample]], name: str) -> float:
        """The mean rate of the texts of which one would be shown, each to an audience of its own.

        An audience remembers what it was shown.
        """
        shown = [
            (visit, choose(prompt, some))
            for visit, prompt, some in zip(visits, prompts, written[name], strict=True)
            if some
        ]
        draws = [
            [(visit, some[draw % len(some)].text) for visit, some in shown]
            for draw in range(max(len(some) for _, some in shown))
        ]
        values = [policy_value(Town(seed), each, labels=config.labels).reward for each in draws]
        return float(np.mean(values))

    with open_layers(base.folder, reward.layers[-1]) as layers:

        def by_reward(prompt: Prompt, some: Sequence[Sample]) -> Sequence[Sample]:
            rows = [(prompt.token_ids, tip_token_ids(chat, each.text)) for each in some]
            low = rewards(reward, tip_features(layers, rows, reward.layers))[1]
            return [some[int(np.argmax(low))]]

        return {
            "base, one text": rate(_any, "base"),
            "few-shot base, one text": rate(_any, "few-shot base"),
            "base, best of 4 by TF-IDF": rate(lambda _, some: [max(some, key=words)], "base"),
            "base, best of 4 by reward": rate(by_reward, "base"),
            "tuned, one text": rate(_any, "tuned"),
            "tuned, best of 4 by reward": rate(by_reward, "tuned"),
        }


def _any(_prompt: Prompt, some: Sequence[Sample]) -> Sequence[Sample]:
    return some


def _tfidf_of(train: Sequence[Example]) -> Callable[[Sample], float]:
    """A score of texts by TF-IDF of what people liked, with scikit-learn."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2)
    matrix = vectorizer.fit_transform([each.tip for each in train])
    model = LogisticRegression(C=1.0, max_iter=1_000, class_weight="balanced")
    model.fit(matrix, [each.label for each in train])
    return lambda sample: float(model.decision_function(vectorizer.transform([sample.text]))[0])


def interval_of_means(values: Sequence[float]) -> Estimate:
    """The mean over seeds with its 95 % t interval; one seed has no interval."""
    from scipy import stats

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def table_of_seeds(rates: Sequence[dict[str, float]]) -> dict[str, Any]:
    """For each name of all seeds the mean, its interval, and the values."""
    return {
        name: {
            **asdict(interval_of_means([each[name] for each in rates])),
            "seeds": [each[name] for each in rates],
        }
        for name in rates[0]
        if all(name in each for each in rates)
    }


def lines(title: str, table: dict[str, Any], methods: Sequence[str]) -> Iterator[str]:
    """A table for the terminal; what was not measured is named as such."""
    yield title
    for method in methods:
        row = table.get(method)
        if row is None:
            yield f"  {method:28} not measured"
            continue
        shown = str(Estimate(row["value"], row["low"], row["high"]))
        yield f"  {method:28} {shown}"


def main() -> None:
    """Measure, print and record."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", default="upworthy,captions,demo")
    parser.add_argument("--seeds", type=int, default=3, help="of folds")
    parser.add_argument("--demo-seeds", type=int, default=DEMO_SEEDS)
    parser.add_argument("--cycle-seeds", type=int, default=0)
    options = parser.parse_args()
    only = options.only.split(",")
    base = base_model(ModelConfig())
    chat = load_chat(base.folder, PromptConfig())
    cells = Cells(options.folder / "cells")
    ranks = Rankings(base, chat, options.folder / "features")
    tables: dict[str, dict[str, Any]] = {}
    if "upworthy" in only:
        train = upworthy(chat, options.data / "upworthy" / "pairs_train.jsonl")
        heldout = upworthy(chat, options.data / "upworthy" / "pairs_heldout.jsonl")
        tables["upworthy, five folds"] = by_folds(
            cells, "upworthy", ranks, train, seeds=options.seeds
        )
        tables["upworthy, kept back"] = on_heldout(cells, ranks, train, heldout)
    if "captions" in only:
        drawn = captions(chat, options.data / "caption_contest")
        tables["captions, five folds"] = by_folds(
            cells, "captions", ranks, drawn, seeds=options.seeds
        )
    for title, table in tables.items():
        print(*lines(title, table, METHODS), sep="\n")
    demos = {
        "demo": ("demo seed", demo_rates, options.demo_seeds if "demo" in only else 0),
        "demo, three cycles": ("three cycles of seed", cycle_rates, options.cycle_seeds),
    }
    for title, (cell, measure, count) in demos.items():
        rates = [
            cells.get(f"{cell} {seed}", partial(measure, options.folder, seed))
            for seed in range(1, count + 1)
        ]
        if rates:
            tables[title] = table_of_seeds(rates)
            print(*lines(f"{title}, {count} seeds", tables[title], list(rates[0])), sep="\n")
    packages = ("torch", "transformers", "scipy")
    print(record("learning", tables, packages=packages))


if __name__ == "__main__":
    main()
