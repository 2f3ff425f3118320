"""Context values that too few people share: found by counting users, and taken out of contexts.

Which keys are watched, and how many users are enough, are settings.
"""

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from reactune.config.sections import PrivacyConfig
from reactune.errors import DataError, PrivacyError
from reactune.model.context import (
    CleanPart,
    Scalar,
    break_special_tokens,
    clean_part,
    is_scalar,
    scrub_parts,
    texts_of,
)
from reactune.model.prompt import (
    MAX_TOKEN_CHARS,
    VERSION,
    Chat,
    assemble,
    input_of,
    instruction_of,
    rebuild,
)
from reactune.pii.detectors import by_form, is_foreign_row
from reactune.pii.spans import PLACEHOLDER, refill, scrub
from reactune.records import Prompt, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection


INCOMPLETE = "incomplete"
UNREADABLE = "context cannot be read"
PERSONAL_KIND = "personal data in the kind"
UNFILLABLE = "personal data in the tip that its context does not hold"
FOREIGN = "a language that no model is configured for"
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


ContextOf = Callable[[str, str], CleanContext]


def only_allowed(context_json: str | None, allowed: frozenset[str]) -> str | None:
    """The logged context without keys that are not allowed; as it is if it holds none or is none.

    What tells that a context was logged by `assemble` is no key of it.
    """
    try:
        logged = json.loads(context_json or "")
    except (ValueError, RecursionError):
        return context_json
    if not isinstance(logged, dict):
        return context_json
    is_ours = logged.keys() == {"v", "context"} and isinstance(logged["context"], dict)
    context = logged["context"] if is_ours else logged
    if is_ours != (logged.keys() == {"v", "context"}) or context.keys() <= allowed:
        return context_json
    kept = {key: part for key, part in context.items() if key in allowed}
    return canonical_json({**logged, "context": kept} if is_ours else kept)


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
    scrubbed = scrub(plain, placeholders=placeholders, detect=chat.detect).strip()
    if not scrubbed:
        raise UnsafeRowError(INCOMPLETE)
    if refill(scrubbed, dict.fromkeys(shown, "it")) is None:
        raise UnsafeRowError(UNFILLABLE)
    return scrubbed


def clean_row(
    row: Mapping[str, Any], *, context_of: ContextOf, chat: Chat, languages: Sequence[str]
) -> dict[str, Any]:
    """The row with its prompt and its scrubbed tip.

    Raises:
        UnsafeRowError: it cannot be made safe, or is in a language no model is configured for.
    """
    if any(row[name] in (None, "") for name in ("tip_id", "user_key", "kind", "created_at")):
        raise UnsafeRowError(INCOMPLETE)
    if row["tip_content"] is None or row["context_json"] is None:
        raise UnsafeRowError(INCOMPLETE)
    if scrub(row["kind"], placeholders={}, detect=by_form) != row["kind"]:
        raise UnsafeRowError(PERSONAL_KIND)
    context = context_of(row["kind"], row["context_json"])
    tip = clean_tip(chat, row["tip_content"], context)
    text, scrubbed = (f"{context.input}\n{each}" for each in (row["tip_content"], tip))
    if languages and is_foreign_row(text, scrubbed, languages=languages):
        raise UnsafeRowError(FOREIGN)
    return {**row, **_model_columns(context), "tip": tip}


def without_rare(
    row: Mapping[str, Any],
    context: Mapping[str, CleanPart],
    texts: Iterable[str],
    *,
    context_of: ContextOf,
    chat: Chat,
) -> dict[str, Any]:
    """The row with the context that is left of it; `texts` are the rare values it lost.

    Raises:
        UnsafeRowError: the tip or the rest of the context says one of them again.
    """
    if context == context_in(row):
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
    plain = {
        key: clean_part(part, key=key, tokenizer=chat.tokenizer, max_chars=max_chars)
        for key, part in context.items()
    }
    return plain == context and scrub_parts(plain, placeholders={}, detect=chat.detect) == context


def texts_in(row: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    """The texts that detectors will be asked about: of the tip, and of a context that is one."""
    if row["tip_content"]:
        yield row["tip_content"]
    try:
        logged = json.loads(row["context_json"] or "")
    except (ValueError, RecursionError):
        return
    if isinstance(logged, dict) and logged.keys() == {"v", "context"}:
        logged = logged["context"]
    if isinstance(logged, dict):
        for key in keys:
            part = logged.get(key)
            if isinstance(part, list):
                part = [item for item in part if isinstance(item, str)]
            if isinstance(part, dict):
                part = {name: value for name, value in part.items() if is_scalar(value)}
            if isinstance(part, str | list | dict):
                yield from (text.label + text.value for text in texts_of(key, part))


def _says(text: str, value: str) -> bool:
    words = f" {' '.join(''.join(c if c.isalnum() else ' ' for c in text.casefold()).split())} "
    sought = " ".join("".join(c if c.isalnum() else " " for c in value.casefold()).split())
    return bool(sought) and f" {sought} " in words


def context_in(row: Mapping[str, Any]) -> dict[str, Any]:
    """The context of a row that was cleaned."""
    context: dict[str, Any] = json.loads(row["context_json"])["context"]
    return context


Value = tuple[str, str]  # a key, such as user_settings.city, and one of its values as JSON
Contexts = Iterable[tuple[str, Mapping[str, CleanPart]]]  # user_key and context
BATCH_ROWS = 10_000


def common_values(contexts: Contexts, privacy: PrivacyConfig) -> frozenset[Value]:
    """The values of `rare_keys` that at least `min_users_per_value` different users share.

    `contexts` are pairs of user_key and context. Items of a list and entries of an object count
    one by one; a rare key may name one entry, as in `user_settings.city`.
    """
    import duckdb

    with duckdb.connect() as connection:
        return common_values_in(connection, contexts, privacy)


def common_values_in(
    connection: "DuckDBPyConnection", contexts: Contexts, privacy: PrivacyConfig
) -> frozenset[Value]:
    """As `common_values`, counted in a database that spills what it cannot hold."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in ("name", "value", "person")])
    found = _batches(contexts, privacy, schema)
    connection.register("watched", pa.RecordBatchReader.from_batches(schema, found))
    rows = connection.execute(
        "SELECT name, value FROM (SELECT DISTINCT name, value, person FROM watched) "
        "GROUP BY name, value HAVING count(*) >= $1",
        [privacy.min_users_per_value],
    ).fetchall()
    connection.unregister("watched")
    return frozenset(rows)


def withhold(
    context: Mapping[str, CleanPart], privacy: PrivacyConfig, common: frozenset[Value]
) -> tuple[dict[str, CleanPart], tuple[str, ...]]:
    """The context without values of `rare_keys` that are not common, and what it lost, as text."""
    rare = [
        (name, value)
        for name, value in _watched(context, privacy.rare_keys)
        if (name, canonical_json(value)) not in common
    ]
    kept: dict[str, CleanPart] = dict(context)
    for name, value in rare:
        key, _, entry = name.partition(".")
        part = kept.get(key)
        if isinstance(part, dict):
            kept[key] = {other: held for other, held in part.items() if other != entry}
        elif isinstance(part, list):
            kept[key] = [item for item in part if item != value]
        elif part is not None:
            del kept[key]
        if kept.get(key) in ({}, []):
            del kept[key]
    return kept, tuple(str(value) for _, value in rare if _is_telling(value))


def _is_telling(value: Scalar) -> bool:
    """Whether finding the value elsewhere means anything: small numbers stand everywhere."""
    return isinstance(value, str) or (not isinstance(value, bool) and abs(value) >= 1_000)


def _watched(
    context: Mapping[str, CleanPart], rare_keys: Iterable[str]
) -> Iterator[tuple[str, Scalar]]:
    """Every value under a rare key, with the name it is counted under."""
    for name in rare_keys:
        key, _, entry = name.partition(".")
        part = context.get(key)
        if isinstance(part, dict):
            for each, value in part.items():
                if entry in ("", each):
                    yield f"{key}.{each}", value
        elif part is not None and not entry:
            for value in part if isinstance(part, list) else [part]:
                yield name, value


def _batches(
    contexts: Contexts, privacy: PrivacyConfig, schema: "pa.Schema"
) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    rows = (
        (name, canonical_json(value), user)
        for user, context in contexts
        for name, value in _watched(context, privacy.rare_keys)
    )
    while some := list(islice(rows, BATCH_ROWS)):
        columns = [pa.array(column, pa.string()) for column in zip(*some, strict=True)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)
