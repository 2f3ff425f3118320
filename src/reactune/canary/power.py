"""The planned size of a rollout: how many units and tips until its verdict, at recent traffic."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from math import ceil, inf
from typing import Any

import numpy as np
import sqlalchemy as sa
from scipy.optimize import brentq

from reactune.canary.outcomes import Counts, earlier_by_user
from reactune.canary.sequential import (
    PROMOTION,
    TIMES,
    Floats,
    crossings,
    expected_rates,
    futility_line,
    planned_multiplier,
)
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.errors import CanaryError
from reactune.records import Unit
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores

RECENT_DAYS = 14


@dataclass(frozen=True)
class Step:
    """A share of the challenger, and the number of units it is kept for; the last has no end."""

    share: float
    units: int = 0


@dataclass(frozen=True)
class Plan:
    """A rollout that promotes by `units` with the wanted power, if the lift is there.

    Half of the rollouts with that lift have their verdict by `likely_units`, half of those with
    none by `idle_units`. Units and tips are those of both arms. `planned_units` is the value for
    the setting of that name: the units at the first share that carry as much information.
    """

    units: int
    likely_units: int
    idle_units: int
    tips: int
    likely_tips: int
    challenger_tips: int
    planned_units: int


@dataclass(frozen=True)
class Traffic:
    """Recent units per day, tips per unit, and the rate at which they are positive.

    `correlation` is that of reactions within one unit, `explained` the part of the variance that
    the covariate, the users' past, explains.
    """

    units_per_day: float
    tips_per_unit: float
    baseline: float
    correlation: float
    explained: float


def plan(
    baseline: float,
    lift: float,
    *,
    steps: Sequence[Step],
    alpha: float = 0.05,
    power: float = 0.8,
    tips_per_unit: float = 1.0,
    correlation: float = 0.0,
    explained: float = 0.0,
) -> Plan:
    """The smallest rollout that promotes with this power when its bounds are read all the time.

    `baseline` is the champion's positives per tip, `lift` the difference to detect, `steps` the
    shares in order; see `Traffic` for the rest. The sum behind the estimate moves like a Brownian
    motion whose drift at the planned end is `lift` over its standard error there.

    Raises:
        CanaryError: a value for which no finite plan exists.
    """
    for step in steps:
        _check_between("share", step.share, low=0, high=1)
    _check_between("power", power, low=0.05, high=1)
    _check_between("alpha", alpha, low=0, high=0.5)
    _check_rates(baseline, lift)
    _check_traffic(tips_per_unit, correlation, explained)
    spread = baseline * (1 - baseline) * (1 + (tips_per_unit - 1) * correlation) / tips_per_unit
    drift = needed_drift(alpha, power)
    weight = (drift / lift) ** 2 * spread * (1 - explained)
    likely, idle = (median_end(alpha, each) for each in (drift, 0.0))
    units, likely_units, idle_units = (units_for(weight * t, steps) for t in (1.0, likely, idle))
    first = steps[0].share
    return Plan(
        units=units,
        likely_units=likely_units,
        idle_units=idle_units,
        tips=ceil(units * tips_per_unit),
        likely_tips=ceil(likely_units * tips_per_unit),
        challenger_tips=ceil(challenger_units(units, steps) * tips_per_unit),
        planned_units=ceil(weight / (first * (1 - first))),
    )


@cache
def needed_drift(alpha: float, power: float) -> float:
    """Standard errors, at the planned end, of a lift that is promoted with this power."""
    upper, lower = _boundaries(alpha)

    def missing(drift: float) -> float:
        return float(crossings(upper, lower, drift=drift)[0][-1]) - power

    return float(brentq(missing, 0.0, 30.0, xtol=1e-3))


@cache
def median_end(alpha: float, drift: float) -> float:
    """The part of the plan by which half of the rollouts with this drift have their verdict."""
    above, below = crossings(*_boundaries(alpha), drift=drift)
    return float(np.interp(0.5, above + below, TIMES))


def units_for(weight: float, steps: Sequence[Step]) -> int:
    """Units until the sum of p (1 - p) reaches the weight."""
    units = 0
    for step in steps[:-1]:
        per_unit = step.share * (1 - step.share)
        if weight <= step.units * per_unit:
            return units + ceil(weight / per_unit - 1e-9)
        weight -= step.units * per_unit
        units += step.units
    last = steps[-1].share
    return units + ceil(weight / (last * (1 - last)) - 1e-9)


def challenger_units(units: int, steps: Sequence[Step]) -> float:
    """How many of so many units fall on the challenger on average."""
    on_challenger = 0.0
    for step in steps[:-1]:
        here = min(units, step.units)
        on_challenger += here * step.share
        units -= here
    return on_challenger + units * steps[-1].share


def read_traffic(
    connection: sa.Connection, *, labels: LabelConfig, settings: CanaryConfig, now: datetime
) -> Traffic | None:
    """The traffic of the last two weeks under any model; None if nothing was shown."""
    since = now - timedelta(days=RECENT_DAYS)
    closed = now - timedelta(seconds=settings.window_seconds)
    row = tip_scores.c
    is_positive = label_rule(labels).positive_condition()
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
            sa.func.sum(sa.case((is_positive, 1), else_=0)).label("positives"),
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
    tips: Counts,
    positives: Counts,
    users: Sequence[str],
    *,
    settings: CanaryConfig,
    days: float,
) -> Traffic:
    """The traffic in the units of so many days, oldest first."""
    earlier_tips, earlier_positives = earlier_by_user(users, tips, positives, before={})
    expected = expected_rates(
        tips,
        positives,
        earlier_tips=earlier_tips,
        earlier_positives=earlier_positives,
        own_weight=settings.own_weight,
    )
    baseline = float(positives.sum() / tips.sum())
    total = float(((positives - tips * baseline) ** 2).sum())
    residual = float(((positives - tips * expected) ** 2).sum())
    single = baseline * (1 - baseline)
    pairs = float((tips * (tips - 1)).sum())
    correlation = (total / single - tips.sum()) / pairs if single and pairs else 0.0
    return Traffic(
        units_per_day=len(tips) / days,
        tips_per_unit=float(tips.mean()),
        baseline=baseline,
        correlation=float(np.clip(correlation, 0, 1)),
        explained=float(np.clip(1 - residual / total, 0, 0.95)) if total else 0.0,
    )


def _boundaries(alpha: float) -> tuple[Floats, Floats]:
    """What promotes, and what is futile, on the scale of `crossings`."""
    upper = planned_multiplier(TIMES, alpha, chance=PROMOTION * alpha) * np.sqrt(TIMES)
    return upper, futility_line(TIMES, alpha)


def _day(connection: sa.Connection, time: sa.ColumnElement[datetime]) -> sa.ColumnElement[object]:
    """The UTC day of a time, in the database's dialect."""
    if connection.dialect.name == "postgresql":
        return sa.cast(sa.func.timezone("UTC", time), sa.Date)
    return sa.func.date(time)


def _check_rates(baseline: float, lift: float) -> None:
    _check_between("baseline", baseline, low=0, high=1)
    if lift <= 0 or not baseline + lift <= 1:
        raise CanaryError(
            f"lift = {lift}: with baseline = {baseline} give one that leads to a higher rate, "
            "at most 1"
        )


def _check_traffic(tips_per_unit: float, correlation: float, explained: float) -> None:
    if not 1 <= tips_per_unit < inf or not 0 <= correlation <= 1 or not 0 <= explained < 1:
        raise CanaryError(
            f"tips_per_unit = {tips_per_unit}, correlation = {correlation}, explained = "
            f"{explained}: give at least 1 tip, a correlation in 0..1, and a part below 1"
        )


def _check_between(name: str, value: float, *, low: float, high: float) -> None:
    if not low < value < high:
        raise CanaryError(f"{name} = {value}: give a value between {low} and {high}, both excluded")
