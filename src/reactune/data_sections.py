"""The sections of the settings about data: where reactions are read, what they say, what is kept.

The other sections are `sections.py`'s.
"""

from pydantic import Field

from reactune.sections import Section, Share


class SourceConfig(Section):
    """Where reactions are read from for training; empty means the operational database."""

    url: str = ""
    """Another place that holds the table: `sqlite:///FILE`, `postgresql://...`, `duckdb://FILE`, a
    folder of Parquet files (`parquet://FOLDER`, `s3://BUCKET/FOLDER`), or the URL of any other
    Ibis back-end; empty: `[store] url`."""
    table: str = "tip_scores"
    """Name of the table there, with its schema where it needs one: `app.tip_scores`."""
    columns: dict[str, str] = Field({})
    """Our column name = the name it has there, for columns named otherwise."""
    where: str = ""
    """A condition in that engine's SQL which a row must meet to count, such as `app = 'coach'`; it
    names columns as they are called there. Who opted out stays out whatever it says."""


class LabelConfig(Section):
    """Which reactions are evidence; everything else is none."""

    source: str = "llm"
    """Only tips from this source count."""
    positive_dwell_ms: tuple[int, int] = (15_000, 120_000)
    """`done` within these dwell times, both ends included, is a positive."""
    negative_dwell_below_ms: int = Field(5_000, ge=1)
    """`dismiss` under this dwell time is a negative."""


class DatasetConfig(Section):
    """From labels to training examples."""

    min_positives: int = Field(500, ge=1)
    """A first run waits for this many positives, after duplicates and caps."""
    min_negatives: int = Field(500, ge=1)
    """A first run waits for this many negatives, after duplicates and caps."""
    min_new: int = Field(200, ge=0)
    """A later run waits for this many examples that the last trained dataset did not hold."""
    max_per_user: int = Field(50, ge=1)
    """Examples that one user may contribute; the newest are kept."""
    near_duplicate: Share = 0.9
    """Tips of one kind and label whose word 3-shingles overlap by this Jaccard share are one."""
    split: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    """Shares of users in train, validation and test."""
    seed: int = 7
    """Seeds the split; a user stays in one part as long as the seed stays."""
