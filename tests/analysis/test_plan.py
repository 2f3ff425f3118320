"""The plan's table and picture, the forecast of an open rollout, and the command."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from canary_fixtures import comparison_of
from reactune.analysis.plan import (
    assumed_traffic,
    axis_of,
    bars_of,
    forecast,
    plan_lines,
    plan_options,
    ramp_of,
)
from reactune.canary.power import Step, Traffic, plan
from reactune.cli import main
from reactune.config.sections import CanaryConfig
from reactune.errors import CanaryError
from reactune.records import Rollout

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
RAMP = (Step(0.05, 200), Step(0.10, 200), Step(0.25, 200), Step(0.50, 200))


def ago(**span):
    return NOW - timedelta(**span)


def test_given_values_replace_measured_ones():
    measured = Traffic(100.0, 3.0, 0.3, 0.2, 0.1)
    given = {"baseline": None, "units_per_day": None, "tips_per_unit": None}
    assert assumed_traffic(measured, **given) == measured
    found = assumed_traffic(measured, baseline=0.0, units_per_day=7.0, tips_per_unit=1.0)
    assert (found.baseline, found.units_per_day, found.tips_per_unit) == (0.0, 7.0, 1.0)
    assert (found.correlation, found.explained) == (0.2, 0.1)
    with pytest.raises(CanaryError, match="give --baseline"):
        assumed_traffic(None, **given)


def test_the_table_has_the_plan_of_each_way():
    traffic = Traffic(400.0, 2.0, 0.2, 0.1, 0.05)
    settings = CanaryConfig()
    options = plan_options(settings, traffic, 0.03)
    names = [each.name for each in options]
    assert names == [
        "5% throughout", "10% throughout", "25% throughout", "50% throughout", "ramp 5-10-25-50 %",
    ]  # fmt: skip
    ramp = plan(0.2, 0.03, steps=RAMP, tips_per_unit=2.0, correlation=0.1, explained=0.05)
    assert options[-1].plan == ramp
    assert options[-1].days(ramp.units) == ramp.units / 400
    lines = plan_lines(options, traffic, 0.03, settings=settings)
    assert lines[0].startswith("from 20.0% to 23.0% of tips; 400 user-days a day, 2.0 tips each")
    assert f"{ramp.tips:,}" in lines[6]
    assert f"{ramp.units / 400:,.1f}" in lines[6]
    assert f"set canary.planned_units = {ramp.planned_units};" in lines[-1]
    # The longest bar is of the smallest share.
    bars = [line.count("█") + line.count("░") for line in lines[2:7]]
    assert bars[0] == max(bars) == 40
    assert sorted(bars[:4], reverse=True) == bars[:4]
    assert [name for name, *_ in bars_of(options)] == names


def test_a_plan_longer_than_max_units_has_a_warning():
    traffic = Traffic(0.0, 1.0, 0.2, 0.0, 0.0)
    options = plan_options(CanaryConfig(), traffic, 0.025)
    longest = options[0].plan.units
    assert longest > CanaryConfig().max_units > options[1].plan.units > options[-1].plan.units
    warning = plan_lines(options, traffic, 0.025, settings=CanaryConfig())[-1]
    assert warning.startswith("canary.max_units = 50,000 would end")
    assert "(5% throughout)" in warning
    assert f"at least {longest:,}" in warning
    long_enough = CanaryConfig(max_units=longest)
    assert "max_units" not in plan_lines(options, traffic, 0.025, settings=long_enough)[-1]


OPENED = Rollout(
    rollout_id="r1", champion=1, challenger=2, phase="canary", share=0.05, salt="s",
    unit="user_day", planned_units=20_000, opened_at=ago(days=2), share_since=ago(days=2),
)  # fmt: skip


def comparison_at(progress, units=400):
    return comparison_of(units=units, tips=units, progress=progress, units_at_share={0.05: units})


def test_the_forecast_takes_the_rest_of_the_plan_at_its_pace_along_the_ramp():
    line = forecast(CanaryConfig(), OPENED, comparison_at(0.02), age_days=2, now=NOW)
    # Left: 98 % of 20,000 x 0.0475 = 931: 200 units at 5 % give 9.5, at 10 % 18, at 25 % 37.5,
    # and (931 - 65) / 0.25 = 3,464 at 50 %: 4,064 units, 21 days.
    assert line.startswith("2% of the plan is done after 400 units; a verdict likely by ")
    assert line.endswith("by 2026-03-31 at the latest, at 200 units a day")


def test_no_verdict_is_forecast_before_min_days():
    line = forecast(
        CanaryConfig(min_days=30), OPENED, comparison_at(0.9, units=40_000), age_days=2, now=NOW
    )
    assert line.endswith("a verdict by 2026-04-07 at the latest, at 20,000 units a day")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", "0123456789abcdef0123456789abcdef")
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["plan", *arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


def test_a_plan_without_a_database_has_tips_and_with_traffic_days(call, tmp_path):
    code, out, _ = call("--baseline", "0.2", "--lift", "0.03")
    assert code == 0
    assert "no traffic known (--units-per-day)" in out
    assert f"{plan(0.2, 0.03, steps=RAMP).tips:,}" in out
    code, out, _ = call("--baseline", "0.2", "--units-per-day", "500", "--picture", "plan.PNG")
    assert code == 0
    assert "500 user-days a day" in out
    assert (tmp_path / "plan.PNG").read_bytes().startswith(b"\x89PNG")
    assert call("--baseline", "0.2", "--picture", "plan.svg")[0] == 0
    assert "ramp 5-10-25-50 %" in (tmp_path / "plan.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "give --baseline"),
        (["--baseline", "1.5"], 1, "baseline = 1.5: give a value between 0 and 1"),
        (["--baseline", "0.2", "--lift", "0.9"], 1, "lift = 0.9: with baseline = 0.2"),
        (["--baseline", "0.2", "--power", "1"], 1, "power = 1.0: give a value between 0.05 and 1"),
        (["--baseline", "0.2", "--tips-per-unit", "0.5"], 1, "tips_per_unit = 0.5"),
        (["--baseline", "0.2", "--picture", "plan.gif"], 1, "its name must end in .svg or .png"),
        (["--baseline", "zero"], 2, "'zero' is not a valid float"),
        (["--baseline", "0.2", "--lift", "-0.1"], 2, "-0.1 is not in the range"),
    ],
    ids=str,
)
def test_an_impossible_plan_is_refused_with_the_value(call, arguments, code, message):
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    assert message in err


def test_a_rollout_without_a_counted_tip_has_no_forecast():
    settings, empty = CanaryConfig(), comparison_of(units=0, units_at_share={})
    assert forecast(settings, OPENED, empty, age_days=0.0, now=NOW) == "no tip of it counts yet"
    young = comparison_at(0.0)
    assert forecast(settings, OPENED, young, age_days=0.0, now=NOW) == "no tip of it counts yet"


def test_the_pace_of_the_first_hours_is_that_of_a_quarter_of_a_day():
    line = forecast(CanaryConfig(), OPENED, comparison_at(0.0), age_days=0.01, now=NOW)
    assert line.endswith("at 1,600 units a day")


def test_a_larger_share_brings_the_verdict_nearer():
    settings = CanaryConfig(min_days=0, min_units_per_step=1_000)
    latest = [
        forecast(
            settings, replace(OPENED, share=share), comparison_at(0.1), age_days=2, now=NOW
        ).partition(" at the latest")[0][-10:]
        for share in (0.05, 0.1, 0.5)
    ]
    assert latest == sorted(latest, reverse=True)
    assert len(set(latest)) == 3


def test_the_ramp_of_a_plan_starts_at_the_given_share_and_keeps_each_step():
    settings = CanaryConfig(share=0.05, ramp=(0.1, 0.25, 0.5), min_units_per_step=7)
    assert ramp_of(settings) == tuple(Step(share, 7) for share in (0.05, 0.1, 0.25, 0.5))
    assert ramp_of(settings, share=0.25) == (Step(0.25, 7), Step(0.5, 7))
    assert ramp_of(settings, share=0.9) == (Step(0.9, 7),)


@pytest.mark.parametrize(
    ("unit", "name"), [("tip", "tips"), ("user_day", "user-days"), ("user", "users")]
)
def test_the_pace_is_named_in_the_units_of_the_settings(unit, name):
    settings = CanaryConfig(unit=unit)
    traffic = Traffic(1_234.0, 1.0, 0.2, 0.0, 0.0)
    lines = plan_lines(plan_options(settings, traffic, 0.05), traffic, 0.05, settings=settings)
    assert f"; 1,234 {name} a day, 1.0 tips each, correlation 0.00; " in lines[0]


def test_without_traffic_days_are_unknown_and_bars_measure_units():
    traffic = Traffic(0.0, 1.0, 0.2, 0.0, 0.0)
    options = plan_options(CanaryConfig(), traffic, 0.05)
    assert axis_of(options) == "units"
    assert [option.days(10) for option in options] == [None] * 5
    assert [bar[1:] for bar in bars_of(options)] == [
        (option.plan.likely_units, option.plan.units) for option in options
    ]
    rows = plan_lines(options, traffic, 0.05, settings=CanaryConfig())[2:7]
    assert all(row.split()[-3:-1] == ["-", "-"] for row in rows)


def test_more_power_is_a_longer_plan():
    traffic = Traffic(100.0, 1.0, 0.2, 0.0, 0.0)
    usual, more = (plan_options(CanaryConfig(), traffic, 0.05, power=p) for p in (0.8, 0.95))
    assert all(a.plan.units < b.plan.units for a, b in zip(usual, more, strict=True))
