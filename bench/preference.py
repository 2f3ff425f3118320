"""How often a model prefers the text that people chose, beside a classifier made for it.

`bench/preference.py --pairs FILE --run RUN_ID`, in the folder of an installation: pairs the model
never saw (JSONL of kind, context, chosen, rejected). The peer is a logistic regression on the
TF-IDF of words and word pairs and on the surface of a text (length, digits, marks), which learns
from the pairs of the same run's training part; the trivial rule prefers the longer text.
"""

import argparse
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from reactune.config.settings import load
from reactune.data.dataset.exports import pairs as training_pairs
from reactune.data.dataset.exports import read_examples
from reactune.evaluate.pairs import Pair, evaluate_pairs, read_pairs
from record import record

MARKS = ("?", "!", ":", ",", ".", "'", '"', "#", "$")


def surface(texts: list[str]) -> csr_matrix:
    """Length in characters and words, digits, capitals, and which marks occur; one row a text."""
    rows = [
        [
            len(text) / 100,
            len(text.split()) / 20,
            float(bool(re.search(r"\d", text))),
            sum(letter.isupper() for letter in text) / max(len(text), 1),
            *(float(mark in text) for mark in MARKS),
        ]
        for text in texts
    ]
    return csr_matrix(np.array(rows))


def peer_accuracy(train: list[tuple[str, str]], held_out: list[tuple[str, str]]) -> float:
    """Share of held-out pairs (chosen, rejected) that the classifier ranks as people did."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    words.fit([text for pair in train for text in pair])

    def difference(pairs: list[tuple[str, str]]) -> csr_matrix:
        sides = [list(side) for side in zip(*pairs, strict=True)]
        chosen, rejected = (hstack([words.transform(side), surface(side)]) for side in sides)
        return csr_matrix(chosen - rejected)

    seen = difference(train)
    model = LogisticRegression(fit_intercept=False, max_iter=1_000)
    model.fit(vstack([seen, -seen]), np.repeat([1, 0], seen.shape[0]))
    return float((model.decision_function(difference(held_out)) > 0).mean())


def longer_accuracy(pairs: list[Pair]) -> float:
    """Share of pairs of which people chose the longer text; half of the ties."""
    lengths = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    return float(np.where(lengths == 0, 0.5, lengths > 0).mean())


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--run", required=True)
    options = parser.parse_args()
    config = load()
    train = read_examples(config.run_root / options.run / "dataset")["train"]
    learned = [(chosen.tip, rejected.tip) for chosen, rejected in training_pairs(train)]
    held_out = read_pairs(options.pairs)
    peer = peer_accuracy(learned, [(pair.chosen, pair.rejected) for pair in held_out])
    results = [evaluate_pairs(config, options.pairs, name) for name in ("base", options.run)]
    for result in results:
        print(*result.lines, sep="\n")
    print(f"classifier on {len(learned):,} pairs of the same training part: {peer:.3f}")
    print(f"the longer text: {longer_accuracy(held_out):.3f}")
    figures = {
        "pairs": options.pairs.name,
        "models": [asdict(result) for result in results],
        "classifier": peer,
        "longer": longer_accuracy(held_out),
        "train": config.train.model_dump(mode="json"),
    }
    print(record("preference", figures, packages=("torch", "trl", "scikit-learn")))


if __name__ == "__main__":
    main()
