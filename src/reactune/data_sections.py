"""The sections of the settings about data: where reactions are read, what they say, what is kept.

The other sections are `sections.py`'s.
"""

from typing import Literal

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


class DataConfig(Section):
    """Who de-identifies labelled rows, and how much memory that may take; results are the same."""

    engine: Literal["local", "processes", "ray"] = "local"
    """`local`: this process. `processes`: a pool of `workers` processes. `ray`: Ray Data on the
    cluster that the environment variable RAY_ADDRESS names, without it one on this machine."""
    workers: int = Field(0, ge=0)
    """Batches worked on at a time by `processes` and `ray`; 0: one for each core."""
    memory_gb: float = Field(1.0, ge=0.25)
    """Memory that sorting and grouping may take; what is over lies on disk meanwhile."""


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
    max_per_text: int = Field(1, ge=1)
    """Examples of one text, kind and label, in as many contexts; the oldest are kept."""
    max_imbalance: float = Field(10.0, ge=1)
    """How many times as often one label of a kind may stand as the other; the newest are kept."""
    near_duplicate: float = Field(0.9, ge=0.05, le=1)
    """Tips of one kind and label whose word 3-shingles overlap by this Jaccard share are one."""
    split_by: Literal["user", "time"] = "user"
    """`user`: no user is in two parts. `time`: what validation and test hold is younger than all
    of train, and users may come back."""
    split: tuple[Share, Share, Share] = (0.8, 0.1, 0.1)
    """Shares of users, or of examples by age, in train, validation and test."""
    seed: int = 7
    """Seeds the split by user; a user stays in one part as long as the seed stays."""
    burst_seconds: int = Field(60, ge=1)
    """More than `burst_reactions` of a user within so short a time are no person's."""
    burst_reactions: int = Field(20, ge=1)
    """Tips that a person can have read in `burst_seconds`: 12 words take 3 seconds at 238 words a
    minute (Brysbaert, Journal of Memory and Language 109, 2019)."""
    constant_dwell_reactions: int = Field(10, ge=3)
    """Reactions with one label that a user must have given before their dwell can be constant."""
    constant_dwell_spread: float = Field(1.05, ge=1)
    """A dwell is constant if a user's ninth decile is at most this many times the first."""
    max_share_of_kind: Share = 0.2
    """A user who gave more of a kind's reactions steers it, where ten others gave some."""
