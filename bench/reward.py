"""How well and how fast a reward is learned from real reactions, and judged on other stories.

`bench/reward.py --data FOLDER --cache FOLDER` reads `upworthy/` in the first: reactions to titles
of some stories, and pairs of other stories, on which nothing is chosen. It measures what the stage
`reward` learns on those pairs, what it learns after the labels of each story were shuffled, and
what a service needs for it. Features are kept in the second folder: a repetition takes seconds.
"""

import argparse
import gzip
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from reactune.config.sections import ModelConfig, PromptConfig
from reactune.evaluate.pairs import Pair, read_pairs
from reactune.model.files import BaseModel, base_model
from reactune.model.logprobs import Row, best_dtype
from reactune.model.prompt import assemble, load_chat
from reactune.records import Estimate, Example, folded_text
from reactune.reward.cache import cached_features, reward_rows
from reactune.reward.features import layers_of, reward_layers
from reactune.reward.graph import GRAPH_FILES, write_graph
from reactune.reward.learn import Learned, learn
from reactune.reward.model import RewardModel, rewards, save
from reactune.reward.parity import check
from reactune.reward.quality import share_won
from reactune.reward.scorer import Scorer
from record import record

SERVED_PROMPTS = 48  # on which rewards as served are compared
NO_TIME = datetime.fromisoformat("2026-01-01T00:00:00+00:00")


def reactions(file: Path, chat) -> list[Example]:
    """The rows of `tip_scores.jsonl.gz` as the dataset stage gives them."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        example(
            chat,
            row["kind"],
            json.loads(row["context_json"]) if isinstance(row["context_json"], str)
            else row["context_json"],
            row["tip_content"],
            user=row["user_id"],
            label=row["reaction"] == "done",
            tip_id=row["tip_id"],
        )
        for row in rows
    ]  # fmt: skip


def example(chat, kind, context, tip, *, user="", label=False, tip_id="") -> Example:
    """A tip in a context as the service would have assembled it."""
    prompt = assemble(chat, kind, context)
    return Example(
        tip_id=tip_id,
        user_key=user,
        kind=kind,
        context_json=prompt.context_json,
        instruction="",
        input="",
        prompt="",
        tip=tip,
        label=label,
        dwell_ms=0,
        created_at=NO_TIME,
    )


def shuffled_within_users(examples: list[Example], *, seed: int) -> list[Example]:
    """Each user's labels in another order."""
    draw = random.Random(seed)
    by_user = defaultdict(list)
    for each in examples:
        by_user[each.user_key].append(each)
    mixed = []
    for some in by_user.values():
        labels = [each.label for each in some]
        draw.shuffle(labels)
        mixed += [replace(each, label=label) for each, label in zip(some, labels, strict=True)]
    return mixed


def accuracy_on(pairs: list[Pair], scores: np.ndarray) -> Estimate:
    """Of scores of chosen and rejected texts in turn."""
    difference = scores[0::2] - scores[1::2]
    wins = np.where(difference == 0, 0.5, (difference > 0).astype(float))
    return share_won(wins, [pair.cluster for pair in pairs])


def served(model: RewardModel, base: BaseModel, rows: Sequence[Row]) -> dict:
    """What the graph of a reward takes to write and to open, what a request takes, how far it is.

    One thread; seconds are processor time, of a request the median of 15.
    """
    with tempfile.TemporaryDirectory() as name:
        out, started = Path(name), time.process_time()
        write_graph(base.folder, model.layers, out)
        figures = {
            "layers": model.layers,
            "write_seconds": round(time.process_time() - started, 1),
            "megabytes": round(sum((out / each).stat().st_size for each in GRAPH_FILES) / 1e6, 1),
        }
        save(model, out)
        before, started = psutil.Process().memory_info().rss, time.process_time()
        scorer = Scorer(out, threads=1)
        figures["open_seconds"] = round(time.process_time() - started, 2)
        prompts, tips = zip(*rows, strict=True)
        for count in (1, 4):
            taken = []
            for place in range(15):
                started = time.process_time()
                scorer.score(prompts[place], tips[place : place + count])
                taken.append(time.process_time() - started)
            figures[f"score_{count}_seconds"] = round(statistics.median(taken), 3)
        held = psutil.Process().memory_info().rss - before
        figures["held_megabytes"] = round(held / 1e6)
        figures["prompt_tokens"] = round(statistics.mean(map(len, prompts[:15])))
        figures["tip_tokens"] = round(statistics.mean(map(len, tips[:15])))
        agreement = check(scorer, base.folder, prompts, tips)
        figures["agreement"] = asdict(agreement)
    print(agreement)
    return figures


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--shuffles", type=int, default=5)
    options = parser.parse_args()
    base = base_model(ModelConfig())
    chat = load_chat(base.folder, PromptConfig())
    examples = reactions(options.data / "upworthy" / "tip_scores.jsonl.gz", chat)
    known = {folded_text(each.tip) for each in examples}
    pairs = [
        pair
        for pair in read_pairs(options.data / "upworthy" / "pairs_heldout.jsonl")
        if not known & {folded_text(pair.chosen), folded_text(pair.rejected)}
    ]
    computed, layers = 0, reward_layers(layers_of(base.folder))

    def read(some):
        def bar(total):
            nonlocal computed
            computed += total
            return tqdm(total=total, unit="tip", disable=None).update

        return cached_features(base, chat, some, layers, folder=options.cache, progress=bar)

    def learned_from(some: list[Example]) -> Learned:
        return learn(some, read, layers, base_digest=base.digest, fingerprint="upworthy")

    started, cpu = time.monotonic(), time.process_time()
    found = learned_from(examples)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    print(found.line())
    figures = {
        "reactions": len(examples),
        "computed": computed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "dtype": best_dtype(),
        "quality": asdict(found.quality),
    }
    print(f"{computed:,} of them computed, {seconds:.0f} s, {cpu:.0f} s of processor time")
    tips = [
        example(chat, pair.kind, pair.context, tip)
        for pair in pairs
        for tip in (pair.chosen, pair.rejected)
    ]
    if found.model is not None:
        both = rewards(found.model, read(tips))
        for name, scores in zip(("reward", "lower_bound"), both, strict=True):
            estimate = accuracy_on(pairs, scores)
            figures[name] = asdict(estimate)
            print(f"{name}: {estimate} on {len(pairs):,} pairs of other stories")
        rows = reward_rows(chat, tips[:: max(1, len(tips) // SERVED_PROMPTS)])
        figures["served"] = served(found.model, base, rows)
        print(figures["served"])
    nulls = [
        learned_from(shuffled_within_users(examples, seed=seed)).quality.accuracies["reward"]
        for seed in range(options.shuffles)
    ]
    figures["shuffled"] = [asdict(each) for each in nulls]
    print("labels shuffled within stories:", *nulls, sep="\n  ")
    print(record("reward", figures, packages=("torch", "transformers", "scipy", "onnxruntime")))


if __name__ == "__main__":
    main()
