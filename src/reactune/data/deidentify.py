"""Labelled rows -> rows that a model may learn from: prompts rebuilt, personal data replaced.

Pure functions over Arrow record batches, so they run in one process or in many. What personal
data looks like is `privacy.py`'s, rare values are `rarity.py`'s.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from reactune.config import PrivacyConfig
from reactune.context import CleanPart, break_special_tokens, clean_part, scrub_part
from reactune.data.rarity import Value, common_values, withhold
from reactune.errors import DataError, PrivacyError
from reactune.privacy import PLACEHOLDER, refill, scrub
from reactune.prompt import (
    MAX_TOKEN_CHARS,
    VERSION,
    Chat,
    assemble,
    input_of,
    instruction_of,
    rebuild,
)
from reactune.records import Counts, Prompt, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa

MAX_CACHED = 50_000
INCOMPLETE = "incomplete"
UNREADABLE = "context cannot be read"
PERSONAL_KIND = "personal data in the kind"
UNFILLABLE = "personal data in the tip that its context does not hold"
REPEATED = "a withheld value stands elsewhere in the row"


class UnsafeRowError(PrivacyError):
    """A row that cannot be made safe; the message is the reason it is counted under."""


@dataclass(frozen=True)
class CleanContext:
    """A context that is safe to show, and what the model reads of it."""

    context_json: str
    instruction: str
    input: str
    prompt: str
    placeholders: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Cleaned:
    """Safe rows, what became of the others, and the rows that lost a rare value."""

    batches: tuple["pa.RecordBatch", ...]
    counts: Counts
    withheld: int


ContextOf = Callable[[str, str], CleanContext]


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
    context_of = lru_cache(MAX_CACHED)(partial(clean_context, chat))
    came_in = 0
    refused: Counter[str] = Counter()
    safe = []
    for batch in batches:
        rows, reasons = clean_batch(batch, context_of=context_of, chat=chat)
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
    return Cleaned(tuple(safe), Counts(came_in, went_out, dict(sorted(refused.items()))), withheld)


def clean_batch(
    batch: "pa.RecordBatch", *, context_of: ContextOf, chat: Chat
) -> tuple["pa.RecordBatch", Counter[str]]:
    """The safe rows of one batch, and how many were refused for which reason."""
    rows = []
    refused: Counter[str] = Counter()
    for row in batch.to_pylist():
        try:
            rows.append(_clean_row(row, context_of=context_of, chat=chat))
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
        context, texts = withhold(_context(row), privacy, common)
        if context != _context(row):
            withheld += 1
        try:
            rows.append(_without_rare(row, context, texts, context_of=context_of, chat=chat))
        except UnsafeRowError as reason:
            refused[str(reason)] += 1
    return _batch(rows), refused, withheld


def clean_context(chat: Chat, kind: str, context_json: str) -> CleanContext:
    """The logged context as the model reads it, safe under the settings of today.

    A context that was logged under looser settings, or not by `assemble`, is assembled anew.

    Raises:
        UnsafeRowError: the context, or a value in it, is none.
    """
    try:
        prompt = _safe_prompt(chat, kind, context_json)
    except (DataError, RecursionError) as error:
        raise UnsafeRowError(UNREADABLE) from error
    return CleanContext(
        context_json=prompt.context_json,
        instruction=instruction_of(chat, kind),
        input=input_of(json.loads(prompt.context_json)["context"], chat.settings),
        prompt=prompt.text,
        placeholders=prompt.placeholders,
    )


def clean_tip(chat: Chat, tip: str, context: CleanContext) -> str:
    """The tip with the placeholders of its context in place of personal data.

    Raises:
        UnsafeRowError: it is empty, or holds personal data that its context does not: a model that
            learned it would write placeholders which nobody can fill in.
    """
    plain = break_special_tokens(unicodedata.normalize("NFC", tip), tokenizer=chat.tokenizer)
    shown = {match.group() for match in PLACEHOLDER.finditer(context.input)}
    # Placeholders of a logged context stand for values that nobody knows any more.
    placeholders = {**dict.fromkeys(shown, ""), **context.placeholders}
    scrubbed = scrub(plain, placeholders=placeholders).strip()
    if not scrubbed:
        raise UnsafeRowError(INCOMPLETE)
    if refill(scrubbed, dict.fromkeys(shown, "it")) is None:
        raise UnsafeRowError(UNFILLABLE)
    return scrubbed


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


def _clean_row(row: Mapping[str, Any], *, context_of: ContextOf, chat: Chat) -> dict[str, Any]:
    if any(row[name] in (None, "") for name in ("tip_id", "user_key", "kind", "created_at")):
        raise UnsafeRowError(INCOMPLETE)
    if row["tip_content"] is None or row["context_json"] is None:
        raise UnsafeRowError(INCOMPLETE)
    if scrub(row["kind"], placeholders={}) != row["kind"]:
        raise UnsafeRowError(PERSONAL_KIND)
    context = context_of(row["kind"], row["context_json"])
    return {**row, **_model_columns(context), "tip": clean_tip(chat, row["tip_content"], context)}


def _without_rare(
    row: Mapping[str, Any],
    context: Mapping[str, CleanPart],
    texts: Iterable[str],
    *,
    context_of: ContextOf,
    chat: Chat,
) -> dict[str, Any]:
    if context == _context(row):
        return dict(row)
    shorter = context_of(row["kind"], canonical_json({"v": VERSION, "context": context}))
    if any(_says(f"{shorter.input}\n{row['tip']}", text) for text in texts):
        raise UnsafeRowError(REPEATED)
    return {**row, **_model_columns(shorter), "tip": clean_tip(chat, row["tip"], shorter)}


def _model_columns(context: CleanContext) -> dict[str, str]:
    return {
        "context_json": context.context_json,
        "instruction": context.instruction,
        "input": context.input,
        "prompt": context.prompt,
    }


def _safe_prompt(chat: Chat, kind: str, context_json: str) -> Prompt:
    try:
        logged = json.loads(context_json)
    except ValueError as error:
        raise DataError("context_json is not JSON") from error
    if not isinstance(logged, dict) or logged.keys() != {"v", "context"} or logged["v"] != VERSION:
        return rebuild(chat, kind, context_json)
    context = logged["context"]
    if not isinstance(context, dict):
        raise DataError("the logged context is no JSON object")
    if not _is_safe(chat, context):
        return assemble(chat, kind, context)
    prompt = rebuild(chat, kind, context_json)
    budget = chat.settings.max_context_tokens
    if len(prompt.token_ids) <= budget:
        return prompt
    tokens = chat.tokenizer.encode(input_of(context, chat.settings), add_special_tokens=False).ids
    return prompt if len(tokens) <= budget else assemble(chat, kind, context)


def _is_safe(chat: Chat, context: Mapping[str, Any]) -> bool:
    if not context.keys() <= set(chat.settings.context_keys):
        return False
    max_chars = chat.settings.max_context_tokens * MAX_TOKEN_CHARS
    for key, part in context.items():
        plain = clean_part(part, key=key, tokenizer=chat.tokenizer, max_chars=max_chars)
        if plain != part or scrub_part(plain, placeholders={}, names=()) != part:
            return False
    return True


def _says(text: str, value: str) -> bool:
    words = f" {' '.join(''.join(c if c.isalnum() else ' ' for c in text.casefold()).split())} "
    sought = " ".join("".join(c if c.isalnum() else " " for c in value.casefold()).split())
    return bool(sought) and f" {sought} " in words


def _context(row: Mapping[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = json.loads(row["context_json"])["context"]
    return context


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
