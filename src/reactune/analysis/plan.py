"""How long a rollout takes: planned at the current traffic, and kept current while it is open.

The arithmetic is `canary/planning.py`'s; this asks the database and says it in lines.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from reactune import deployment
from reactune.canary.compare import Comparison, age_days, compare
from reactune.canary.outcomes import read_outcomes
from reactune.canary.power import (
    Plan,
    Step,
    Traffic,
    median_end,
    needed_drift,
    plan,
    read_traffic,
    unit_days,
    units_for,
)
from reactune.config.sections import CanaryConfig
from reactune.config.settings import Config
from reactune.errors import CanaryError
from reactune.records import Rollout
from reactune.store.database import is_there, reading

SHARES = (0.05, 0.10, 0.25, 0.50)
POWER = 0.8
BAR = 40


@dataclass(frozen=True)
class Option:
    """A way to roll out, its plan, and the days it takes; None where no traffic is known."""

    name: str
    plan: Plan
    units_per_day: float | None

    def days(self, units: int) -> float | None:
        """Days for so many units."""
        return units / self.units_per_day if self.units_per_day else None


def recent_traffic(config: Config, *, now: datetime) -> Traffic | None:
    """The traffic of the last two weeks; None without any, or without a database."""
    if not is_there(config.store_url):
        return None
    with deployment.database(config) as engine, reading(engine) as connection:
        return read_traffic(connection, labels=config.labels, settings=config.canary, now=now)


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
    ways: dict[str, tuple[Step, ...]] = {
        f"{share:.0%} throughout": (Step(share),) for share in SHARES
    }
    ways["ramp " + "-".join(f"{100 * s.share:g}" for s in ramp_of(settings)) + " %"] = ramp_of(
        settings
    )
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
                foreseen=traffic.foreseen,
            ),
            units_per_day=traffic.units_per_day or None,
        )
        for name, steps in ways.items()
    ]


def plan_lines(
    options: Sequence[Option], traffic: Traffic, lift: float, *, settings: CanaryConfig
) -> list[str]:
    """The table of a plan, with a bar for the days (or tips) of each way."""
    known = (
        f"{traffic.units_per_day:,.0f} {unit_days(settings.unit)} a day"
        if traffic.units_per_day
        else "no traffic known (--units-per-day)"
    )
    lines = [
        f"from {traffic.baseline:.1%} to {traffic.baseline + lift:.1%} of tips; {known}, "
        f"{traffic.tips_per_unit:.1f} tips each, alike by {traffic.correlation:.2f}; "
        f"{traffic.foreseen:.0%} of the variance is foreseen",
        f"{'':<22}{'tips: likely':>14}{'at most':>10}{'days: likely':>14}{'at most':>9}",
    ]
    longest = max(_length(each, each.plan.units) for each in options)
    for each in options:
        likely, most = (_told(each.days(n)) for n in (each.plan.likely_units, each.plan.units))
        bar = round(BAR * _length(each, each.plan.units) / longest)
        full = round(BAR * _length(each, each.plan.likely_units) / longest)
        lines.append(
            f"{each.name:<22}{each.plan.likely_tips:>14,}{each.plan.tips:>10,}{likely:>14}{most:>9}"
            f"  {'█' * full}{'░' * (bar - full)}"
        )
    ramp = options[-1].plan
    lines += [
        f"likely: half of the rollouts with this lift have their verdict by then; those with none "
        f"by {ramp.idle_units / ramp.units:.0%} of the ramp's most",
        f"set canary.planned_units = {ramp.planned_units}; no promotion before "
        f"{settings.min_days:g} days",
    ]
    if cut := [each for each in options if each.plan.units > settings.max_units]:
        longest_plan = max(each.plan.units for each in cut)
        lines.append(
            f"canary.max_units = {settings.max_units:,} would end some of these before their most "
            f"({'; '.join(each.name for each in cut)}): set it to at least {longest_plan:,}, or "
            "look for a larger lift"
        )
    return lines


def axis_of(options: Sequence[Option]) -> str:
    """What the bars of a picture measure."""
    return "days" if options[0].units_per_day else "units"


def bars_of(options: Sequence[Option]) -> list[tuple[str, float, float]]:
    """Name, likely and longest length of each way."""
    return [
        (each.name, _length(each, each.plan.likely_units), _length(each, each.plan.units))
        for each in options
    ]


def look_ahead(config: Config, rollout: Rollout, *, now: datetime) -> str:
    """When the open rollout will have its verdict, at the traffic it has had so far."""
    with deployment.database(config) as engine, reading(engine) as connection:
        outcomes = read_outcomes(
            connection,
            rollout.rollout_id,
            labels=config.labels,
            settings=config.canary,
            now=now,
        )
    seen = compare(outcomes, settings=config.canary, planned_units=rollout.planned_units)
    days = age_days(outcomes, now=now)
    if not seen.units or days <= 0:
        return "no tip of it counts yet"
    per_day = seen.units / max(days, 0.25)
    return dates_of(config.canary, rollout, seen, per_day=per_day, days=days, now=now)


def dates_of(
    settings: CanaryConfig,
    rollout: Rollout,
    seen: Comparison,
    *,
    per_day: float,
    days: float,
    now: datetime,
) -> str:
    """The days of the likely and of the last possible verdict, if units come at this pace.

    `days` have passed since the first tip was drawn by lot.
    """
    first = min(seen.units_at_share)
    planned = rollout.planned_units * first * (1 - first)
    steps = ramp_of(settings, share=rollout.share)
    likely = median_end(settings.alpha, needed_drift(settings.alpha, POWER))
    earliest = now + timedelta(days=settings.min_days - days)
    dates = []
    for part in (likely, 1.0):
        left = max(part - seen.progress, 0.0) * planned
        day = now + timedelta(days=ceil(units_for(left, steps) / per_day))
        dates.append(f"{max(day, earliest):%Y-%m-%d}")
    told = f"{seen.progress:.0%} of what was planned is known after {seen.units:,} units"
    if seen.progress >= likely:
        return f"{told}; a verdict by {dates[1]} at the latest, at {per_day:,.0f} units a day"
    return (
        f"{told}; a verdict likely by {dates[0]}, by {dates[1]} at the latest, at "
        f"{per_day:,.0f} units a day"
    )


def _length(option: Option, units: int) -> float:
    days = option.days(units)
    return float(units) if days is None else days


def _told(days: float | None) -> str:
    return "-" if days is None else f"{days:,.1f}"


def assumed_traffic(
    measured: Traffic | None,
    *,
    baseline: float | None,
    units_per_day: float | None,
    tips_per_unit: float | None,
) -> Traffic:
    """What was measured, but for what is given; correlation is 0 where nothing was measured.

    Raises:
        CanaryError: there is no baseline, neither measured nor given.
    """
    base = measured or Traffic(0.0, 1.0, 0.0, 0.0, 0.0)
    if baseline is None and measured is None:
        raise CanaryError(
            "no tips were shown in the last two weeks; say --baseline, the champion's positives "
            "per tip"
        )
    return Traffic(
        units_per_day=base.units_per_day if units_per_day is None else units_per_day,
        tips_per_unit=base.tips_per_unit if tips_per_unit is None else tips_per_unit,
        baseline=base.baseline if baseline is None else baseline,
        correlation=base.correlation,
        foreseen=base.foreseen,
    )
