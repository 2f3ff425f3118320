"""What people did with each arm's tips: one row per unit, summed in SQL.

What the sums say about the challenger is for `compare.py`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from reactune.config import LabelConfig
from reactune.store import tip_scores

Booleans = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Outcomes:
    """Units of one rollout in the order in which they were first shown a tip.

    All arrays have one entry per unit. A unit belongs to the arm of its first tip, and all
    its tips count there, whoever wrote them (intention to treat): answers of the champion for
    a challenger that failed are `fallbacks` of the challenger's arm. `share` is the chance that
    this unit had of the challenger; `both_arms` marks units that later met the other arm.
    """

    unit_key: NDArray[np.str_]
    challenger: Booleans
    share: NDArray[np.float64]
    tips: Counts
    positives: Counts
    quick_dismissals: Counts
    snoozes: Counts
    fallbacks: Counts
    both_arms: Booleans
    first_shown_at: NDArray[np.datetime64]


def read_outcomes(
    connection: sa.Connection,
    rollout_id: str,
    *,
    labels: LabelConfig,
    window_seconds: int,
    now: datetime,
) -> Outcomes:
    """The rollout's units, over all shown tips whose window has closed by `now`.

    A tip that was never shown does not count; one without a reaction counts as no positive.
    """
    closed = now - timedelta(seconds=window_seconds)
    rows = connection.execute(_sums_by_unit(rollout_id, labels, closed)).all()
    # Sorted here, because databases differ in how they order text.
    rows = sorted(rows, key=lambda row: (row.first_shown_at, row.unit_key))
    columns = list(zip(*rows, strict=True)) or [()] * 10
    counts = [np.array(column, np.int64) for column in columns[3:8]]
    shown_at = [at.replace(tzinfo=None) for at in columns[9]]
    return Outcomes(
        unit_key=np.array(columns[0], np.str_),
        challenger=np.array(columns[1], np.bool_),
        # Rounded, so that 1 - 0.95 and 0.05 are one share.
        share=np.array([round(share, 9) for share in columns[2]], np.float64),
        tips=counts[0],
        positives=counts[1],
        quick_dismissals=counts[2],
        snoozes=counts[3],
        fallbacks=counts[4],
        both_arms=np.array(columns[8], np.bool_),
        first_shown_at=np.array(shown_at, "datetime64[us]"),
    )


def _sums_by_unit(
    rollout_id: str, labels: LabelConfig, closed: datetime
) -> sa.Select[*tuple[object, ...]]:
    of = _closed_tips(rollout_id, labels, closed).c
    return sa.select(
        of.unit_key,
        sa.func.max(sa.case((of.nth == 1, of.challenger))),
        sa.func.max(sa.case((of.nth == 1, of.share))),
        sa.func.count(),
        sa.func.sum(of.positive),
        sa.func.sum(of.quick),
        sa.func.sum(of.snooze),
        sa.func.sum(of.fallback),
        sa.case((sa.func.min(of.challenger) != sa.func.max(of.challenger), 1), else_=0),
        sa.func.min(of.shown_at).label("first_shown_at"),
    ).group_by(of.unit_key)


def _closed_tips(rollout_id: str, labels: LabelConfig, closed: datetime) -> sa.Subquery:
    """Each tip that counts, as zeros and ones, numbered within its unit."""
    row = tip_scores.c
    nth = sa.func.row_number().over(partition_by=row.unit_key, order_by=(row.shown_at, row.tip_id))
    is_positive = sa.and_(
        row.source == labels.source,
        row.reaction == "done",
        row.dwell_ms.between(*labels.positive_dwell_ms),
    )
    is_quick = sa.and_(row.reaction == "dismiss", row.dwell_ms < labels.negative_dwell_below_ms)
    on_challenger = row.arm == "challenger"
    return (
        sa.select(
            row.unit_key,
            row.shown_at,
            nth.label("nth"),
            _as_number(on_challenger).label("challenger"),
            sa.case((on_challenger, row.propensity), else_=1 - row.propensity).label("share"),
            _as_number(is_positive).label("positive"),
            _as_number(is_quick).label("quick"),
            _as_number(row.reaction == "snooze").label("snooze"),
            _as_number(row.fallback.is_not(None)).label("fallback"),
        )
        .where(
            row.rollout_id == rollout_id,
            row.unit_key.is_not(None),
            row.arm.is_not(None),
            row.propensity.is_not(None),
            row.shown_at <= closed,
        )
        .subquery("tips")
    )


def _as_number(condition: sa.ColumnElement[bool]) -> sa.Case[int]:
    return sa.case((condition, 1), else_=0)
