"""Rows of people leave the database; what a running trial must count stays under no name.

Whose rows, and what is written down about it, is left to `journal.py`.
"""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import sqlalchemy as sa

from reactune.database import inserting
from reactune.people import chunks
from reactune.prints import print_of, prints_of, texts_in
from reactune.privacy import Key
from reactune.schema import erased_prints, metadata, tip_scores
from reactune.store import current_rollout


@dataclass(frozen=True)
class Left:
    """What a person's rows said, which is to be found nowhere any more."""

    tip_ids: set[str] = field(default_factory=set, repr=False)
    texts: set[str] = field(default_factory=set, repr=False)

    def add(self, tip_id: str, tip: str, context_json: str) -> None:
        """One row."""
        self.tip_ids.add(tip_id)
        self.texts.update((tip_id, tip, *texts_in(context_json)))


def rows_of(connection: sa.Connection, marks: Mapping[str, str]) -> dict[str, Left]:
    """What the rows of these people say, by mark; `marks` maps each `user_key` to one."""
    row = tip_scores.c
    left: dict[str, Left] = defaultdict(Left)
    query = sa.select(row.user_key, row.tip_id, row.tip_content, row.context_json)
    for some in chunks(marks):
        for user_key, *said in connection.execute(query.where(row.user_key.in_(some))):
            left[marks[user_key]].add(*said)
    return left


def add_prints(connection: sa.Connection, key: Key, left: Mapping[str, Left]) -> None:
    """Keep fingerprints of what goes, by the mark of the person, so that a search can look for it.

    They are made with the key, and tell nobody without it anything.
    """
    prints = {
        (mark, each)
        for mark, theirs in left.items()
        for each in (
            *(print_of(key, tip_id) for tip_id in theirs.tip_ids),
            *(each for text in theirs.texts for each in prints_of(key, text)),
        )
    }
    if prints:
        insert = inserting(connection, erased_prints).on_conflict_do_nothing()
        rows = [{"mark": mark, "print": each} for mark, each in sorted(prints)]
        connection.execute(insert, rows)


def remove_rows(connection: sa.Connection, column: str, values: Iterable[str]) -> dict[str, int]:
    """Take rows out of every table that has this column; how many were removed and blanked."""
    counts: dict[str, int] = defaultdict(int)
    for some in chunks(values):
        for table in metadata.tables.values():
            if column in table.c:
                _remove(connection, table, table.c[column].in_(some), counts)
    return {name: counts[name] for name in ("rows_removed", "rows_blanked")}


def remove_expired(connection: sa.Connection, older_than: datetime | None) -> dict[str, int]:
    """Take rows of people from before a moment out of the database."""
    counts: dict[str, int] = defaultdict(int)
    for table in metadata.tables.values():
        if older_than and {"user_key", "created_at"} <= set(table.c.keys()):
            _remove(connection, table, table.c.created_at < older_than, counts)
    return {name: counts[name] for name in ("rows_removed", "rows_blanked")}


def _remove(
    connection: sa.Connection,
    table: sa.Table,
    condition: sa.ColumnElement[bool],
    counts: dict[str, int],
) -> None:
    if table is tip_scores:
        counts["rows_blanked"] += _blank_exposures(connection, condition)
        condition = condition & (table.c.key_id != "")
    counts["rows_removed"] += connection.execute(table.delete().where(condition)).rowcount


def _blank_exposures(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> int:
    """Leave arm, time and reaction of the running trial's exposures, under names of no meaning.

    Without them the trial would forget whom a challenger made leave. They go when it ends.
    """
    row, live = tip_scores.c, current_rollout(connection)
    if live is None or live.challenger is None:
        return 0
    counted = (row.rollout_id == live.rollout_id) & row.shown_at.is_not(None)
    chosen = condition & counted & row.arm.is_not(None) & (row.key_id != "")
    units: dict[str | None, str] = defaultdict(lambda: secrets.token_hex(16))
    found = connection.execute(sa.select(row.tip_id, row.unit_key).where(chosen)).all()
    changes = [
        {
            "known": tip_id,
            "new": secrets.token_hex(16),
            "person": secrets.token_hex(32),
            "unit": units[unit],
        }
        for tip_id, unit in found
    ]
    blank: dict[str, object] = {
        "tip_id": sa.bindparam("new"),
        "user_key": sa.bindparam("person"),
        "unit_key": sa.bindparam("unit"),
        **dict.fromkeys(("key_id", "kind", "tip_content"), ""),
        **dict.fromkeys(("sampling_json", "reacted_at", "answer_ms")),
        "context_json": "{}",
        "created_at": row.shown_at,
        "training_allowed": False,
    }
    if changes:
        update = tip_scores.update().where(row.tip_id == sa.bindparam("known")).values(blank)
        connection.execute(update, changes)
    return len(changes)
