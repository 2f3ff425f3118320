"""How much comes in, and how alike people's reactions are: what a plan needs to know.

Counts in SQL; what a plan makes of it is for `planning.py`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from reactune.canary.evidence import expected_rates
from reactune.canary.outcomes import Counts, earlier_by_person, is_positive
from reactune.config import CanaryConfig, LabelConfig
from reactune.records import Unit
from reactune.store import tip_scores

RECENT_DAYS = 14


@dataclass(frozen=True)
class Traffic:
    """Recent units per day, tips per unit, and the rate at which they are positive.

    `correlation` is that of reactions within one unit, `foreseen` the part of the variance that
    people's past explains.
    """

    units_per_day: float
    tips_per_unit: float
    baseline: float
    correlation: float
    foreseen: float


def read_traffic(
    connection: sa.Connection, *, labels: LabelConfig, settings: CanaryConfig, now: datetime
) -> Traffic | None:
    """The traffic of the last two weeks, whoever wrote the tips; None where nothing was shown."""
    since = now - timedelta(days=RECENT_DAYS)
    closed = now - timedelta(seconds=settings.window_seconds)
    row = tip_scores.c
    unit: dict[Unit, tuple[sa.ColumnElement[Any], ...]] = {
        "tip": (row.tip_id,),
        "user_day": (_day(connection, row.shown_at),),
        "user": (),
    }
    first = sa.func.min(row.shown_at)
    query = (
        sa.select(
            row.user_key,
            first.label("first_shown_at"),
            sa.func.count().label("tips"),
            sa.func.sum(sa.case((is_positive(labels), 1), else_=0)).label("positives"),
        )
        .where(row.source == labels.source, row.shown_at > since, row.shown_at <= closed)
        .group_by(row.user_key, *unit[settings.unit])
        .order_by(first, row.user_key)
    )
    rows = connection.execute(query).all()
    if not rows:
        return None
    days = max((closed - rows[0].first_shown_at) / timedelta(days=1), 1.0)
    tips, positives = (
        np.array([getattr(each, name) for each in rows], np.int64) for name in ("tips", "positives")
    )
    return measure(tips, positives, [each.user_key for each in rows], settings=settings, days=days)


def measure(
    tips: Counts, positives: Counts, person: list[str], *, settings: CanaryConfig, days: float
) -> Traffic:
    """What units of so many days, in the order of time, say about those to come."""
    earlier_tips, earlier_positives = earlier_by_person(person, tips, positives, before={})
    expected = expected_rates(
        tips,
        positives,
        earlier_tips=earlier_tips,
        earlier_positives=earlier_positives,
        own_weight=settings.own_weight,
    )
    baseline = float(positives.sum() / tips.sum())
    plain = float(((positives - tips * baseline) ** 2).sum())
    left = float(((positives - tips * expected) ** 2).sum())
    single = baseline * (1 - baseline)
    pairs = float((tips * (tips - 1)).sum())
    correlation = (plain / single - tips.sum()) / pairs if single and pairs else 0.0
    return Traffic(
        units_per_day=len(tips) / days,
        tips_per_unit=float(tips.mean()),
        baseline=baseline,
        correlation=float(np.clip(correlation, 0, 1)),
        foreseen=float(np.clip(1 - left / plain, 0, 0.95)) if plain else 0.0,
    )


def _day(connection: sa.Connection, time: sa.ColumnElement[datetime]) -> sa.ColumnElement[object]:
    """The UTC day of a time, in the words of the database."""
    if connection.dialect.name == "postgresql":
        return sa.cast(sa.func.timezone("UTC", time), sa.Date)
    return sa.func.date(time)


def unit_days(unit: Unit) -> str:
    """What a unit is called in a sentence."""
    names: dict[Unit, str] = {"tip": "tips", "user_day": "person-days", "user": "people"}
    return names[unit]
