"""How long a rollout takes: counted traffic, the plan's table and picture, and the open rollout."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from reactune.analysis.plan import assumed_traffic, bars_of, forecast, plan_lines, plan_options
from reactune.canary.compare import Comparison
from reactune.canary.power import Step, Traffic, measure, plan, read_traffic
from reactune.cli import main
from reactune.config.sections import CanaryConfig, LabelConfig
from reactune.errors import CanaryError
from reactune.records import Rollout
from reactune.store.database import writing
from reactune.store.queries import upsert_scores

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
RAMP = (Step(0.05, 200), Step(0.10, 200), Step(0.25, 200), Step(0.50, 200))


def tip(tip_id, user, shown_at, **columns):
    return {
        "tip_id": tip_id, "user_key": user, "key_id": "k", "kind": "tip", "source": "llm",
        "context_json": "{}", "tip_content": "Walk", "created_at": shown_at, "shown_at": shown_at,
        "reaction": "snooze", "dwell_ms": 20_000,
    } | columns  # fmt: skip


def ago(**span):
    return NOW - timedelta(**span)


SHOWN = [
    tip("a", "u1", ago(days=4), reaction="done"),
    tip("b", "u1", ago(days=4, hours=-1)),
    # 23:59 and 00:01 UTC: two days.
    tip("c", "u2", datetime(2026, 3, 7, 23, 59, tzinfo=UTC), reaction="done"),
    tip("d", "u2", datetime(2026, 3, 8, 0, 1, tzinfo=UTC)),
    tip("e", "u2", datetime(2026, 3, 8, 0, 2, tzinfo=UTC)),
    tip("open", "u3", ago(seconds=100)),
    tip("old", "u3", ago(days=15)),
    tip("rule", "u3", ago(days=1), source="rule"),
    tip("unseen", "u3", ago(days=1)) | {"shown_at": None},
]


def traffic_in(engine, **settings):
    with engine.connect() as connection:
        return read_traffic(
            connection, labels=LabelConfig(), settings=CanaryConfig(**settings), now=NOW
        )


@pytest.mark.parametrize(("unit", "units"), [("user_day", 3), ("tip", 5), ("user", 2)])
def test_recent_traffic_is_counted_by_unit(engine, unit, units):
    assert traffic_in(engine, unit=unit) is None
    with writing(engine) as connection:
        upsert_scores(connection, SHOWN)
    found = traffic_in(engine, unit=unit)
    # From the first tip, four days ago, to the last one whose window is closed.
    assert found.units_per_day == pytest.approx(units / (4 - 180 / 86_400))
    assert found.tips_per_unit == pytest.approx(5 / units)
    assert found.baseline == pytest.approx(2 / 5)


@pytest.mark.parametrize("icc", [0.0, 0.3])
def test_how_alike_reactions_within_a_unit_are_is_measured(icc):
    rng = np.random.default_rng(1)
    taste = (
        rng.beta(0.3 * (1 / icc - 1), 0.7 * (1 / icc - 1), 4_000) if icc else np.full(4_000, 0.3)
    )
    tips = rng.integers(1, 7, 4_000)
    people = [f"p{n}" for n in range(4_000)]
    found = measure(tips, rng.binomial(tips, taste), people, settings=CanaryConfig(), days=10)
    assert found.correlation == pytest.approx(icc, abs=0.03)
    # Nobody comes twice, so nothing of anybody is foreseen.
    assert found.explained == pytest.approx(0, abs=0.01)
    assert found.units_per_day == 400


def test_what_is_foreseen_is_the_part_of_the_variance_that_people_explain():
    rng = np.random.default_rng(2)
    taste = rng.choice([0.1, 0.9], 200)
    person = np.tile(np.arange(200), 40)
    liked = (rng.random(8_000) < taste[person]).astype(np.int64)
    found = measure(
        np.ones(8_000, np.int64), liked, [f"p{n}" for n in person],
        settings=CanaryConfig(own_weight=1.0), days=40,
    )  # fmt: skip
    # Variance 0.25 in all, 0.09 within a person; the first visits teach who is who.
    assert found.explained == pytest.approx(0.64, abs=0.08)


def test_what_is_given_comes_before_what_was_measured():
    measured = Traffic(100.0, 3.0, 0.3, 0.2, 0.1)
    given = {"baseline": None, "units_per_day": None, "tips_per_unit": None}
    assert assumed_traffic(measured, **given) == measured
    found = assumed_traffic(measured, baseline=0.0, units_per_day=7.0, tips_per_unit=1.0)
    assert (found.baseline, found.units_per_day, found.tips_per_unit) == (0.0, 7.0, 1.0)
    assert (found.correlation, found.explained) == (0.2, 0.1)
    with pytest.raises(CanaryError, match="give --baseline"):
        assumed_traffic(None, **given)


def test_the_table_says_for_each_way_what_its_plan_says():
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


def test_a_plan_that_the_settings_would_cut_short_says_so():
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


def seen(progress, units=400):
    return Comparison(
        units=units, tips=units, challenger_units=20, challenger_tips=20, champion_rate=0.3,
        challenger_rate=0.3, estimate=0.0, low=-1.0, high=1.0, progress=progress, is_ready=True,
        is_futile=False, guardrails=(), mismatch=0.0, moved_away=0, moved_in=0,
        fallback_share=0.0, units_at_share={0.05: units},
    )  # fmt: skip


def test_the_forecast_of_an_open_rollout_is_what_is_left_at_its_pace_along_the_ramp():
    line = forecast(CanaryConfig(), OPENED, seen(0.02), age_days=2, now=NOW)
    # Left: 98 % of 20,000 x 0.0475 = 931: 200 units at 5 % give 9.5, at 10 % 18, at 25 % 37.5,
    # and (931 - 65) / 0.25 = 3,464 at 50 %: 4,064 units, 21 days.
    assert line.startswith("2% of the plan is done after 400 units; a verdict likely by ")
    assert line.endswith("by 2026-03-31 at the latest, at 200 units a day")


def test_no_verdict_is_promised_before_the_fewest_days():
    line = forecast(CanaryConfig(min_days=30), OPENED, seen(0.9, units=40_000), age_days=2, now=NOW)
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


def test_a_plan_needs_no_database_and_says_tips_and_with_traffic_days(call, tmp_path):
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
    ("arguments", "code", "told"),
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
def test_a_plan_that_cannot_be_is_one_clear_line(call, arguments, code, told):
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    assert told in err
