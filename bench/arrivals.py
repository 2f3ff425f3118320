"""Requests of many people who know nothing of each other: they come as a Poisson process."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from random import Random

WARM_UP = 20  # requests, one after the other, before those that are timed


def arrivals(rate: float, seconds: float, *, seed: int) -> Iterator[float]:
    """Times in [0, seconds) with independent exponential gaps of 1/rate; of one seed the same.

    Even gaps would let a request meet another's answer in every turn or in none, by their length.
    """
    draw, at = Random(seed), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        yield at


async def send(
    one: Callable[[int, float], Awaitable[None]], *, rate: float, seconds: float, seed: int
) -> float:
    """Begin `one` at every arrival, with its number and when it was due, whoever is not done yet.

    Returns the seconds until all are done.
    """
    begin, tasks = time.perf_counter(), []
    for number, at in enumerate(arrivals(rate, seconds, seed=seed)):
        due = begin + at
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.ensure_future(one(number, due)))
    await asyncio.gather(*tasks)
    return time.perf_counter() - begin
