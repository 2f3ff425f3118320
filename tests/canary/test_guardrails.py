"""Guardrails: each detects its own harm, and alarms rarely without one."""

from math import log

import numpy as np
import pytest
from scipy.stats import beta

from canary_fixtures import outcomes_of
from reactune.canary.compare import compare, decide
from reactune.canary.guardrails import PARTS
from reactune.canary.outcomes import KindCounts
from reactune.config.sections import CanaryConfig

SETTINGS = CanaryConfig(planned_units=5_000)


def watched(world, settings=SETTINGS):
    """The guardrails by name."""
    comparison = compare(world, settings=settings, planned_units=settings.planned_units)
    return {each.name: each for each in comparison.guardrails}


def broken(world, settings=SETTINGS):
    return [name for name, each in watched(world, settings).items() if each.is_broken]


def drawn(seed, units=2_000, share=0.3):
    rng = np.random.default_rng(seed)
    return rng, rng.random(units) < share, {"share": share}


def happens(rng, arm, champion, challenger):
    return rng.random(len(arm)) < np.where(arm, challenger, champion)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("quick_dismissals", "quick dismissals"),
        ("snoozes", "snoozes"),
        ("slow", "slow answers"),
        ("repeats", "repeated tips"),
    ],
)
def test_what_happens_more_often_on_the_challenger_breaks_its_own_guardrail_alone(column, name):
    rng, arm, share = drawn(1)
    world = outcomes_of(challenger=arm, **share, **{column: happens(rng, arm, 0.1, 0.3)})
    assert broken(world) == [name]
    seen = watched(world)[name]
    assert seen.champion_rate == pytest.approx(0.1, abs=0.03)
    assert seen.challenger_rate == pytest.approx(0.3, abs=0.05)
    spared = outcomes_of(challenger=arm, **share, **{column: happens(rng, arm, 0.3, 0.1)})
    assert broken(spared) == []


def test_more_fallbacks_than_allowed_roll_a_challenger_back():
    rng, arm, share = drawn(2)
    falls = arm & (rng.random(2_000) < 0.25)
    world = outcomes_of(challenger=arm, **share, fallbacks=falls, fell_back=falls)
    assert broken(world) == ["fallbacks"]
    assert broken(world, CanaryConfig(max_fallbacks=0.3)) == []
    comparison = compare(world, settings=SETTINGS, planned_units=5_000)
    decision = decide(comparison, settings=SETTINGS, phase="canary", age_days=0)
    assert decision.verdict == "roll back"
    assert decision.reason.startswith("harm is shown: fallbacks 2")


def test_a_challenger_that_is_worse_at_one_kind_alone_is_noticed():
    rng, arm, share = drawn(3, units=3_000, share=0.5)
    liked = {"focus": happens(rng, arm, 0.4, 0.5), "move": happens(rng, arm, 0.4, 0.25)}
    everyone = np.arange(3_000)
    kinds = {
        kind: KindCounts(everyone, np.ones(3_000, np.int64), liked[kind].astype(np.int64))
        for kind in liked
    }
    positives = liked["focus"].astype(int) + liked["move"]
    world = outcomes_of(challenger=arm, **share, tips=2, positives=positives, kinds=kinds)
    assert broken(world) == ["kind move"]
    assert broken(world, CanaryConfig(kind_margin=0.3)) == []


def test_one_kind_is_the_whole_and_no_guardrail():
    _, arm, share = drawn(4, units=50)
    only = KindCounts(np.arange(50), np.ones(50, np.int64), np.zeros(50, np.int64))
    assert len(watched(outcomes_of(challenger=arm, **share, kinds={"focus": only}))) == 5


def test_many_quick_dismissals_of_one_unit_are_one_event():
    arm = np.arange(400) % 2 == 0
    once, often = (
        watched(outcomes_of(challenger=arm, quick_dismissals=arm * n, tips=9))["quick dismissals"]
        for n in (1, 9)
    )
    assert once.log_e_value == often.log_e_value > log(40)


def test_no_event_among_many_units_is_no_evidence_of_harm():
    _, arm, share = drawn(5, units=40_000)
    assert broken(outcomes_of(challenger=arm, **share)) == []


def test_the_parts_of_alpha_are_all_of_it():
    assert sum(PARTS.values()) == pytest.approx(1)
    alarms = [each.alarm for each in watched(outcomes_of(challenger=[True, False])).values()]
    assert sum(np.exp(-alarm) for alarm in alarms) == pytest.approx(0.2 * 0.05 * 0.9)


def test_all_guardrails_together_rarely_alarm_at_the_edge_of_what_is_allowed():
    # Rates of quick dismissals, snoozes, slow answers at the margin, fallbacks at the limit.
    rng = np.random.default_rng(6)
    worlds, alarms, units = 150, 0, 2_000
    for _ in range(worlds):
        arm = rng.random(units) < 0.25
        falls = arm & (rng.random(units) < 0.1)
        counts = {
            name: happens(rng, arm, 0.2, 0.25) for name in ("quick_dismissals", "snoozes", "slow")
        }
        repeats = happens(rng, arm, 0.05, 0.10)
        world = outcomes_of(
            challenger=arm, share=0.25, fallbacks=falls, fell_back=falls, repeats=repeats, **counts
        )
        alarms += bool(broken(world))
    assert beta.ppf(0.01, alarms, worlds - alarms + 1) * bool(alarms) <= 0.01


@pytest.mark.parametrize(
    ("column", "name"), [("quick_dismissals", "quick dismissals"), ("slow", "slow answers")]
)
def test_events_may_be_more_frequent_by_the_harm_margin(column, name):
    rng, arm, share = drawn(7, units=4_000, share=0.5)
    world = outcomes_of(challenger=arm, **share, **{column: happens(rng, arm, 0.1, 0.2)})
    assert broken(world) == broken(world, CanaryConfig(harm_margin=0.25)) == [name]
    assert broken(world, CanaryConfig(harm_margin=1.5)) == []


def test_repeats_may_be_more_frequent_by_the_repeat_margin():
    rng, arm, share = drawn(8, units=4_000, share=0.5)
    world = outcomes_of(challenger=arm, **share, repeats=happens(rng, arm, 0.1, 0.25))
    assert broken(world, CanaryConfig(repeat_margin=0.05)) == ["repeated tips"]
    assert broken(world, CanaryConfig(repeat_margin=0.2)) == []


def test_a_smaller_alpha_raises_every_alarm_by_its_logarithm():
    world = outcomes_of(challenger=[True, False])
    usual, strict = (watched(world, CanaryConfig(alpha=alpha)) for alpha in (0.05, 0.005))
    for name, guardrail in usual.items():
        assert strict[name].alarm == pytest.approx(guardrail.alarm + log(10))


def test_the_kinds_share_one_part_of_alpha():
    _, arm, share = drawn(9, units=60)
    counts = KindCounts(np.arange(60), np.ones(60, np.int64), np.zeros(60, np.int64))
    two, four = (
        watched(outcomes_of(challenger=arm, **share, kinds={str(n): counts for n in range(number)}))
        for number in (2, 4)
    )
    assert four["kind 0"].alarm == pytest.approx(two["kind 0"].alarm + log(2))


def test_without_randomised_units_there_are_no_guardrails():
    assert watched(outcomes_of(challenger=[])) == {}
    assert watched(outcomes_of(challenger=[True] * 5, share=1.0)) == {}


def test_an_alarm_once_reached_stays():
    # Events on the challenger alone at first, on the champion alone afterwards.
    arm = np.arange(4_000) % 2 == 0
    quick = arm & (np.arange(4_000) < 200)
    early = outcomes_of(challenger=arm[:200], quick_dismissals=quick[:200])
    later = ~arm & (np.arange(4_000) >= 200)
    late = outcomes_of(challenger=arm, quick_dismissals=quick | later)
    assert broken(early) == ["quick dismissals"]
    assert broken(late) == ["quick dismissals"]
    assert watched(late)["quick dismissals"].challenger_rate < 0.1
