"""What tests of datasets share: settings that let few rows pass, and words for tips."""

from datetime import UTC, datetime

from reactune.config.sections import DatasetConfig

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
