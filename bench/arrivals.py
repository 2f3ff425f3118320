"""When requests come of many people who know nothing of each other: a Poisson process."""

from collections.abc import Iterator
from random import Random


def arrivals(rate: float, seconds: float, *, seed: int) -> Iterator[float]:
    """Times in [0, seconds) with independent exponential gaps of 1/rate; of one seed the same.

    Even gaps would let a request meet another's answer in every turn or in none, by their length.
    """
    draw, at = Random(seed), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        yield at
