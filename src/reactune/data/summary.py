"""What a dataset holds and why it waits, in numbers: a value for manifest, card and terminal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reactune.config import DatasetConfig
from reactune.data.rules import PARTS, Example, Part
from reactune.records import Counts


@dataclass(frozen=True)
class Labels:
    """Positives and negatives."""

    positives: int
    negatives: int


@dataclass(frozen=True)
class DatasetResult:
    """What a dataset holds, what it was made from, and why it waits, if it does."""

    counts: Counts
    before: Labels
    """Labels that came in."""
    after: Labels
    """Labels that contradictions, duplicates and caps leave; the thresholds are about these."""
    parts: Mapping[Part, Labels]
    """Labels of each part, without texts that stand in an earlier part."""
    kinds: Mapping[str, Labels]
    """Labels of each kind, over all parts."""
    users: Mapping[Part, int]
    """Users of each part."""
    pairs: Mapping[Part, int]
    """DPO pairs of each part."""
    new: int
    """Examples that the last trained dataset did not hold."""
    fingerprint: str
    """SHA-256 of all examples and the settings of the dataset."""
    waiting: str | None
    """What is missing, such as `waiting: 312 of 500 positives`; None: go on and train."""
    files: tuple[str, ...] = ()
    """What was written, relative to the folder."""


def labels_of(examples: Iterable[Example]) -> Labels:
    """Count the labels."""
    labels = [example.label for example in examples]
    return Labels(positives=sum(labels), negatives=len(labels) - sum(labels))


def reason_to_wait(
    after: Labels,
    parts: Mapping[Part, Labels],
    settings: DatasetConfig,
    *,
    new: int,
    is_first: bool,
) -> str | None:
    """What a training has to wait for, or None.

    Every run needs `min_positives` and `min_negatives`, and both labels in every part; a later
    run also needs `min_new` examples that the last trained dataset did not hold.
    """
    short = []
    if after.positives < settings.min_positives:
        short.append(f"{after.positives:,} of {settings.min_positives:,} positives")
    if after.negatives < settings.min_negatives:
        short.append(f"{after.negatives:,} of {settings.min_negatives:,} negatives")
    if not is_first and new < settings.min_new:
        short.append(f"{new:,} of {settings.min_new:,} new examples")
    if not short:
        empty = [part for part in PARTS if not (parts[part].positives and parts[part].negatives)]
        short = [f"both labels in {part}, which takes more users" for part in empty]
    return f"waiting: {', '.join(short)}" if short else None
