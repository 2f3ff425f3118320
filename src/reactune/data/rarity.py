"""Context values that too few people share: found by counting users, and taken out of contexts.

Which keys are watched, and how many users are enough, are settings.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from reactune.config import PrivacyConfig
from reactune.context import CleanPart, Scalar
from reactune.records import canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

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
