"""The values of policies in the report of the demo."""

from dataclasses import asdict, replace
from statistics import mean

import numpy as np

from audience_fixtures import LABELS, base_tips, good_tip, label_of, town
from loop_fixtures import install
from reactune.demo.audience import Response, Town, Visit, expected_reward, load_audience
from reactune.demo.report import (
    CycleResult,
    PastTip,
    candidates_shown,
    choices_of,
    first_candidate,
    most_popular_tip,
    policy_value,
    shortest_tip,
)
from reactune.pages.tables import NONE
from reactune.records import Rollout, canonical_json
from reactune.service.choice import Candidate, choose, first_passed
from reactune.store.database import opened_store, writing
from reactune.store.queries import upsert_scores
from serving_fixtures import NOON, exposure_of


class Patient:
    """Another audience: it does every tip that has a text."""

    def __init__(self, seed, tastes="default"):
        self.seed = seed

    def visits(self, day):
        return town(self.seed).visits(day)[:10]

    def react(self, visit, tip):
        return Response("done", 20_000) if tip else Response("dismiss", 1_000)


def test_the_value_of_a_policy_is_measured_on_another_audience_too():
    audience = load_audience(f"{__name__}:Patient", seed=4)
    visits = list(audience.visits(0))
    assert policy_value(audience, [(visit, "Go!") for visit in visits], labels=LABELS).reward == 1.0
    assert policy_value(audience, [(visit, "") for visit in visits], labels=LABELS).harm == 1.0
    assert policy_value(audience, [], labels=LABELS).tips == 0


def test_policies_without_a_model_choose_the_shortest_and_the_most_popular_tip():
    past = [
        PastTip("focus", "Go.", is_positive=False),
        PastTip("focus", "Do one thing.", is_positive=True),
        PastTip("focus", "Do one thing.", is_positive=True),
        PastTip("focus", "Do another thing.", is_positive=True),
        PastTip("break", "Walk.", is_positive=False),
    ]
    visit = Visit("v", "u", "focus", {}, town().visits(0)[0].moment)
    assert shortest_tip(past)(visit) == "Go."
    assert most_popular_tip(past)(visit) == "Do one thing."
    assert most_popular_tip(past)(replace(visit, kind="break")) == "Walk."


def test_the_base_model_pleases_some_and_repeating_one_tip_pleases_fewer():
    tip_of = base_tips()
    past = Town(1)
    shown = [(visit, tip_of(visit)) for day in range(9) for visit in past.visits(day)]
    history = [
        PastTip(visit.kind, tip, label_of(past.react(visit, tip), LABELS)[0])
        for visit, tip in shown
    ]
    assert sum(each.is_positive for each in history) > 500
    visits = Town(1).visits(0) + Town(1).visits(1)
    rewards = {
        name: policy_value(Town(1), [(visit, policy(visit)) for visit in visits], labels=LABELS)
        for name, policy in {
            "base": tip_of,
            "shortest": shortest_tip(history),
            "popular": most_popular_tip(history),
        }.items()
    }
    assert 0.15 < rewards["base"].reward < 0.25
    assert 0.25 < rewards["base"].harm < 0.35
    ideal = [expected_reward(past, visit, good_tip(visit)) for visit in visits]
    assert 0.55 < mean(ideal) < 0.70
    assert rewards["shortest"].reward < 0.5 * rewards["base"].reward
    assert rewards["popular"].reward < 0.5 * rewards["base"].reward


def test_the_shorter_of_two_equally_popular_tips_is_shown():
    past = [PastTip("focus", tip, is_positive=True) for tip in ("Do one thing.", "Start.")]
    visit = Visit("v", "u", "focus", {}, town().visits(0)[0].moment)
    assert most_popular_tip(past)(visit) == "Start."


def test_a_kind_that_was_never_shown_gets_an_empty_tip():
    visit = Visit("v", "u", "focus", {}, town().visits(0)[0].moment)
    assert shortest_tip([])(visit) == ""


def test_repeating_one_tip_earns_less_than_the_first_showing():
    audience = town()
    visits = audience.visits(0)[:60]
    once = mean(expected_reward(audience, visit, good_tip(visits[0])) for visit in visits)
    repeated = policy_value(
        town(), [(visit, good_tip(visits[0])) for visit in visits], labels=LABELS
    )
    assert repeated.tips == 60
    assert repeated.reward < once


def test_reward_and_harm_of_a_policy_are_shares():
    visits = town().visits(0)[:30]
    value = policy_value(town(), [(visit, good_tip(visit)) for visit in visits], labels=LABELS)
    assert 0 < value.harm < value.reward < 1


def test_another_label_rule_gives_another_value_on_another_audience():
    audience = load_audience(f"{__name__}:Patient", seed=4)
    shown = [(visit, "Go!") for visit in audience.visits(0)]
    narrow = LABELS.model_copy(update={"positive_dwell_ms": (20_001, 30_000)})
    assert policy_value(audience, shown, labels=narrow).reward == 0.0
    assert policy_value(audience, shown, labels=LABELS).reward == 1.0


def test_the_candidates_of_three_tips_are_shown_with_their_rewards(tmp_path):
    config = install(tmp_path)
    candidates = [Candidate("Tip <b>."), Candidate(verdict="empty"), Candidate("Walk.")]
    chosen = choose(candidates, np.array([0.5, -0.25]), np.array([0.4, -0.5]), draw=0.0)
    failed = first_passed(candidates, "error")
    rows = [
        exposure_of(
            tip_id=f"{number:016}", rollout_id="trial", choice_json=canonical_json(asdict(each))
        )
        for number, each in enumerate([chosen, failed, *[chosen] * 6])
    ]
    with opened_store(config.store_url) as engine, writing(engine) as connection:
        upsert_scores(connection, [asdict(each) for each in rows])
    trial = Rollout("trial", 1, 2, "canary", 0.5, "s", "tip", 9, NOON, NOON)
    assert len(choices_of(config, trial)) == 7
    assert {first_candidate(each) for each in choices_of(config, trial).values()} == {"Tip <b>."}
    cycle = CycleResult(tmp_path, trial, "promoted", [], [], [], [], 1.0, 1.0)
    (section,) = candidates_shown(config, cycle)
    (table,) = section.tables
    assert len(table.rows) == 9
    chance = f"{100 * chosen.candidates[0].chance:.0f} %"
    assert table.rows[0] == (1, "Tip <b>.", "+0.50", "+0.40", chance, "shown")
    assert table.rows[1] == (1, "(refused: empty)", NONE, NONE, NONE, "")
    assert candidates_shown(config, replace(cycle, rollout=replace(trial, rollout_id="x"))) == []
