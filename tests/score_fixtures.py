"""Rows of `tip_scores`, and what they are labelled by the rule in plain Python."""

import random
from datetime import UTC, datetime, timedelta

from reactune.privacy.hashing import HashingKey, user_key
from reactune.store.database import create_store, writing
from reactune.store.queries import upsert_scores

KEY = HashingKey(b"a secret of more than 32 characters")


START = datetime(2026, 3, 1, 23, 59, 59, 123456, tzinfo=UTC)


DWELLS = (None, 0, 4_999, 5_000, 14_999, 15_000, 60_000, 120_000, 120_001)


def row(tip_id, *, user="ann", reaction="done", dwell_ms=30_000, **other):
    at = other.pop("created_at", START)
    return {
        "tip_id": tip_id,
        "user_key": user_key(KEY, user),
        "key_id": KEY.key_id,
        "kind": "focus",
        "source": "llm",
        "context_json": '{"time_of_day":"morning"}',
        "tip_content": f"Tip {tip_id}",
        "created_at": at,
        "shown_at": other.pop("shown_at", at),
        "reaction": reaction,
        "dwell_ms": dwell_ms,
        "training_allowed": True,
        **other,
    }


def varied_rows(count=3_000, seed=7):
    rng = random.Random(seed)
    return [
        row(
            f"tip-{number:05}",
            user=f"user-{rng.randrange(500)}",
            reaction=rng.choice(["done", "dismiss", "snooze", None]),
            dwell_ms=rng.choice(DWELLS),
            source=rng.choice(["llm", "llm", "llm", "rule"]),
            created_at=START + timedelta(minutes=rng.randrange(20_000)),
            shown_at=rng.choice([START, START, START, None]),
            training_allowed=rng.random() > 0.03,
            cut=number % 17 == 0,
        )
        for number in range(count)
    ]


def expected_labels(rows):
    """The rule of the architecture page, row by row in plain Python."""
    newest = {}
    for each in sorted(rows, key=lambda r: (r["created_at"], not r["training_allowed"])):
        newest[each["user_key"]] = each["training_allowed"]
    labels = {}
    for each in rows:
        if not (each["source"] == "llm" and each["training_allowed"] and each["shown_at"]):
            continue
        if each["cut"]:
            continue
        if not newest[each["user_key"]] or each["dwell_ms"] is None:
            continue
        if each["reaction"] == "done" and 15_000 <= each["dwell_ms"] <= 120_000:
            labels[each["tip_id"]] = True
        if each["reaction"] == "dismiss" and each["dwell_ms"] < 5_000:
            labels[each["tip_id"]] = False
    return labels


def fill(url, rows):
    engine = create_store(url)
    with writing(engine) as connection:
        upsert_scores(connection, rows)
    engine.dispose()


def labels_in(rows):
    labels = {each["tip_id"]: each["label"] for each in rows}
    assert len(labels) == len(rows)
    return labels
