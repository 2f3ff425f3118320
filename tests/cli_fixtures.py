"""Rows that the command line may ingest, what it stored, and a user who may do nothing."""

import json
import os
import sqlite3
from contextlib import closing, contextmanager

KEY = "0123456789abcdef0123456789abcdef"


def row(number, **other):
    return {
        "tip_id": f"tip-{number}",
        "user_id": f"user-{number}",
        "kind": "focus",
        "context_json": '{"time_of_day": "morning"}',
        "tip_content": f"Write {number} lines of the report.",
        "created_at": "2026-11-01T08:00:00+00:00",
        "shown_at": "2026-11-01T08:00:00+00:00",
        "reaction": "done",
        "dwell_ms": 20_000,
        **other,
    }


def write_rows(file, rows):
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return file


def stored(folder, query):
    with closing(sqlite3.connect(folder / "reactune.db")) as connection:
        return connection.execute(query).fetchall()


@contextmanager
def nobody():
    """As a user without rights, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)
