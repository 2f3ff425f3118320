"""One labelled row, made safe: its context as the model reads it, its tip scrubbed, or refused.

Values of a context that too few users share are withheld in a second pass, once users are counted.
"""

import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from reactune.config.sections import PrivacyConfig
from reactune.errors import DataError, PrivacyError
from reactune.model.context import (
    CleanPart,
    LoggedContext,
    Scalar,
    break_special_tokens,
    clean_part,
    context_to_log,
    is_scalar,
    parse_context,
    scrub_parts,
    texts_of,
)
from reactune.model.prompt import (
    MAX_TOKEN_CHARS,
    Chat,
    assemble,
    input_of,
    instruction_of,
    prompt_of,
)
from reactune.pii.detectors import detect_patterns, is_foreign_row, is_foreign_tip
from reactune.pii.spans import PLACEHOLDER, refill, scrub
from reactune.records import Prompt, canonical_json, plain_words

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

INCOMPLETE = "incomplete"
UNREADABLE = "context cannot be read"
PERSONAL_KIND = "personal data in the kind"
UNFILLABLE = "personal data in the tip that its context does not hold"
FOREIGN = "a language that no model is configured for"
REPEATED = "a withheld value stands elsewhere in the row"

BATCH_ROWS = 10_000
MIN_RARE_NUMBER = 1_000  # smaller numbers occur everywhere, so finding one again means nothing


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


ContextOf = Callable[[str, LoggedContext], CleanContext]
Value = tuple[str, str]  # a key, such as user_settings.city, and one of its values as JSON
Contexts = Iterable[tuple[str, Mapping[str, CleanPart]]]  # user_key and context


def read_context(
    context_json: str | None, allowed: Collection[str]
) -> tuple[LoggedContext | None, bool]:
    """The logged context without keys that are not allowed, and whether it lost any.

    None for a context that cannot be read, which refuses the row.
    """
    try:
        logged = parse_context(context_json)
    except DataError:
        return None, False
    kept = {key: part for key, part in logged.parts.items() if key in allowed}
    if len(kept) == len(logged.parts):
        return logged, False
    text = context_to_log(kept) if logged.is_assembled else canonical_json(kept)
    return replace(logged, text=text, parts=kept), True


def detectable_texts(
    row: Mapping[str, Any], logged: LoggedContext | None, keys: Sequence[str]
) -> Iterator[str]:
    """The texts that detectors will be asked about: of the tip, and of a readable context."""
    if row["tip_content"]:
        yield row["tip_content"]
    for key in keys if logged else ():
        part = logged.parts.get(key) if logged else None
        if isinstance(part, list):
            part = [item for item in part if isinstance(item, str)]
        if isinstance(part, dict):
            part = {name: value for name, value in part.items() if is_scalar(value)}
        if isinstance(part, str | list | dict):
            yield from (text.label + text.value for text in texts_of(key, part))


def clean_row(
    row: Mapping[str, Any],
    logged: LoggedContext | None,
    *,
    context_of: ContextOf,
    chat: Chat,
    languages: Sequence[str],
) -> dict[str, Any]:
    """The row with its prompt and its scrubbed tip.

    Raises:
        UnsafeRowError: it cannot be made safe, or is in a language no model is configured for.
    """
    if any(row[name] in (None, "") for name in ("tip_id", "user_key", "kind", "created_at")):
        raise UnsafeRowError(INCOMPLETE)
    if row["tip_content"] is None or row["context_json"] is None:
        raise UnsafeRowError(INCOMPLETE)
    if scrub(row["kind"], placeholders={}, detect=detect_patterns) != row["kind"]:
        raise UnsafeRowError(PERSONAL_KIND)
    if logged is None:
        raise UnsafeRowError(UNREADABLE)
    context = context_of(row["kind"], logged)
    scrubbed_tip = _scrubbed_tip(chat, row["tip_content"], context)
    tip = row["tip_content"]
    whole = (f"{context.input}\n{tip}", f"{context.input}\n{scrubbed_tip}")
    # Before what it holds: in a foreign text, words are taken for names. A tip may be in another
    # language than its context.
    if languages and (
        is_foreign_row(*whole, languages=languages) or is_foreign_tip(tip, languages=languages)
    ):
        raise UnsafeRowError(FOREIGN)
    return {**row, **_model_columns(context), "tip": _fillable(scrubbed_tip, context)}


def clean_context(chat: Chat, kind: str, logged: LoggedContext) -> CleanContext:
    """The logged context as the model reads it, safe under the settings of today.

    A context that was logged under looser settings, or not by `assemble`, is assembled again.

    Raises:
        UnsafeRowError: a value in it has no place in a context.
    """
    try:
        prompt = _safe_prompt(chat, kind, logged)
    except (DataError, RecursionError) as error:
        raise UnsafeRowError(UNREADABLE) from error
    return CleanContext(
        context_json=prompt.context_json,
        instruction=instruction_of(chat, kind),
        input=input_of(prompt.context, chat.settings),
        prompt=prompt.text,
        placeholders=prompt.placeholders,
    )


def clean_tip(chat: Chat, tip: str, context: CleanContext) -> str:
    """The tip with the placeholders of its context in place of personal data.

    Raises:
        UnsafeRowError: it is empty, or holds personal data that its context does not: a model that
            learned it would write placeholders that cannot be filled in.
    """
    return _fillable(_scrubbed_tip(chat, tip, context), context)


def _scrubbed_tip(chat: Chat, tip: str, context: CleanContext) -> str:
    plain = break_special_tokens(unicodedata.normalize("NFC", tip), chat.marks)
    shown = _placeholders_in(context)
    # The values of placeholders in a logged context are not known any more.
    placeholders = {**dict.fromkeys(shown, ""), **context.placeholders}
    return scrub(plain, placeholders=placeholders, detect=chat.detect).strip()


def _fillable(scrubbed: str, context: CleanContext) -> str:
    """The scrubbed tip, if every placeholder in it is one of its context."""
    if not scrubbed:
        raise UnsafeRowError(INCOMPLETE)
    if refill(scrubbed, dict.fromkeys(_placeholders_in(context), "it")) is None:
        raise UnsafeRowError(UNFILLABLE)
    return scrubbed


def _placeholders_in(context: CleanContext) -> set[str]:
    return {match.group() for match in PLACEHOLDER.finditer(context.input)}


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
    watched = _watched_batches(contexts, privacy, schema)
    connection.register("watched", pa.RecordBatchReader.from_batches(schema, watched))
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


def without_rare(
    row: Mapping[str, Any],
    kept: Mapping[str, CleanPart],
    lost: Iterable[str],
    *,
    context_of: ContextOf,
    chat: Chat,
) -> dict[str, Any]:
    """The clean row with what `withhold` kept of its context; `lost` are the values withheld.

    Raises:
        UnsafeRowError: the tip or the rest of the context holds one of them again.
    """
    shorter = context_of(row["kind"], parse_context(context_to_log(kept)))
    if any(_holds(f"{shorter.input}\n{row['tip']}", text) for text in lost):
        raise UnsafeRowError(REPEATED)
    return {**row, **_model_columns(shorter), "tip": clean_tip(chat, row["tip"], shorter)}


def _model_columns(context: CleanContext) -> dict[str, str]:
    return {
        "context_json": context.context_json,
        "instruction": context.instruction,
        "input": context.input,
        "prompt": context.prompt,
    }


def _safe_prompt(chat: Chat, kind: str, logged: LoggedContext) -> Prompt:
    if not logged.is_assembled or not _is_safe(chat, logged.parts):
        return assemble(chat, kind, logged.parts)
    prompt = prompt_of(chat, kind, logged)
    budget = chat.settings.max_context_tokens
    if len(prompt.token_ids) <= budget:
        return prompt
    text = input_of(logged.parts, chat.settings)
    tokens = chat.tokenizer.encode(text, add_special_tokens=False).ids
    return prompt if len(tokens) <= budget else assemble(chat, kind, logged.parts)


def _is_safe(chat: Chat, context: Mapping[str, Any]) -> bool:
    if not context.keys() <= set(chat.settings.context_keys):
        return False
    max_chars = chat.settings.max_context_tokens * MAX_TOKEN_CHARS
    plain = {
        key: clean_part(part, key=key, marks=chat.marks, max_chars=max_chars)
        for key, part in context.items()
    }
    return plain == context and scrub_parts(plain, placeholders={}, detect=chat.detect) == context


def _holds(text: str, value: str) -> bool:
    """Whether the text contains the words of the value, in a row."""
    words = plain_words(value)
    return bool(words) and f" {words} " in f" {plain_words(text)} "


def _is_telling(value: Scalar) -> bool:
    """Whether finding the value elsewhere in the row means that it is the same fact."""
    if isinstance(value, bool):
        return False
    return isinstance(value, str) or abs(value) >= MIN_RARE_NUMBER


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


def _watched_batches(
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
