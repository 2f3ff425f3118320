"""Reports that wait on disk until the service has them: in order, and whatever ends in between.

A report that was confirmed is never sent again; one whose confirmation was lost is, under the same
id and before all later ones, and the service takes the same report twice as once.
"""

import fcntl
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEEP = 10_000  # ids of reports sent that are remembered, so that none is sent under the same id


@dataclass(frozen=True)
class Report:
    """One request that must arrive once."""

    report_id: str
    path: str
    body: Mapping[str, Any]


class Outbox:
    """A file with reports, shared by the processes of an app; one of them sends at a time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as store:
            store.execute(
                "CREATE TABLE IF NOT EXISTS reports (place INTEGER PRIMARY KEY AUTOINCREMENT,"
                " report_id TEXT NOT NULL UNIQUE, path TEXT NOT NULL, body TEXT NOT NULL,"
                " answer INTEGER)"
            )

    def add(self, report: Report) -> bool:
        """Keep a report; it is on disk when this returns. False if its id was there already."""
        row = (report.report_id, report.path, json.dumps(dict(report.body)))
        with self._open() as store:
            added = store.execute(
                "INSERT INTO reports (report_id, path, body) VALUES (?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                row,
            )
            return added.rowcount == 1

    def waiting(self, most: int = 100) -> list[Report]:
        """The oldest reports that have no answer yet, in the order in which they came."""
        with self._open() as store:
            rows = store.execute(
                "SELECT report_id, path, body FROM reports WHERE answer IS NULL"
                " ORDER BY place LIMIT ?",
                (most,),
            ).fetchall()
        return [Report(name, path, json.loads(body)) for name, path, body in rows]

    def settle(self, report: Report, answer: int) -> None:
        """Note the status that the service answered with: this report is not sent again."""
        with self._open() as store:
            store.execute(
                "UPDATE reports SET answer = ?, body = '{}' WHERE report_id = ?",
                (answer, report.report_id),
            )
            store.execute(
                "DELETE FROM reports WHERE answer IS NOT NULL"
                " AND place <= (SELECT max(place) FROM reports) - ?",
                (KEEP,),
            )

    def refused(self) -> dict[str, int]:
        """Reports that the service would not have, with its status."""
        with self._open() as store:
            return dict(
                store.execute(
                    "SELECT report_id, answer FROM reports WHERE answer >= 400"
                ).fetchall()
            )

    @contextmanager
    def sending(self) -> Iterator[bool]:
        """Whether it is us who may send now; the right ends with the process."""
        with self._file.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        store = sqlite3.connect(self._file, timeout=30, isolation_level=None)
        try:
            store.execute("PRAGMA journal_mode = WAL")
            store.execute("PRAGMA synchronous = FULL")
            store.execute("BEGIN IMMEDIATE")
            yield store
            store.execute("COMMIT")
        finally:
            store.close()
