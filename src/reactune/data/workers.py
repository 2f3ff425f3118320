"""Work on Arrow batches: in this process, in a pool of processes, or on a cluster with Ray Data.

The work itself is a function from batch to batch that each process makes for itself; results do
not depend on where it runs, nor on how many do it, but for their order.
"""

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache, partial
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING

from reactune.config import DataConfig
from reactune.errors import DataError
from reactune.process import die_with_parent

if TYPE_CHECKING:
    import pyarrow as pa

Batches = Iterable["pa.RecordBatch"]
Work = Callable[["pa.RecordBatch"], "pa.RecordBatch"]
Make = Callable[[], Work]
Each = Callable[[Make, Batches], Batches]

AHEAD = 2  # batches that wait for each process, so that none waits for the database
WINDOW = 16  # batches of each worker that Ray holds at a time: it bounds what leaves this process


def each_batch(settings: DataConfig) -> Each:
    """Where `settings` want work to be done: a function of what makes the work, and batches.

    Raises, when batches are taken from it:
        DataError: a process of the pool, or the cluster, died and could not be replaced.
    """
    workers = settings.workers or os.cpu_count() or 1
    if settings.engine == "processes":
        return partial(in_processes, workers=workers)
    if settings.engine == "ray":
        return partial(on_ray, workers=workers)
    return one_by_one


def one_by_one(make: Make, batches: Batches) -> "Iterator[pa.RecordBatch]":
    """Do the work here."""
    return map(make(), batches)


def in_processes(make: Make, batches: Batches, *, workers: int) -> "Iterator[pa.RecordBatch]":
    """Do the work in a pool of processes; results come in the order of the batches."""
    left = iter(batches)
    # A fork would copy threads of DuckDB and Arrow that hold locks.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(make,)
    )
    with pool:
        waiting: deque[Future[pa.RecordBatch]] = deque()
        try:
            for batch in islice(left, AHEAD * workers):
                waiting.append(pool.submit(_work, batch))
            while waiting:
                done = waiting.popleft().result()
                for batch in islice(left, 1):
                    waiting.append(pool.submit(_work, batch))
                yield done
        except BrokenProcessPool as error:
            raise DataError(
                f"one of {workers} processes ended in the middle of its work, perhaps for lack of "
                "memory; set data.workers to fewer, and repeat"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def on_ray(make: Make, batches: Batches, *, workers: int) -> "Iterator[pa.RecordBatch]":
    """Do the work with Ray Data, on the cluster that RAY_ADDRESS names or on this machine.

    Batches go there some at a time. What was on a node that died is done again elsewhere.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import pyarrow as pa
    import ray
    from ray.exceptions import RayError

    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    left, made = iter(batches), pickle.dumps(make)
    try:
        while window := [pa.Table.from_batches([b]) for b in islice(left, WINDOW * workers)]:
            done = ray.data.from_arrow(window).map_batches(
                partial(_on_table, made), batch_format="pyarrow", batch_size=None
            )
            for table in done.iter_batches(batch_format="pyarrow", batch_size=None):
                yield from table.combine_chunks().to_batches()
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"the Ray cluster could not do it: {reason}; see to it, or set data.engine to another"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _on_table(made: bytes, table: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    work = work_of(made)
    return pa.Table.from_batches([work(batch) for batch in table.combine_chunks().to_batches()])


@lru_cache(maxsize=1)
def work_of(made: bytes) -> Work:
    """Made once in a process of Ray's, which does many tables: a detector takes time to open."""
    work: Work = pickle.loads(made)()
    return work


_works: list[Work] = []  # of a process of the pool: made once, when it starts


def _start(make: Make) -> None:
    die_with_parent()
    _works.append(make())


def _work(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    return _works[0](batch)
