"""Which part an example falls into, and the proof that no part knows what is in another.

Rules of which examples there are at all are `rules.py`'s.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reactune.config import DatasetConfig
from reactune.data.workspace import one_row, quoted
from reactune.errors import DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
ORDER = f"list_position({list(PARTS)}, part)"  # of a part, in SQL


def part_of(user_key: str, settings: DatasetConfig) -> Part:
    """The part that a user's examples fall into; it stays as long as seed and shares stay."""
    digest = hashlib.sha256(f"{settings.seed}:{user_key}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    train, validation, _ = settings.split
    if place < train:
        return "train"
    return "validation" if place < train + validation else "test"


def part_by_time(settings: DatasetConfig) -> str:
    """SQL of `examples` with the part that their age gives them.

    The oldest are train, the newest test; what was made at one moment stands in one part.
    """
    train, validation, _ = settings.split
    return f"""
        SELECT * EXCLUDE (part, age, number), CASE
            WHEN age <= {train!r} * number THEN 'train'
            WHEN age <= {train + validation!r} * number THEN 'validation'
            ELSE 'test' END AS part
        FROM (SELECT *, rank() OVER (ORDER BY created_at) AS age, count(*) OVER () AS number
              FROM examples)"""


def without_leaks() -> str:
    """SQL of `examples` without texts, in whatever case, that stand in an earlier part."""
    return f"""
        SELECT * FROM examples QUALIFY {ORDER} = min({ORDER}) OVER (PARTITION BY folded)"""


def require_no_leaks(
    connection: "DuckDBPyConnection", file: Path, settings: DatasetConfig
) -> Mapping[str, int]:
    """What of one part also stands in another, in a file of examples as it was written.

    Texts, and users where the split is by user; where it is by time, moments that come before
    the last one of an earlier part, and users are only counted.

    Raises:
        DataError: something does that must not.
    """
    connection.create_function("folded_text", folded_text, ["VARCHAR"], "VARCHAR")
    users, texts, moments = one_row(
        connection,
        f"""
        WITH held AS (
            SELECT user_key, folded_text(tip) AS text, created_at, {ORDER} AS part
            FROM {quoted(file)}),
        spans AS (SELECT part, min(created_at) AS first, max(created_at) AS last
                  FROM held GROUP BY part)
        SELECT
            (SELECT count(*) FROM (
                SELECT 1 FROM held GROUP BY user_key HAVING min(part) < max(part))),
            (SELECT count(*) FROM (
                SELECT 1 FROM held GROUP BY text HAVING min(part) < max(part))),
            (SELECT count(*) FROM spans a JOIN spans b
             ON a.part < b.part AND b.first <= a.last)
        """,
    )
    connection.remove_function("folded_text")
    by_time = settings.split_by == "time"
    found = {"users": users, "texts": texts, **({"moments": moments} if by_time else {})}
    forbidden = ("texts", "moments") if by_time else ("users", "texts")
    if any(found[name] for name in forbidden):
        raise DataError(
            f"the dataset is not used: of its parts, more than one holds "
            f"{', '.join(f'{found[name]} {name}' for name in forbidden)}; this is a fault of "
            "reactune, please report it"
        )
    return found


def folded_text(tip: str) -> str:
    """The tip as it is compared between parts: white space and case do not matter."""
    return plain_text(tip).casefold()


def plain_text(tip: str) -> str:
    """The tip as it is compared: runs of white space count as one space."""
    return " ".join(tip.split())
