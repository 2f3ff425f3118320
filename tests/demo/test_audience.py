"""The demo's people: what they like, what wears off, and what the pool of tips holds."""

import gzip
import random
from dataclasses import asdict, replace
from statistics import mean

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from reactune.config.sections import LabelConfig, ModelConfig
from reactune.config.settings import load
from reactune.demo.audience import (
    Response,
    Shown,
    Town,
    Visit,
    earned,
    expected_harm,
    expected_reward,
    load_audience,
    most_popular_tip,
    shortest_tip,
)
from reactune.demo.pool import (
    FILE,
    SEED,
    SIZE,
    PooledRuntime,
    demo_config,
    digest_of,
    fit,
    read_pool,
    write_pool,
)
from reactune.demo.pool import main as make_anew
from reactune.demo.preferences import read
from reactune.demo.situations import KINDS, situations
from reactune.errors import ConfigError, DataError
from reactune.model.files import base_model
from reactune.model.prompt import assemble, load_chat
from reactune.records import ModelVersion, Sampling
from reactune.store.labels import label_rule
from serving_fixtures import ModelServer

LABELS = LabelConfig()
WORLD = situations(1_200, seed=5)
MORNING = {
    "time_of_day": "morning, 9 am",
    "user_settings": {"goal": "eat better", "minutes": 10},
    "open_tasks": ["water the roses", "clean the attic"],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The settings of a demo folder."""
    file = tmp_path_factory.mktemp("demo") / "reactune.toml"
    file.write_text(demo_config(), encoding="utf-8")
    return load(file)


@pytest.fixture(scope="module")
def chat(config):
    """The base model's chat template under the demo's settings."""
    return load_chat(base_model(ModelConfig()).folder, config.prompt)


def town(seed=1, tastes="default"):
    return Town(seed, tastes, situations=WORLD)


def days(audience):
    return [visit for day in range(3) for visit in audience.visits(day)]


def good_tip(visit):
    """What somebody who knows the tastes would write."""
    task = visit.context["open_tasks"][0]
    minutes = visit.context["user_settings"]["minutes"]
    return {
        "focus": f"Set a timer for {minutes} minutes and {task} before you check your phone.",
        "break": f"Take a {minutes} minute walk outside and breathe, then {task}.",
        "health": f"Drink a glass of water and stretch for {minutes} minutes before you {task}.",
        "planning": f"List what comes first, then {task} for {minutes} minutes and stop.",
        "social": f"Call a friend for {minutes} minutes after you {task}.",
    }[visit.kind]


def base_tips():
    """The pool's tip for a visit."""
    by_situation = {
        (tip.situation.kind, repr(tip.situation.context)): tip.text for tip in read_pool().tips
    }
    return lambda visit: by_situation[visit.kind, repr(visit.context)]


def test_the_same_seed_gives_the_same_days_in_any_order():
    one, two = town(), town()
    later = two.visits(3)
    assert [one.visits(day) for day in range(4)] == [two.visits(day) for day in range(4)]
    assert one.visits(3) == later
    assert town(2).visits(0) != one.visits(0)


def test_visits_come_in_order_of_time_and_at_the_hour_their_context_names():
    visits = days(town())
    assert [visit.moment for visit in visits] == sorted(visit.moment for visit in visits)
    assert len({visit.visit_id for visit in visits}) == len(visits)
    for visit in visits:
        hour = visit.moment.hour
        assert visit.context["time_of_day"].endswith(f", {(hour - 1) % 12 + 1} {'ap'[hour > 11]}m")
        assert visit.kind in KINDS


def test_everything_happens_once_before_anything_happens_again():
    visits = town().visits(0) + town().visits(1)
    happened = [(visit.kind, repr(visit.context)) for visit in visits]
    assert len(set(happened)) == len(happened)


def test_a_reader_notices_form_and_fit():
    reading = read("Water the roses for 10 minutes after breakfast.", "health", MORNING)
    assert (reading.words, reading.opens_with_action, reading.names_a_task) == (8, 1.0, 1.0)
    assert (reading.names_an_amount, reading.fits_the_hour, reading.breaks_off) == (1.0, 1.0, 0.0)
    robotic = read("Here's a tip: I'm sure that dinner", "health", MORNING)
    assert (robotic.about_itself, robotic.breaks_off) == (1.0, 1.0)
    assert (robotic.opens_with_action, robotic.clashes_with_the_hour) == (0.0, 1.0)
    assert read("Before dinner, water the roses.", "health", MORNING).opens_with_action == 0.6


@given(st.text(max_size=200), st.sampled_from(KINDS))
def test_any_text_can_be_read(text, kind):
    reading = asdict(read(text, kind, MORNING))
    assert reading.pop("words") >= 0
    assert all(0 <= share <= 1 for share in reading.values())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tip: "I'm glad to help. Here's my advice: " + tip,
        lambda tip: tip + " Remember that it is important to care for yourself, always, every day.",
        lambda tip: tip.rsplit(" ", 4)[0],
        lambda tip: "Good luck!",
        lambda tip: "It is all a matter of the right mindset, and that is what makes a difference.",
    ],
    ids=["about itself", "long", "cut off", "short", "vague"],
)
def test_a_spoilt_tip_earns_less_from_nearly_everybody(spoil):
    audience = town()
    visits = audience.visits(0)
    better = [
        expected_reward(audience, visit, good_tip(visit))
        > expected_reward(audience, visit, spoil(good_tip(visit)))
        for visit in visits
    ]
    assert mean(better) > 0.95


def test_a_tip_wears_off_for_those_who_saw_it_and_for_their_neighbours_only():
    audience = town()
    visits = audience.visits(0)
    role = audience.people[visits[0].user_id].role
    neighbours = [each for each in visits if audience.people[each.user_id].role == role]
    strangers = [each for each in visits if audience.people[each.user_id].role != role]
    tip = "Set a timer for ten minutes and water the roses before you check your phone."

    def earn():
        return mean(expected_reward(audience, visit, tip) for visit in neighbours[20:])

    fresh = earn()
    for visit in strangers:
        audience.remember(visit, tip)
    assert earn() == fresh
    for visit in neighbours[:20]:
        audience.remember(visit, tip.replace("timer", "clock"))
    assert earn() < 0.2 * fresh


def label_of(response, labels):
    """Whether a response to a model's tip is a positive, and whether it is a negative."""
    rule, reaction = label_rule(labels), (response.reaction, response.dwell_ms)
    return rule.positive.includes(*reaction), rule.negative.includes(*reaction)


def test_reactions_come_as_often_as_the_stated_probabilities():
    audience, labels = town(), LABELS
    expected, happened = [], []
    for visit in days(audience):
        tip = good_tip(visit) if len(expected) % 2 else "You can make the most of your goals."
        expected.append(
            (expected_reward(audience, visit, tip), expected_harm(audience, visit, tip))
        )
        response = audience.react(visit, tip)
        happened.append(label_of(response, labels))
    for stated, seen in zip(zip(*expected, strict=True), zip(*happened, strict=True), strict=True):
        spread = sum(share * (1 - share) for share in stated) ** 0.5
        assert abs(sum(seen) - sum(stated)) < 4 * spread


def test_most_who_do_a_tip_take_their_time_and_most_who_dismiss_do_not():
    audience = town()
    responses = [audience.react(visit, good_tip(visit)) for visit in days(audience)]
    done = [each.dwell_ms for each in responses if each.reaction == "done"]
    dismissed = [each.dwell_ms for each in responses if each.reaction == "dismiss"]
    assert 0.75 < mean(15_000 <= dwell <= 120_000 for dwell in done) < 0.95
    assert 0.6 < mean(dwell < 5_000 for dwell in dismissed) < 0.95
    kinds = {each.reaction for each in responses}
    assert kinds == {"done", "dismiss", "snooze", None}
    assert all(each.dwell_ms is None for each in responses if each.reaction is None)


def test_without_tastes_a_reaction_does_not_depend_on_the_tip():
    one, two = town(tastes="none"), town(tastes="none")
    visits = days(one)
    assert [one.react(visit, good_tip(visit)) for visit in visits] == [
        two.react(visit, "") for visit in days(two)
    ]
    assert expected_reward(one, visits[0], "x") == expected_reward(one, visits[0], "Call a friend.")


def test_what_a_visitor_does_does_not_depend_on_other_draws_of_chance():
    one, two = town(), town()
    visits = one.visits(0)
    first = [one.react(visit, good_tip(visit)) for visit in visits]
    two.visits(5)
    random.seed(3)
    assert [two.react(visit, good_tip(visit)) for visit in visits] == first


class Patient:
    """An audience that somebody else brings: it does whatever it is told."""

    def __init__(self, seed, tastes="default"):
        self.seed = seed

    def visits(self, day):
        return town(self.seed).visits(day)[:10]

    def react(self, visit, tip):
        return Response("done", 20_000) if tip else Response("dismiss", 1_000)


class Mute:
    def __init__(self, seed, tastes="default"):
        pass


def test_another_audience_can_be_brought_along():
    audience = load_audience(f"{__name__}:Patient", seed=4)
    visits = list(audience.visits(0))
    assert earned(audience, [(visit, "Go!") for visit in visits], labels=LABELS).reward == 1.0
    assert earned(audience, [(visit, "") for visit in visits], labels=LABELS).harm == 1.0
    assert earned(audience, [], labels=LABELS).tips == 0


@pytest.mark.parametrize(
    "name", ["nowhere:Town", f"{__name__}:Nobody", f"{__name__}:Mute", "reactune", ":", "os:sep"]
)
def test_what_is_no_audience_is_refused(name):
    with pytest.raises(ConfigError, match="audience"):
        load_audience(name, seed=1)


def test_unknown_tastes_are_refused():
    with pytest.raises(ConfigError, match="spicy"):
        Town(1, "spicy", situations=WORLD)


def test_trivial_policies_pick_what_their_names_say():
    past = [
        Shown("focus", "Go.", is_positive=False),
        Shown("focus", "Do one thing.", is_positive=True),
        Shown("focus", "Do one thing.", is_positive=True),
        Shown("focus", "Do another thing.", is_positive=True),
        Shown("break", "Walk.", is_positive=False),
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
        Shown(visit.kind, tip, label_of(past.react(visit, tip), LABELS)[0]) for visit, tip in shown
    ]
    assert sum(each.is_positive for each in history) > 500
    visits = Town(1).visits(0) + Town(1).visits(1)
    rewards = {
        name: earned(Town(1), [(visit, policy(visit)) for visit in visits], labels=LABELS)
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


def test_a_second_round_through_the_pool_is_no_staler_than_the_first():
    tip_of = base_tips()
    audience = Town(1)
    rounds = len(read_pool().tips)
    staleness = []
    day = 0
    while len(staleness) < 2 * rounds:
        for visit in audience.visits(day):
            staleness.append(audience.staleness(visit, tip_of(visit)))
            audience.remember(visit, tip_of(visit))
        day += 1
    assert abs(mean(staleness[:rounds]) - mean(staleness[rounds:])) < 0.005


def test_the_pool_holds_the_tips_that_these_settings_ask_for(config, chat):
    pool = read_pool()
    assert len({tip.digest for tip in pool.tips}) == len(pool.tips) > 3_500
    assert FILE.stat().st_size < 600_000
    assert (pool.temperature, pool.top_p, pool.max_tokens, pool.quantisation) == (
        config.serve.temperature,
        config.serve.top_p,
        config.serve.max_tokens,
        config.export.quantisation,
    )
    for tip in pool.tips[::25]:
        prompt = assemble(chat, tip.situation.kind, tip.situation.context)
        assert tip.digest == digest_of(prompt.text)
        assert tip.prompt_tokens == len(prompt.token_ids)
        assert fit(tip, prompt)


def test_the_situations_of_the_pool_are_those_of_its_seed():
    made = {repr(each) for each in situations(SIZE, seed=SEED)}
    assert {repr(each) for each in read_pool().situations} <= made


def test_only_the_base_model_sampled_as_in_the_pool_answers_from_it(chat, tmp_path):
    pool = read_pool()
    live = ModelServer({1: "live", 2: "live"})
    live.published += [1, 2]
    runtime = PooledRuntime(live, pool)
    tip = pool.tips[7]
    prompt = assemble(chat, tip.situation.kind, tip.situation.context).text
    model = ModelVersion(
        1, "tip:1", "base", tmp_path, "0", tmp_path, pool.base, pool.quantisation, None
    )
    sampling = Sampling(pool.temperature, pool.top_p, pool.max_tokens, seed=1)
    assert runtime.generate(model, prompt, sampling).text == tip.text
    assert runtime.answered == 1
    for other in (
        (replace(model, version=2, adapter=tmp_path), prompt, sampling),
        (replace(model, quantisation="f16"), prompt, sampling),
        (model, prompt + "!", sampling),
        (model, prompt, replace(sampling, temperature=0.1)),
    ):
        assert runtime.generate(*other).text == "live"
    assert runtime.answered == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1_000))
def test_a_pool_is_read_as_it_was_written(tmp_path_factory, start):
    pool = replace(read_pool(), tips=read_pool().tips[start : start + 5])
    file = tmp_path_factory.mktemp("pool") / "pool.jsonl.gz"
    write_pool(pool, file)
    first = file.read_bytes()
    assert read_pool(file) == pool
    write_pool(pool, file)
    assert file.read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b'{"v": 99}\n', mtime=0)])
def test_a_broken_pool_is_refused(tmp_path, content):
    file = tmp_path / "pool.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"python -m reactune\.demo\.pool"):
        read_pool(file)


@pytest.mark.slow
def test_the_pool_can_be_made_anew_and_goes_on_after_a_break(tmp_path):
    folder = tmp_path / "drafts"
    made = []
    for count in (3, 4):
        out = tmp_path / f"{count}.jsonl.gz"
        arguments = ["--count", str(count), "--folder", str(folder), "--out", str(out)]
        result = CliRunner().invoke(make_anew, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        made.append(read_pool(out))
    fewer, more = made
    assert len((folder / "drafts.jsonl").read_text().splitlines()) == 4
    assert more.tips[: len(fewer.tips)] == fewer.tips
    kept = {tip.digest: tip.situation for tip in read_pool().tips}
    assert all(kept.get(tip.digest, tip.situation) == tip.situation for tip in more.tips)
    assert {tip.digest for tip in more.tips} <= kept.keys()
