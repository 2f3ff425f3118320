"""How much comes in, and how alike people's reactions are: what a plan needs to know.

Counts in SQL; what a plan makes of it is for `planning.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from math import ceil, inf
from typing import Any

import numpy as np
import sqlalchemy as sa
from scipy.optimize import brentq

from reactune.canary.outcomes import Counts, earlier_by_person
from reactune.canary.sequential import (
    PROMOTION,
    PROSPECT_END,
    PROSPECT_START,
    TIMES,
    Floats,
    crossings,
    expected_rates,
    planned_multiplier,
)
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.errors import CanaryError
from reactune.records import Unit
from reactune.store.labels import label_rule
from reactune.store.schema import tip_scores


@dataclass(frozen=True)
class Step:
    """A share of the challenger, and how many units it is kept for at least; the last for ever."""

    share: float
    units: int = 0


@dataclass(frozen=True)
class Plan:
    """A rollout that promotes by `units` with the wanted chance, if the lift is there.

    Half of the rollouts with that lift have their verdict by `likely_units`, half of those with
    none by `idle_units`. Units and tips are those of both arms. `planned_units` is what the
    setting of that name has to be: the units at the first share that would tell as much.
    """

    units: int
    likely_units: int
    idle_units: int
    tips: int
    likely_tips: int
    challenger_tips: int
    planned_units: int


def plan(
    baseline: float,
    lift: float,
    *,
    steps: Sequence[Step],
    alpha: float = 0.05,
    power: float = 0.8,
    tips_per_unit: float = 1.0,
    correlation: float = 0.0,
    foreseen: float = 0.0,
) -> Plan:
    """The smallest rollout in which bounds that are read all the time promote with this chance.

    `baseline` is the champion's positives per tip, `lift` the difference to be found,
    `steps` the shares one after the other, `correlation` that of reactions within one unit,
    `foreseen` the part of the variance that people's past explains. The sum behind the estimate
    moves like a Brownian motion whose drift at the planned end is `lift` over its standard error
    there; `passage.py` says with which drift it is promoted.

    Raises:
        CanaryError: a value for which no finite plan exists.
    """
    _check(baseline, lift, steps, alpha, power, tips_per_unit, correlation, foreseen)
    spread = baseline * (1 - baseline) * (1 + (tips_per_unit - 1) * correlation) / tips_per_unit
    drift = needed_drift(alpha, power)
    weight = (drift / lift) ** 2 * spread * (1 - foreseen)
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
    """Standard errors, at the planned end, that a lift needs to be promoted with this chance."""
    upper, lower = _bounds(alpha)

    def lacking(drift: float) -> float:
        return float(crossings(upper, lower, drift=drift)[0][-1]) - power

    return float(brentq(lacking, 0.0, 30.0, xtol=1e-3))


@cache
def median_end(alpha: float, drift: float) -> float:
    """The part of the plan by which half of the rollouts with this drift have their verdict."""
    above, below = crossings(*_bounds(alpha), drift=drift)
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


def _bounds(alpha: float) -> tuple[Floats, Floats]:
    """What promotes, and where promotion is out of prospect, on the scale of `crossings`."""
    chance = PROMOTION * alpha
    goal = planned_multiplier(1.0, alpha, chance=chance)
    upper = planned_multiplier(TIMES, alpha, chance=chance) * np.sqrt(TIMES)
    return upper, goal * (PROSPECT_START + (PROSPECT_END - PROSPECT_START) * TIMES)


def _check(
    baseline: float,
    lift: float,
    steps: Sequence[Step],
    alpha: float,
    power: float,
    tips_per_unit: float,
    correlation: float,
    foreseen: float,
) -> None:
    _check_between("baseline", baseline, low=0, high=1)
    for step in steps:
        _check_between("share", step.share, low=0, high=1)
    _check_between("power", power, low=0.05, high=1)
    _check_between("alpha", alpha, low=0, high=0.5)
    if not 1 <= tips_per_unit < inf or not 0 <= correlation <= 1 or not 0 <= foreseen < 1:
        raise CanaryError(
            f"tips_per_unit = {tips_per_unit}, correlation = {correlation}, "
            f"foreseen = {foreseen}: give at least 1 tip, a correlation in 0..1, and a part below 1"
        )
    if lift <= 0 or not baseline + lift <= 1:
        raise CanaryError(
            f"lift = {lift}: with baseline = {baseline} it must lead to a higher rate, at most 1"
        )


def _check_between(name: str, value: float, *, low: float, high: float) -> None:
    if not low < value < high:
        raise CanaryError(f"{name} = {value}: give a value between {low} and {high}, both excluded")


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
    is_positive = label_rule(labels).positive_condition()
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
