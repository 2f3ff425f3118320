"""Labelled rows on their way from the source into a run: safe or refused, sorted, in two files.

The same rows give the same files, whichever engine does the work and in whatever order they come.
"""

import os
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reactune.config.sections import DataConfig, PrivacyConfig
from reactune.data.deidentify.rows import (
    ContextOf,
    Contexts,
    UnsafeRowError,
    Value,
    clean_context,
    clean_row,
    common_values,
    common_values_in,
    detectable_texts,
    read_context,
    withhold,
    without_rare,
)
from reactune.data.labelled import (
    LABELLED,
    REFUSED,
    Batches,
    Kept,
    in_memory,
    judged_schema,
    on_disk,
    workspace,
    write_refused,
    write_sorted,
)
from reactune.errors import DataError
from reactune.model.context import parse_context
from reactune.model.prompt import Chat
from reactune.pii.detectors import cached
from reactune.process import die_with_parent, worker_pool
from reactune.records import Counts

if TYPE_CHECKING:
    import pyarrow as pa

FILES = (LABELLED, REFUSED)
MAX_CACHED = 50_000
AHEAD = 2  # batches that wait for each process, so that none waits for the database
WINDOW = 16  # batches of each worker that Ray holds at a time: it bounds what leaves this process

Work = Callable[["pa.RecordBatch"], "pa.RecordBatch"]
Make = Callable[[], Work]
Each = Callable[[Make, Batches], Batches]

_works: list[Work] = []  # of a process of the pool: made once, when it starts


@dataclass(frozen=True)
class Cleaned:
    """Safe rows, the others with the reason, and how many lost a rare value or a context key."""

    batches: Batches
    refused: tuple[Batches, ...]
    counts: Counts
    withheld: int
    dropped: int


@dataclass(frozen=True)
class Extracted:
    """What became of the rows that came in, and how many lost a rare value or a context key."""

    counts: Counts
    withheld: int
    dropped: int


def extract(
    batches: Batches,
    *,
    chat: Chat,
    privacy: PrivacyConfig,
    settings: DataConfig,
    folder: Path,
    progress: Callable[[int], None] = lambda rows: None,
) -> Extracted:
    """Write the safe rows of `scores.read_scores` and the list of refused ones into `folder`.

    The files are the same whoever does the work, and in whatever order rows come. In memory are
    some batches of each worker; rows that are safe but for rare values lie in `folder` meanwhile.

    Raises:
        DataError: a worker died, or memory or disk do not suffice.
    """
    with workspace(folder, memory_gb=settings.memory_gb) as (connection, place):
        cleaned = clean(
            batches,
            chat=chat,
            privacy=privacy,
            each=each_batch(settings),
            keep=on_disk(place),
            common_of=partial(common_values_in, connection),
            progress=progress,
        )
        write_sorted(connection, cleaned.batches, folder / LABELLED)
        write_refused(connection, cleaned.refused, folder / REFUSED)
    return Extracted(cleaned.counts, cleaned.withheld, cleaned.dropped)


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
    with worker_pool(workers, initializer=_start, initargs=(make,)) as pool:
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


@lru_cache(maxsize=1)
def work_of(made: bytes) -> Work:
    """Made once in a process of Ray's, which does many tables: a detector takes time to open."""
    work: Work = pickle.loads(made)()
    return work


def clean(
    batches: Batches,
    *,
    chat: Chat,
    privacy: PrivacyConfig,
    each: Each = one_by_one,
    keep: Callable[[Batches], Kept] = in_memory,
    common_of: Callable[[Contexts, PrivacyConfig], frozenset[Value]] = common_values,
    progress: Callable[[int], None] = lambda rows: None,
) -> Cleaned:
    """The rows of `scores.read_scores` that are safe, in the columns of `clean_schema`.

    Every context is rebuilt as the model reads it, the tip is scrubbed with the placeholders of
    its context, and values of `rare_keys` that fewer than `min_users_per_value` users share are
    withheld. `each` does the work on batches, here or elsewhere, `keep` holds its results, and
    `common_of` counts users. `progress` gets the number of rows done, after every batch.
    """
    first = keep(_reported(each(partial(cleaner, chat, privacy), batches), progress))
    passes: tuple[Kept, ...] = (first,)
    if privacy.rare_keys and privacy.min_users_per_value > 1:
        common = common_of(_users_and_contexts(first.safe), privacy)
        passes += (keep(each(partial(withholder, chat, privacy, common), first.safe)),)
    reasons = sum((kept.reasons for kept in passes), Counter())
    went_out = first.rows - reasons.total()
    return Cleaned(
        batches=passes[-1].safe,
        refused=tuple(kept.refused for kept in passes),
        counts=Counts(first.rows, went_out, dict(sorted(reasons.items()))),
        withheld=sum(kept.withheld for kept in passes),
        dropped=sum(kept.dropped for kept in passes),
    )


def cleaner(chat: Chat, privacy: PrivacyConfig) -> Work:
    """What makes the rows of one batch safe; it remembers contexts, so make one per process."""
    chat, context_of = _with_memory(chat)
    return partial(clean_batch, context_of=context_of, chat=chat, languages=tuple(privacy.models))


def withholder(chat: Chat, privacy: PrivacyConfig, common: frozenset[Value]) -> Work:
    """What takes rare values out of the rows of one batch; make one per process, too."""
    chat, context_of = _with_memory(chat)
    return partial(withhold_batch, context_of=context_of, chat=chat, privacy=privacy, common=common)


def clean_batch(
    batch: "pa.RecordBatch", *, context_of: ContextOf, chat: Chat, languages: Sequence[str]
) -> "pa.RecordBatch":
    """The rows of one batch, safe, or refused with the reason: `judged_schema`.

    Context keys that are not allowed are dropped before anything else sees them. `languages` are
    those that a model is configured for; none: a row's language does not matter.
    """
    rows = batch.to_pylist()
    keys = chat.settings.context_keys
    contexts = [read_context(row["context_json"], frozenset(keys)) for row in rows]
    # Detectors take the texts of a batch together; the rows then ask for them one by one.
    chat.detect(
        [
            text
            for row, (logged, _) in zip(rows, contexts, strict=True)
            for text in detectable_texts(row, logged, keys)
        ]
    )
    judged: list[Mapping[str, Any]] = []
    for row, (logged, dropped) in zip(rows, contexts, strict=True):
        try:
            safe = clean_row(row, logged, context_of=context_of, chat=chat, languages=languages)
            judged.append({**safe, "dropped": dropped})
        except UnsafeRowError as reason:
            judged.append({**_refused(row, reason), "dropped": dropped})
    return _batch(judged)


def withhold_batch(
    batch: "pa.RecordBatch",
    *,
    context_of: ContextOf,
    chat: Chat,
    privacy: PrivacyConfig,
    common: frozenset[Value],
) -> "pa.RecordBatch":
    """The clean rows without rare values, those that lost one marked, or refused: `judged_schema`.

    A row whose tip or remaining context holds a withheld text as well is refused.
    """
    judged: list[Mapping[str, Any]] = []
    for row in batch.to_pylist():
        context = parse_context(row["context_json"]).parts
        kept, lost = withhold(context, privacy, common)
        if kept == context:
            judged.append({**row, "withheld": False})
            continue
        try:
            shorter = without_rare(row, kept, lost, context_of=context_of, chat=chat)
            judged.append({**shorter, "withheld": True})
        except UnsafeRowError as reason:
            judged.append({**_refused(row, reason), "withheld": True})
    return _batch(judged)


def _start(make: Make) -> None:
    die_with_parent()
    _works.append(make())


def _work(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    return _works[0](batch)


def _on_table(made: bytes, table: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    work = work_of(made)
    return pa.Table.from_batches([work(batch) for batch in table.combine_chunks().to_batches()])


def _with_memory(chat: Chat) -> tuple[Chat, ContextOf]:
    """The chat with a detector that remembers texts, and its contexts, remembered as well."""
    chat = replace(chat, detect=cached(chat.detect, MAX_CACHED))
    return chat, lru_cache(MAX_CACHED)(partial(clean_context, chat))


def _refused(row: Mapping[str, Any], reason: UnsafeRowError) -> dict[str, Any]:
    known = {name: row[name] for name in ("tip_id", "user_key", "created_at")}
    return {**known, "reason": str(reason)}


def _users_and_contexts(batches: Batches) -> Contexts:
    for batch in batches:
        users, contexts = batch.column("user_key"), batch.column("context_json")
        for user, context_json in zip(users.to_pylist(), contexts.to_pylist(), strict=True):
            yield user, parse_context(context_json).parts


def _reported(batches: Batches, progress: Callable[[int], None]) -> "Iterator[pa.RecordBatch]":
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        progress(done)


def _batch(rows: Sequence[Mapping[str, Any]]) -> "pa.RecordBatch":
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=judged_schema())
