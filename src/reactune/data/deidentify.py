"""Labelled rows -> rows that a model may learn from: prompts rebuilt, personal data replaced.

Pure functions over Arrow record batches, so they run in one process or in many. What becomes of
one row is `safe_rows.py`'s, rare values are `rarity.py`'s.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from reactune.config import PrivacyConfig
from reactune.data.rarity import Value, common_values, withhold
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
from reactune.detect.detectors import remembering
from reactune.prompt import Chat
from reactune.records import Counts

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CACHED = 50_000


@dataclass(frozen=True)
class Cleaned:
    """Safe rows, what became of the others, and how many lost a rare value or a context key."""

    batches: tuple["pa.RecordBatch", ...]
    counts: Counts
    withheld: int
    dropped: int


def clean(
    batches: Iterable["pa.RecordBatch"],
    *,
    chat: Chat,
    privacy: PrivacyConfig,
    progress: Callable[[int], None] = lambda rows: None,
) -> Cleaned:
    """The rows of `scores.read_scores` that are safe, in the columns of `clean_schema`.

    Every context is rebuilt as the model reads it, the tip is scrubbed with the placeholders of
    its context, and values of `rare_keys` that fewer than `min_users_per_value` users share are
    withheld. `progress` is told the number of rows done, after every batch.
    """
    # Texts of a batch are looked at together; the rows then ask for them one by one.
    chat = replace(chat, detect=remembering(chat.detect, MAX_CACHED))
    context_of = lru_cache(MAX_CACHED)(partial(clean_context, chat))
    came_in = 0
    refused: Counter[str] = Counter()
    dropped = 0
    safe = []
    for batch in batches:
        allowed, lost = allow_batch(batch, chat.settings.context_keys)
        dropped += lost
        rows, reasons = clean_batch(
            allowed, context_of=context_of, chat=chat, languages=tuple(privacy.models)
        )
        came_in += batch.num_rows
        refused += reasons
        safe.append(rows)
        progress(came_in)
    withheld = 0
    if privacy.rare_keys and privacy.min_users_per_value > 1:
        common = common_values(_users_and_contexts(safe), privacy)
        for number, batch in enumerate(safe):
            safe[number], reasons, lost = withhold_batch(
                batch, context_of=context_of, chat=chat, privacy=privacy, common=common
            )
            refused += reasons
            withheld += lost
    went_out = sum(batch.num_rows for batch in safe)
    counts = Counts(came_in, went_out, dict(sorted(refused.items())))
    return Cleaned(tuple(safe), counts, withheld, dropped)


def allow_batch(
    batch: "pa.RecordBatch", context_keys: Sequence[str]
) -> tuple["pa.RecordBatch", int]:
    """The batch without context keys that are not allowed to leave, and how many rows lost some.

    Contexts that cannot be read stay as they are: `clean_batch` refuses them.
    """
    import pyarrow as pa

    allowed = frozenset(context_keys)
    logged = batch.column("context_json").to_pylist()
    kept = [only_allowed(context_json, allowed) for context_json in logged]
    lost = sum(before != after for before, after in zip(logged, kept, strict=True))
    if not lost:
        return batch, 0
    index = batch.schema.get_field_index("context_json")
    column = pa.array(kept, batch.schema.field(index).type)
    return batch.set_column(index, batch.schema.field(index), column), lost


def clean_batch(
    batch: "pa.RecordBatch", *, context_of: ContextOf, chat: Chat, languages: Sequence[str]
) -> tuple["pa.RecordBatch", Counter[str]]:
    """The safe rows of one batch, and how many were refused for which reason.

    `languages` are those that a model is configured for; none: a row's language does not matter.
    """
    rows = []
    refused: Counter[str] = Counter()
    logged = batch.to_pylist()
    chat.detect([text for row in logged for text in texts_in(row, chat.settings.context_keys)])
    for row in logged:
        try:
            rows.append(clean_row(row, context_of=context_of, chat=chat, languages=languages))
        except UnsafeRowError as reason:
            refused[str(reason)] += 1
    return _batch(rows), refused


def withhold_batch(
    batch: "pa.RecordBatch",
    *,
    context_of: ContextOf,
    chat: Chat,
    privacy: PrivacyConfig,
    common: frozenset[Value],
) -> tuple["pa.RecordBatch", Counter[str], int]:
    """The rows without rare values, the refusals, and how many rows lost a value.

    A row whose tip or remaining context says a withheld text as well is refused.
    """
    rows = []
    refused: Counter[str] = Counter()
    withheld = 0
    for row in batch.to_pylist():
        context, texts = withhold(context_in(row), privacy, common)
        if context != context_in(row):
            withheld += 1
        try:
            rows.append(without_rare(row, context, texts, context_of=context_of, chat=chat))
        except UnsafeRowError as reason:
            refused[str(reason)] += 1
    return _batch(rows), refused, withheld


def clean_schema() -> "pa.Schema":
    """The columns of a safe row."""
    import pyarrow as pa

    texts = (
        "tip_id", "user_key", "kind", "context_json", "instruction", "input", "prompt", "tip",
        "source", "reaction",
    )  # fmt: skip
    return pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("dwell_ms", pa.int64()),
            ("created_at", pa.timestamp("us", tz="UTC")),
            ("label", pa.bool_()),
        ]
    )


def _users_and_contexts(
    batches: Iterable["pa.RecordBatch"],
) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for batch in batches:
        users, contexts = batch.column("user_key"), batch.column("context_json")
        for user, context_json in zip(users.to_pylist(), contexts.to_pylist(), strict=True):
            yield user, json.loads(context_json)["context"]


def _batch(rows: list[dict[str, Any]]) -> "pa.RecordBatch":
    import pyarrow as pa

    return pa.RecordBatch.from_pylist(rows, schema=clean_schema())
