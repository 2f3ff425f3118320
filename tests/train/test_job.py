"""The order in which rows are trained."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from reactune.train.job import in_training_order, tokens_of


def rows_of(count, *, labels=False):
    draw = random.Random(count)
    return [
        {
            "prompt_ids": [number] * draw.randint(40, 120),
            "completion_ids": [1] * draw.randint(5, 30),
            **({"label": number % 3 == 0} if labels else {}),
        }
        for number in range(count)
    ]


def ids(rows):
    return [row["prompt_ids"][0] for row in rows]


def batches_of(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def padded(rows, size):
    return sum(len(b) * max(map(tokens_of, b)) for b in batches_of(rows, size))


def test_every_epoch_holds_every_row_once_and_each_in_another_order():
    rows = rows_of(100)
    ordered = ids(in_training_order(rows, steps=75, batch_size=4, seed=1))
    epochs = batches_of(ordered, 100)
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(("steps", "batch_size"), [(1, 8), (7, 3), (40, 8)])
def test_as_many_rows_come_as_the_steps_read(steps, batch_size):
    ordered = in_training_order(rows_of(21), steps=steps, batch_size=batch_size, seed=1)
    assert len(ordered) == steps * batch_size


def test_the_seed_decides_and_nothing_else():
    rows = rows_of(50)
    orders = [ids(in_training_order(rows, steps=6, batch_size=8, seed=s)) for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_padding_is_a_fraction_of_what_a_random_order_pads():
    rows = rows_of(400)
    real = sum(map(tokens_of, rows))
    shuffled = random.Random(0).sample(rows, len(rows))
    ordered = in_training_order(rows, steps=50, batch_size=8, seed=1)
    assert padded(ordered, 8) - real < 0.35 * (padded(shuffled, 8) - real)


def test_batches_of_unlike_length_follow_each_other():
    ordered = in_training_order(rows_of(400), steps=50, batch_size=8, seed=1)
    lengths = [max(map(tokens_of, batch)) for batch in batches_of(ordered, 8)]
    ups = sum(later > earlier for earlier, later in pairwise(lengths))
    assert 15 < ups < 35


def test_liked_and_disliked_rows_share_every_batch_though_one_kind_is_longer():
    rows = rows_of(240, labels=True)
    for row in rows:
        row["completion_ids"] = [1] * (100 if row["label"] else 5)
    ordered = in_training_order(rows, steps=30, batch_size=8, seed=1)
    liked = Counter(sum(row["label"] for row in batch) for batch in batches_of(ordered, 8))
    assert set(liked) <= {1, 2, 3, 4}
