"""In which order rows are trained: one order for all back-ends, batch after batch.

Which rows there are is decided before; a trainer only reads them one after the other.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

WINDOW = 8  # batches whose rows are sorted by length together

Row = dict[str, Any]


def tokens_of(row: Row) -> int:
    """Tokens a trainer reads for one row: a pair counts its prompt twice."""
    if "chosen_ids" in row:
        return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def in_training_order(rows: Sequence[Row], *, steps: int, batch_size: int, seed: int) -> list[Row]:
    """`steps * batch_size` rows: epoch after epoch, each in an order drawn anew from the seed.

    Rows of a batch are of like length, since a batch is padded to its longest row: padding that
    would be half of what a random order computes is a tenth then. Batches come in random order,
    and liked and disliked rows are spread evenly over them.
    """
    draw = random.Random(seed)
    return list(islice(_epochs(rows, batch_size, draw), steps * batch_size))


def _epochs(rows: Sequence[Row], batch_size: int, draw: random.Random) -> Iterator[Row]:
    while True:
        shuffled = list(rows)
        draw.shuffle(shuffled)
        for start in range(0, len(shuffled), WINDOW * batch_size):
            window = _by_length(shuffled[start : start + WINDOW * batch_size])
            batches = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
            draw.shuffle(batches)
            for batch in batches:
                yield from batch


def _by_length(rows: Sequence[Row]) -> list[Row]:
    """By length, within each label; a row's place is its rank's share of those of its label."""
    placed: list[tuple[float, Row]] = []
    for label in (True, False):
        same = sorted((r for r in rows if r.get("label", True) is label), key=tokens_of)
        placed += [((rank + 0.5) / len(same), row) for rank, row in enumerate(same)]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]
