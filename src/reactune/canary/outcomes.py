"""The outcomes of a rollout: one row per unit, counted in SQL over all tips that were shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores

Booleans = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class KindCounts:
    """Tips of one kind, and the positives among them, for each unit that was shown any."""

    unit: NDArray[np.int64]
    tips: Counts
    positives: Counts


@dataclass(frozen=True)
class Outcomes:
    """Units of one rollout in the order in which they were first shown a tip.

    All arrays have one entry per unit. A unit belongs to the arm of its first tip, and all its
    tips count there, whichever model wrote them (intention to treat): answers of the champion
    for a challenger that failed are `fallbacks` of the challenger's arm, and `fell_back` marks
    units whose first tip was one. `share` is the unit's chance of the challenger; `both_arms`
    marks units that later met the other arm. `repeats` are tips with the same text as the arm's
    previous tip of that kind, to any user. `earlier_...` counts what the unit's user was shown
    before it, in the rollout or outside. `kinds` splits tips and positives.
    """

    unit_key: NDArray[np.str_]
    challenger: Booleans
    share: NDArray[np.float64]
    tips: Counts
    positives: Counts
    quick_dismissals: Counts
    snoozes: Counts
    slow: Counts
    repeats: Counts
    fallbacks: Counts
    fell_back: Booleans
    both_arms: Booleans
    earlier_tips: Counts
    earlier_positives: Counts
    first_shown_at: NDArray[np.datetime64]
    kinds: Mapping[str, KindCounts]


SUMS = (
    "tips", "positives", "quick_dismissals", "snoozes", "slow", "repeats", "fallbacks",
)  # fmt: skip


def read_outcomes(
    connection: sa.Connection,
    rollout_id: str,
    *,
    labels: LabelConfig,
    settings: CanaryConfig,
    now: datetime,
) -> Outcomes:
    """The rollout's units, over all shown tips whose window has closed by `now`.

    A tip that was never shown does not count; one without a reaction counts as no positive.
    """
    closed = now - timedelta(seconds=settings.window_seconds)
    tips = _closed_tips(rollout_id, labels, settings, closed)
    rows = connection.execute(_sums_by_unit(tips)).all()
    # Sorted here, because databases differ in how they order text.
    rows = sorted(rows, key=lambda row: (row.first_shown_at, row.unit_key))
    place = {row.unit_key: number for number, row in enumerate(rows)}
    before = connection.execute(_history(rollout_id, labels, closed)).all()
    positives, shown = (_column(rows, name, np.int64) for name in ("positives", "tips"))
    earlier_tips, earlier_positives = earlier_by_user(
        [row.user_key for row in rows],
        shown,
        positives,
        before={row.user_key: (row.tips, row.positives) for row in before},
    )
    shown_at = [row.first_shown_at.replace(tzinfo=None) for row in rows]
    by_kind = connection.execute(_sums_by_kind(tips)).all()
    return Outcomes(
        unit_key=_column(rows, "unit_key", np.str_),
        challenger=_column(rows, "challenger", np.bool_),
        # Rounded, so that 1 - 0.95 and 0.05 are one share.
        share=np.array([round(row.share, 9) for row in rows], np.float64),
        fell_back=_column(rows, "fell_back", np.bool_),
        both_arms=_column(rows, "both_arms", np.bool_),
        earlier_tips=earlier_tips,
        earlier_positives=earlier_positives,
        first_shown_at=np.array(shown_at, "datetime64[us]"),
        kinds=_kinds(by_kind, place),
        **{name: _column(rows, name, np.int64) for name in SUMS},
    )


def earlier_by_user(
    users: Sequence[str],
    tips: Counts,
    positives: Counts,
    *,
    before: Mapping[str, tuple[int, int]],
) -> tuple[Counts, Counts]:
    """Tips and positives of each unit's user in earlier units, and `before` the first of them."""
    so_far = {user: list(counts) for user, counts in before.items()}
    earlier = np.zeros((2, len(tips)), np.int64)
    for number, user in enumerate(users):
        counts = so_far.setdefault(user, [0, 0])
        earlier[:, number] = counts
        counts[0] += int(tips[number])
        counts[1] += int(positives[number])
    return earlier[0], earlier[1]


def _column(rows: Sequence[Any], name: str, kind: type[Any]) -> NDArray[Any]:
    return np.array([getattr(row, name) for row in rows], kind)


def _kinds(rows: Sequence[Any], place: Mapping[str, int]) -> dict[str, KindCounts]:
    counts: dict[str, list[tuple[int, int, int]]] = {}
    for row in rows:
        counts.setdefault(row.kind, []).append((place[row.unit_key], row.tips, row.positives))
    columns = {kind: np.array(sorted(counts[kind]), np.int64).T for kind in sorted(counts)}
    return {kind: KindCounts(*values) for kind, values in columns.items()}


def _sums_by_unit(tips: sa.Subquery) -> sa.Select[*tuple[Any, ...]]:
    of = tips.c
    return sa.select(
        of.unit_key,
        sa.func.max(of.user_key).label("user_key"),
        sa.func.max(sa.case((of.nth == 1, of.challenger))).label("challenger"),
        sa.func.max(sa.case((of.nth == 1, of.share))).label("share"),
        sa.func.max(sa.case((of.nth == 1, of.fallbacks))).label("fell_back"),
        sa.func.count().label("tips"),
        *[sa.func.sum(of[name]).label(name) for name in SUMS[1:]],
        sa.case((sa.func.min(of.challenger) != sa.func.max(of.challenger), 1), else_=0).label(
            "both_arms"
        ),
        sa.func.min(of.shown_at).label("first_shown_at"),
    ).group_by(of.unit_key)


def _sums_by_kind(tips: sa.Subquery) -> sa.Select[*tuple[Any, ...]]:
    of = tips.c
    counts = sa.func.count().label("tips"), sa.func.sum(of.positives).label("positives")
    # Exposures of users who were erased have no kind any more.
    query = sa.select(of.unit_key, of.kind, *counts).where(of.kind != "")
    return query.group_by(of.unit_key, of.kind)


def _closed_tips(
    rollout_id: str, labels: LabelConfig, settings: CanaryConfig, closed: datetime
) -> sa.Subquery:
    """Each tip whose window has closed, as zeros and ones, numbered within its unit."""
    row = tip_scores.c
    in_time = (row.shown_at, row.tip_id)
    text_before = sa.func.lag(row.tip_content).over(
        partition_by=(row.arm, row.kind), order_by=in_time
    )
    on_challenger = row.arm == "challenger"
    rule = label_rule(labels)
    marks = {
        "challenger": on_challenger,
        "positives": rule.positive_condition(),
        # From whatever source: a stored tip that annoys counts as well.
        "quick_dismissals": rule.negative.condition(),
        "snoozes": row.reaction == "snooze",
        "slow": row.answer_ms > settings.slow_ms,
        "repeats": sa.and_(row.tip_content == text_before, row.tip_content != ""),
        "fallbacks": row.fallback.is_not(None),
    }
    return (
        sa.select(
            row.unit_key,
            row.user_key,
            row.kind,
            row.shown_at,
            sa.func.row_number().over(partition_by=row.unit_key, order_by=in_time).label("nth"),
            sa.case((on_challenger, row.propensity), else_=1 - row.propensity).label("share"),
            *[sa.case((mark, 1), else_=0).label(name) for name, mark in marks.items()],
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


def _history(rollout_id: str, labels: LabelConfig, closed: datetime) -> sa.Select[*tuple[Any, ...]]:
    """Tips and positives of the rollout's users before its first tip."""
    row = tip_scores.c
    here = sa.and_(row.rollout_id == rollout_id, row.shown_at <= closed)
    began = sa.select(sa.func.min(row.shown_at)).where(here).scalar_subquery()
    users = sa.select(row.user_key).where(here)
    is_positive = label_rule(labels).positive_condition()
    return (
        sa.select(
            row.user_key,
            sa.func.count().label("tips"),
            sa.func.sum(sa.case((is_positive, 1), else_=0)).label("positives"),
        )
        .where(
            row.user_key.in_(users),
            row.source == labels.source,
            row.shown_at < began,
            sa.or_(row.rollout_id.is_(None), row.rollout_id != rollout_id),
        )
        .group_by(row.user_key)
    )
