"""What tests of datasets share: settings that let few rows pass, words for tips, an example."""

from datetime import UTC, datetime, timedelta

from reactune.config.sections import DatasetConfig
from reactune.records import Example

START = datetime(2026, 3, 1, tzinfo=UTC)
SMALL = DatasetConfig(min_positives=1, min_negatives=1, min_new=0)
WORDS = [
    "walk",
    "drink",
    "call",
    "rest",
    "read",
    "write",
    "tidy",
    "plan",
    "stretch",
    "breathe",
    "sing",
    "cook",
]


def example(tip_id, tip="Take a walk.", *, label=True, user="u1", context="c1", kind="focus", at=0):
    return Example(
        tip_id=tip_id,
        user_key=user,
        kind=kind,
        context_json=context,
        instruction=f"Write a {kind} tip.",
        input=f"Context {context}",
        prompt=f"<|user|>{kind} {context}<|assistant|>",
        tip=tip,
        label=label,
        dwell_ms=30_000 if label else 2_000,
        created_at=START + timedelta(minutes=at),
    )
