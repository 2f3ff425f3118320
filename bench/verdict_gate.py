"""How often the gate passes a tuned model that is no better, by the number of held-out users.

Every user has a taste of their own for how the tuned model differs from the base, so all tips of a
user agree more than those of two. Equal: these tastes are zero on average. Better: they are not,
and passing is right. Beside the gate's intervals stand quantiles of the same resamples, the
intervals that a bootstrap gives as it comes.
"""

import argparse
from collections.abc import Iterator
from unittest import mock

import numpy as np
from scipy.stats import binomtest

from reactune.config.sections import GateConfig
from reactune.evaluate import gate
from reactune.evaluate.gate import HeldOut, examine
from reactune.progress import progress_bar
from reactune.records import Estimate
from record import record

USERS, TIPS = (2, 3, 5, 8, 12, 20, 40), (3, 12)
MOST_EXAMPLES = 240
SPREAD, NOISE, LIFT = 0.05, 0.05, 0.06  # of log-probability per token: of users, of tips
LEAST_P = 0.001
Worlds = tuple[list[HeldOut], dict[str, list[np.ndarray]]]


def main() -> None:
    """Print a line for each number of users and tips, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    settings = GateConfig()
    print(f"passed of {options.worlds} worlds each, at an alpha of {settings.alpha:g}")
    print(
        f"{'users':>5} {'tips':>4}  {'equal':>6} {'quantiles':>9}  {'better':>6} {'quantiles':>9}"
    )
    kept, failed = [], []
    for users, tips in cells():
        row: dict[str, float] = {"users": users, "tips": tips}
        for name, lift in (("equal", 0.0), ("better", LIFT)):
            rng = np.random.default_rng([options.seed, users, tips, int(lift > 0)])
            ours, theirs = passed(users, tips, lift, options.worlds, settings, rng)
            row |= {name: ours / options.worlds, f"{name} by quantiles": theirs / options.worlds}
            test = binomtest(ours, options.worlds, settings.alpha, alternative="greater")
            if not lift and test.pvalue < LEAST_P:
                failed.append((users, tips))
        kept.append(row)
        figures = "".join(f"{share:8.1%}" for share in list(row.values())[2:])
        print(f"{users:5} {tips:4}  {figures}", flush=True)
    print(f"cells above alpha (p < {LEAST_P:g}): {failed or 'none'}")
    found = {"worlds": options.worlds, "seed": options.seed, "cells": kept, "above": failed}
    print(f"kept in {record('verdict_gate', found, packages=('numpy', 'scipy')).name}")


def cells() -> Iterator[tuple[int, int]]:
    """Numbers of users, and of each user's tips."""
    for tips in TIPS:
        for users in USERS:
            if users * tips <= MOST_EXAMPLES:
                yield users, tips


def passed(
    users: int, tips: int, lift: float, worlds: int, settings: GateConfig, rng: np.random.Generator
) -> tuple[int, int]:
    """In how many worlds the tuned model passes, by the gate and by quantiles of its resamples."""
    counts = [0, 0]
    with progress_bar(f"{users} users, {tips} tips", total=worlds, unit="worlds") as bar:
        for _ in range(worlds):
            bar.update()
            examples, scores = world(users, tips, lift, rng)
            if not gate.count_pairs(examples):
                continue  # which the gate refuses before
            counts[0] += not examine(examples, scores, settings=settings).refusals
            with mock.patch.object(gate, "resampled", quantiles):
                counts[1] += not examine(examples, scores, settings=settings).refusals
    return counts[0], counts[1]


def world(users: int, tips: int, lift: float, rng: np.random.Generator) -> Worlds:
    """Held-out tips, with the log-probabilities of their tokens under base and tuned model."""
    examples, base, tuned = [], [], []
    for user in range(users):
        taste = rng.normal(lift, SPREAD)
        for _ in range(tips):
            is_liked = bool(rng.random() < 0.5)
            examples.append(HeldOut(f"user {user}", "tip", is_liked))
            plain = rng.normal(-3.0, 0.5, rng.integers(8, 20))
            base.append(plain)
            tuned.append(plain + (taste if is_liked else -taste) + rng.normal(0.0, NOISE))
    return examples, {"base": base, "tuned": tuned}


def quantiles(values: np.ndarray, *, alpha: float = 0.05, **_: object) -> Estimate:
    """The first value, with the quantiles of the others."""
    low, high = np.quantile(values[1:], [alpha / 2, 1 - alpha / 2])
    return Estimate(float(values[0]), float(low), float(high))


if __name__ == "__main__":
    main()
