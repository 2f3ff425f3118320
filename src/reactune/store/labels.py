"""Which reactions are evidence: one rule, as plain Python and as SQL over `tip_scores`."""

from dataclasses import dataclass

import sqlalchemy as sa

from reactune.config.sections import LabelConfig
from reactune.store.schema import tip_scores

POSITIVE_REACTIONS = frozenset({"done"})
NEGATIVE_REACTIONS = frozenset({"dismiss"})


@dataclass(frozen=True)
class Evidence:
    """Certain reactions after a dwell time within two bounds in whole milliseconds, both included.

    A reaction without a dwell time is no evidence.
    """

    reactions: frozenset[str]
    min_dwell_ms: int
    max_dwell_ms: int

    def includes(self, reaction: str | None, dwell_ms: float | None) -> bool:
        """Whether this reaction after this dwell time is such evidence."""
        if reaction not in self.reactions or dwell_ms is None:
            return False
        return self.min_dwell_ms <= dwell_ms <= self.max_dwell_ms

    def condition(self) -> sa.ColumnElement[bool]:
        """The same, as a condition on a row of `tip_scores`."""
        row = tip_scores.c
        return sa.and_(
            row.reaction.in_(sorted(self.reactions)),
            row.dwell_ms.between(self.min_dwell_ms, self.max_dwell_ms),
        )


@dataclass(frozen=True)
class LabelRule:
    """What makes a tip a positive or a negative; only tips from `source` are either."""

    source: str
    positive: Evidence
    negative: Evidence

    def is_positive(self, source: str, reaction: str | None, dwell_ms: float | None) -> bool:
        """Whether a tip is a positive."""
        return source == self.source and self.positive.includes(reaction, dwell_ms)

    def is_negative(self, source: str, reaction: str | None, dwell_ms: float | None) -> bool:
        """Whether a tip is a negative."""
        return source == self.source and self.negative.includes(reaction, dwell_ms)

    def positive_condition(self) -> sa.ColumnElement[bool]:
        """`is_positive` as a condition on a row of `tip_scores`."""
        return sa.and_(tip_scores.c.source == self.source, self.positive.condition())

    def negative_condition(self) -> sa.ColumnElement[bool]:
        """`is_negative` as a condition on a row of `tip_scores`."""
        return sa.and_(tip_scores.c.source == self.source, self.negative.condition())


def label_rule(labels: LabelConfig) -> LabelRule:
    """The rule that `[labels]` asks for."""
    return LabelRule(
        source=labels.source,
        positive=Evidence(POSITIVE_REACTIONS, *labels.positive_dwell_ms),
        negative=Evidence(NEGATIVE_REACTIONS, 0, labels.negative_dwell_below_ms - 1),
    )
