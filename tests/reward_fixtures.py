"""Reactions of an audience whose taste is known, with features that stand for a model's."""

import random
from datetime import UTC, datetime, timedelta

import numpy as np

from reactune.records import Example

START = datetime(2026, 3, 2, 8, tzinfo=UTC)
WIDTH = 12


def example(number, *, user="anna", label=True, kind="focus", context="{}", tip=None, hours=0):
    return Example(
        tip_id=f"tip-{number:05}",
        user_key=user,
        kind=kind,
        context_json=context,
        instruction="",
        input="",
        prompt="",
        tip=tip or f"tip number {number} of all",
        label=label,
        dwell_ms=1_000,
        created_at=START + timedelta(hours=hours),
    )


def audience(count=800, *, users=80, taste=2.0, person=0.0, contexts=0, seed=1):
    """Examples and their features, of which the first decides by `taste`.

    `person` is how much people differ in what they like at all, in log-odds; people who like much
    get tips with a high second feature. `contexts` is how many there are, each for many people.
    """
    draw = random.Random(seed)
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, WIDTH)).astype(np.float32)
    likes = {f"user-{n}": draw.gauss(0, person) for n in range(users)}
    examples = []
    for number in range(count):
        user = f"user-{number % users}"
        features[number, 1] += likes[user]
        odds = taste * features[number, 0] + likes[user]
        context = f'{{"n": {draw.randrange(contexts) if contexts else number}}}'
        liked = draw.random() < 1 / (1 + np.exp(-odds))
        examples.append(
            example(number, user=user, label=liked, context=context, hours=number // users)
        )
    return examples, features
