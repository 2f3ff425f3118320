"""How long a rollout takes: planned at recent traffic, and forecast while it is open."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from reactune import deployment
from reactune.canary.compare import Comparison
from reactune.canary.power import (
    Plan,
    Step,
    Traffic,
    median_end,
    needed_drift,
    plan,
    read_traffic,
    units_for,
)
from reactune.config.sections import CanaryConfig
from reactune.config.settings import Config
from reactune.errors import CanaryError
from reactune.records import Rollout, Unit
from reactune.store.database import is_there, reading

SHARES = (0.05, 0.10, 0.25, 0.50)
POWER = 0.8
BAR_WIDTH = 40
UNITS: dict[Unit, str] = {"tip": "tips", "user_day": "user-days", "user": "users"}


@dataclass(frozen=True)
class Option:
    """A way to roll out, its plan, and the pace of units; None if no traffic is known."""

    name: str
    plan: Plan
    units_per_day: float | None

    def days(self, units: int) -> float | None:
        """Days for so many units."""
        return units / self.units_per_day if self.units_per_day else None

    def length(self, units: int) -> float:
        """Days for so many units, or the units themselves if no traffic is known."""
        days = self.days(units)
        return float(units) if days is None else days


def recent_traffic(config: Config, *, now: datetime) -> Traffic | None:
    """The traffic of the last two weeks; None without any, or without a database."""
    if not is_there(config.store_url):
        return None
    with deployment.database(config) as engine, reading(engine) as connection:
        return read_traffic(connection, labels=config.labels, settings=config.canary, now=now)


def assumed_traffic(
    measured: Traffic | None,
    *,
    baseline: float | None,
    units_per_day: float | None,
    tips_per_unit: float | None,
) -> Traffic:
    """The measured traffic, with the given values in place of its own.

    Raises:
        CanaryError: there is no baseline, neither measured nor given.
    """
    base = measured or Traffic(0.0, 1.0, 0.0, 0.0, 0.0)
    if baseline is None and measured is None:
        raise CanaryError(
            "no tips were shown in the last two weeks; give --baseline, the champion's positives "
            "per tip"
        )
    return Traffic(
        units_per_day=base.units_per_day if units_per_day is None else units_per_day,
        tips_per_unit=base.tips_per_unit if tips_per_unit is None else tips_per_unit,
        baseline=base.baseline if baseline is None else baseline,
        correlation=base.correlation,
        explained=base.explained,
    )


def ramp_of(settings: CanaryConfig, *, share: float | None = None) -> tuple[Step, ...]:
    """The shares of a rollout from this one on, each kept for `min_units_per_step`."""
    first = settings.share if share is None else share
    shares = [first, *(step for step in settings.ramp if step > first)]
    return tuple(Step(each, settings.min_units_per_step) for each in shares)


def plan_options(
    settings: CanaryConfig, traffic: Traffic, lift: float, *, power: float = POWER
) -> list[Option]:
    """Every usual share kept throughout, and the ramp of the settings.

    Raises:
        CanaryError: no finite plan exists.
    """
    ramp = ramp_of(settings)
    ways: dict[str, tuple[Step, ...]] = {
        f"{share:.0%} throughout": (Step(share),) for share in SHARES
    }
    ways["ramp " + "-".join(f"{100 * step.share:g}" for step in ramp) + " %"] = ramp
    return [
        Option(
            name=name,
            plan=plan(
                traffic.baseline,
                lift,
                steps=steps,
                alpha=settings.alpha,
                power=power,
                tips_per_unit=traffic.tips_per_unit,
                correlation=traffic.correlation,
                explained=traffic.explained,
            ),
            units_per_day=traffic.units_per_day or None,
        )
        for name, steps in ways.items()
    ]


def plan_lines(
    options: Sequence[Option], traffic: Traffic, lift: float, *, settings: CanaryConfig
) -> list[str]:
    """The table of a plan, with a bar for the days (or units) of each way."""
    pace = (
        f"{traffic.units_per_day:,.0f} {UNITS[settings.unit]} a day"
        if traffic.units_per_day
        else "no traffic known (--units-per-day)"
    )
    ramp = options[-1].plan
    lines = [
        f"from {traffic.baseline:.1%} to {traffic.baseline + lift:.1%} of tips; {pace}, "
        f"{traffic.tips_per_unit:.1f} tips each, correlation {traffic.correlation:.2f}; "
        f"users' past explains {traffic.explained:.0%} of the variance",
        f"{'':<22}{'tips: likely':>14}{'at most':>10}{'days: likely':>14}{'at most':>9}",
        *_rows(options),
        f"likely: half of the rollouts with this lift have their verdict by then; those with none "
        f"by {ramp.idle_units / ramp.units:.0%} of the ramp's most",
        f"set canary.planned_units = {ramp.planned_units}; no promotion before "
        f"{settings.min_days:g} days",
    ]
    if cut := [each for each in options if each.plan.units > settings.max_units]:
        longest = max(each.plan.units for each in cut)
        lines.append(
            f"canary.max_units = {settings.max_units:,} would end some of these before their most "
            f"({'; '.join(each.name for each in cut)}): set it to at least {longest:,}, or "
            "plan for a larger lift"
        )
    return lines


def plan_facts(
    options: Sequence[Option], traffic: Traffic, lift: float, *, settings: CanaryConfig
) -> dict[str, Any]:
    """What `plan_lines` says, as plain values; days are null where no traffic is known."""
    return {
        "unit": settings.unit,
        "traffic": {**asdict(traffic), "units_per_day": traffic.units_per_day or None},
        "lift": lift,
        "planned_units": options[-1].plan.planned_units,
        "max_units": settings.max_units,
        "min_days": settings.min_days,
        "options": [
            {
                "name": each.name,
                **asdict(each.plan),
                "likely_days": each.days(each.plan.likely_units),
                "days": each.days(each.plan.units),
                "is_cut": each.plan.units > settings.max_units,
            }
            for each in options
        ],
    }


def axis_of(options: Sequence[Option]) -> str:
    """The quantity on the axis of a picture."""
    return "days" if options[0].units_per_day else "units"


def bars_of(options: Sequence[Option]) -> list[tuple[str, float, float]]:
    """Name, likely and longest length of each way."""
    return [
        (each.name, each.length(each.plan.likely_units), each.length(each.plan.units))
        for each in options
    ]


def forecast(
    settings: CanaryConfig,
    rollout: Rollout,
    comparison: Comparison,
    *,
    age_days: float,
    now: datetime,
) -> str:
    """The likely and the latest date of an open rollout's verdict, at its pace so far."""
    if not comparison.units or age_days <= 0:
        return "no tip of it counts yet"
    per_day = comparison.units / max(age_days, 0.25)
    first = min(comparison.units_at_share)
    planned = rollout.planned_units * first * (1 - first)
    steps = ramp_of(settings, share=rollout.share)
    likely = median_end(settings.alpha, needed_drift(settings.alpha, POWER))
    earliest = now + timedelta(days=settings.min_days - age_days)
    dates = []
    for part in (likely, 1.0):
        left = max(part - comparison.progress, 0.0) * planned
        day = now + timedelta(days=ceil(units_for(left, steps) / per_day))
        dates.append(f"{max(day, earliest):%Y-%m-%d}")
    progress = f"{comparison.progress:.0%} of the plan is done after {comparison.units:,} units"
    if comparison.progress >= likely:
        return f"{progress}; a verdict by {dates[1]} at the latest, at {per_day:,.0f} units a day"
    return (
        f"{progress}; a verdict likely by {dates[0]}, by {dates[1]} at the latest, at "
        f"{per_day:,.0f} units a day"
    )


def _rows(options: Sequence[Option]) -> list[str]:
    longest = max(each.length(each.plan.units) for each in options)
    rows = []
    for each in options:
        units = each.plan.likely_units, each.plan.units
        likely, most = ("-" if each.days(n) is None else f"{each.length(n):,.1f}" for n in units)
        full, bar = (round(BAR_WIDTH * each.length(n) / longest) for n in units)
        rows.append(
            f"{each.name:<22}{each.plan.likely_tips:>14,}{each.plan.tips:>10,}{likely:>14}{most:>9}"
            f"  {'█' * full}{'░' * (bar - full)}"
        )
    return rows
