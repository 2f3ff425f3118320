"""Labelled rows -> rows that a model may learn from: prompts rebuilt, personal data replaced.

Pure functions over Arrow record batches, so they run in one process or in many. What becomes of
one row is `safe_rows.py`'s, rare values are `rarity.py`'s.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from reactune.config import PrivacyConfig
from reactune.data.judged import Batches, Kept, in_memory, judged_schema
from reactune.data.judged import clean_schema as clean_schema
from reactune.data.rarity import Contexts, Value, common_values, withhold
from reactune.data.safe_rows import (
    ContextOf,
    UnsafeRowError,
    clean_context,
    clean_row,
    context_in,
    only_allowed,
    texts_in,
    without_rare,
)
from reactune.data.workers import Each, Work, one_by_one
from reactune.detect.detectors import remembering
from reactune.prompt import Chat
from reactune.records import Counts

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CACHED = 50_000


@dataclass(frozen=True)
class Cleaned:
    """Safe rows, the others with the reason, and how many lost a rare value or a context key."""

    batches: Batches
    refused: tuple[Batches, ...]
    counts: Counts
    withheld: int
    dropped: int


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
    `common_of` counts users. `progress` is told the number of rows done, after every batch.
    """
    first = keep(_told(each(partial(cleaner, chat, privacy), batches), progress))
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


def allow_batch(
    batch: "pa.RecordBatch", context_keys: Sequence[str]
) -> tuple["pa.RecordBatch", list[bool]]:
    """The batch without context keys that are not allowed to leave, and which rows lost some.

    Contexts that cannot be read stay as they are: `clean_batch` refuses them.
    """
    import pyarrow as pa

    allowed = frozenset(context_keys)
    logged = batch.column("context_json").to_pylist()
    kept = [only_allowed(context_json, allowed) for context_json in logged]
    lost = [before != after for before, after in zip(logged, kept, strict=True)]
    if not any(lost):
        return batch, lost
    index = batch.schema.get_field_index("context_json")
    column = pa.array(kept, batch.schema.field(index).type)
    return batch.set_column(index, batch.schema.field(index), column), lost


def clean_batch(
    batch: "pa.RecordBatch", *, context_of: ContextOf, chat: Chat, languages: Sequence[str]
) -> "pa.RecordBatch":
    """The rows of one batch, safe, or refused with the reason: `judged_schema`.

    `languages` are those that a model is configured for; none: a row's language does not matter.
    """
    allowed, dropped = allow_batch(batch, chat.settings.context_keys)
    logged = allowed.to_pylist()
    # Texts of a batch are looked at together; the rows then ask for them one by one.
    chat.detect([text for row in logged for text in texts_in(row, chat.settings.context_keys)])
    rows: list[Mapping[str, Any]] = []
    for row, lost in zip(logged, dropped, strict=True):
        try:
            safe = clean_row(row, context_of=context_of, chat=chat, languages=languages)
            rows.append({**safe, "dropped": lost})
        except UnsafeRowError as reason:
            rows.append({**_refused(row, reason), "dropped": lost})
    return _batch(rows)


def withhold_batch(
    batch: "pa.RecordBatch",
    *,
    context_of: ContextOf,
    chat: Chat,
    privacy: PrivacyConfig,
    common: frozenset[Value],
) -> "pa.RecordBatch":
    """The rows without rare values, those that lost one marked, or refused: `judged_schema`.

    A row whose tip or remaining context says a withheld text as well is refused.
    """
    rows: list[Mapping[str, Any]] = []
    for row in batch.to_pylist():
        context, texts = withhold(context_in(row), privacy, common)
        lost = context != context_in(row)
        try:
            shorter = without_rare(row, context, texts, context_of=context_of, chat=chat)
            rows.append({**shorter, "withheld": lost})
        except UnsafeRowError as reason:
            rows.append({**_refused(row, reason), "withheld": lost})
    return _batch(rows)


def _with_memory(chat: Chat) -> tuple[Chat, ContextOf]:
    """The chat with a detector that remembers texts, and its contexts, remembered as well."""
    chat = replace(chat, detect=remembering(chat.detect, MAX_CACHED))
    return chat, lru_cache(MAX_CACHED)(partial(clean_context, chat))


def _refused(row: Mapping[str, Any], reason: UnsafeRowError) -> dict[str, Any]:
    known = {name: row[name] for name in ("tip_id", "user_key", "created_at")}
    return {**known, "reason": str(reason)}


def _users_and_contexts(batches: Batches) -> Contexts:
    for batch in batches:
        users, contexts = batch.column("user_key"), batch.column("context_json")
        for user, context_json in zip(users.to_pylist(), contexts.to_pylist(), strict=True):
            yield user, json.loads(context_json)["context"]


def _told(batches: Batches, progress: Callable[[int], None]) -> "Iterator[pa.RecordBatch]":
    done = 0
    for batch in batches:
        yield batch
        done += batch.num_rows
        progress(done)


def _batch(rows: Sequence[Mapping[str, Any]]) -> "pa.RecordBatch":
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=judged_schema())
