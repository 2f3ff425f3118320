"""Several texts for a tip: the guard, the choice by a reward, and what the exposure keeps of it."""

import asyncio
import itertools
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from reactune.canary import rollout
from reactune.config.sections import CanaryConfig, ServeConfig
from reactune.errors import DataError
from reactune.model.prompt import rebuild, tip_token_ids
from reactune.reward.graph import graph_of
from reactune.reward.model import RewardModel, save
from reactune.reward.scorer import Scorer
from reactune.service.state import close_service
from reactune.service.tips import TipRequest, create_tip
from serving_fixtures import (
    MORNING,
    NOON,
    ModelServer,
    ask,
    fails,
    register,
    rows_of,
    service_of,
    set_challenger,
    set_champion,
    version,
)

SHADOW = CanaryConfig(shadow_answers=10, ramp=())
FOUR = ServeConfig(timeout_seconds=5, candidates=4)
TEXTS = ("Drink water.", "Open a window.", "Stretch your back.", "Tidy the desk.")


@pytest.fixture(scope="module")
def reward(tiny_graphs, tmp_path_factory):
    """A folder with a reward model of random weights for a tiny base with SmolLM2's tokenizer."""
    base, cache = tiny_graphs
    folder = tmp_path_factory.mktemp("version") / "reward"
    shutil.copytree(graph_of(base, (1,), cache=cache), folder)
    weights = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)
    save(RewardModel(weights, np.zeros(5, np.float32), (1,), "base"), folder)
    return folder


def in_turns(texts=TEXTS):
    """Another text each time."""
    turns = itertools.cycle(texts)
    return lambda prompt, sampling: next(turns)


def rewarded(number, reward, folder):
    return replace(version(number, folder), reward=reward)


@pytest.fixture
def four(store, chat, reward, tmp_path):
    """A service whose champion writes four texts, of which its reward chooses."""
    set_champion(store, rewarded(1, reward, tmp_path))
    service = service_of(store, chat, ModelServer({1: in_turns()}), settings=FOUR)
    service.chats["tips:v1"] = chat
    yield service
    close_service(service)


def choice_in(row):
    return json.loads(row["choice_json"])


def test_the_exposure_holds_candidates_rewards_and_the_chance_of_the_shown_one(
    four, store, chat, reward
):
    tip = ask(four)
    [row] = rows_of(store)
    choice = choice_in(row)
    candidates = choice["candidates"]
    assert [each["text"] for each in candidates] == list(TEXTS)
    shown = candidates[choice["chosen"]]
    assert (tip.content, row["tip_content"]) == (shown["text"], shown["text"])
    assert row["choice_chance"] == shown["chance"]
    assert sum(each["chance"] for each in candidates) == pytest.approx(1)
    assert (choice["problem"], row["guard"], row["fallback"]) == (None, "passed", None)
    prompt = rebuild(chat, row["kind"], row["context_json"])
    expected = Scorer(reward).score(prompt.token_ids, [tip_token_ids(chat, t) for t in TEXTS])
    assert [each["reward"] for each in candidates] == pytest.approx(expected[0].tolist(), rel=1e-4)
    assert [each["bound"] for each in candidates] == pytest.approx(expected[1].tolist(), rel=1e-4)


def test_texts_with_a_higher_bound_are_shown_more_often_and_all_are_shown(four, store):
    for number in range(150):
        ask(four, f"person {number}")
    rows = rows_of(store)
    order = sorted(choice_in(rows[0])["candidates"], key=lambda each: -each["bound"])
    counts = [sum(row["tip_content"] == each["text"] for row in rows) for each in order]
    assert counts[0] == max(counts)
    assert order[0]["chance"] * 150 == pytest.approx(counts[0], abs=25)


def test_a_version_without_a_reward_writes_one_text(store, chat, tmp_path):
    asked = []

    def answer(prompt, sampling):
        asked.append(sampling.seed)
        return "A tip."

    set_champion(store)
    service = service_of(store, chat, ModelServer({1: answer}), settings=FOUR)
    ask(service)
    close_service(service)
    [row] = rows_of(store)
    assert len(asked) == 1
    assert (row["choice_json"], row["choice_chance"]) == (None, None)


def test_refused_texts_are_neither_shown_nor_kept(store, chat, reward, tmp_path):
    secret = "Write to ada@example.org now."
    texts = (secret, "Open a window.", "", "Tidy the desk.")
    set_champion(store, rewarded(1, reward, tmp_path))
    service = service_of(store, chat, ModelServer({1: in_turns(texts)}), settings=FOUR)
    service.chats["tips:v1"] = chat
    shown = {ask(service, f"person {number}").content for number in range(10)}
    close_service(service)
    assert shown <= {"Open a window.", "Tidy the desk."}
    for row in rows_of(store):
        assert "ada" not in row["choice_json"]
        verdicts = [each["verdict"] for each in choice_in(row)["candidates"]]
        assert verdicts == ["personal data", "passed", "empty", "passed"]
        assert row["guard"] == "passed"  # what became of the tip, as with one text


def test_when_no_text_passes_the_champion_is_asked_again_and_the_verdicts_stay(
    store, chat, reward, tmp_path
):
    set_champion(store)
    set_challenger(store, rewarded(2, reward, tmp_path), share=0.999)
    server = ModelServer({1: "Champion's tip.", 2: ""})
    service = service_of(store, chat, server, settings=FOUR)
    service.chats["tips:v2"] = chat
    assert ask(service).content == "Champion's tip."
    close_service(service)
    [row] = rows_of(store)
    assert (row["fallback"], row["guard"]) == ("blocked", "empty,empty,empty,empty,passed")
    assert row["choice_json"] is None


def broken(folder):
    (folder / "features.onnx").write_bytes(b"no graph")


def absent(folder):
    (folder / "reward.json").unlink()


@pytest.mark.parametrize("fault", [broken, absent])
def test_without_its_reward_the_first_text_that_passes_is_shown_and_the_row_says_so(
    store, chat, reward, tmp_path, fault
):
    copy = tmp_path / "reward"
    copy.mkdir()
    for file in reward.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    fault(copy)
    set_champion(store, rewarded(1, copy, tmp_path))
    service = service_of(store, chat, ModelServer({1: in_turns(("", *TEXTS[:3]))}), settings=FOUR)
    service.chats["tips:v1"] = chat
    assert ask(service).content == TEXTS[0]
    close_service(service)
    [row] = rows_of(store)
    choice = choice_in(row)
    assert (choice["problem"], choice["chosen"], row["choice_chance"]) == ("error", 1, 1.0)
    assert {each["reward"] for each in choice["candidates"]} == {None}


def test_a_reward_that_takes_too_long_is_left_out(four, store, monkeypatch):
    let_go = threading.Event()
    monkeypatch.setattr(Scorer, "score", lambda *_: let_go.wait(20))
    slow = replace(four, settings=FOUR.model_copy(update={"champion_timeout_seconds": 0.3}))
    assert ask(slow).content == TEXTS[0]
    let_go.set()
    [row] = rows_of(store)
    assert choice_in(row)["problem"] == "timeout"


def test_a_reward_that_fails_never_costs_a_tip(four, store, monkeypatch):
    def score(*_):
        raise DataError("no memory")

    monkeypatch.setattr(Scorer, "score", score)
    assert ask(four).content == TEXTS[0]
    assert choice_in(rows_of(store)[0])["problem"] == "error"


def test_the_same_request_gets_the_same_choice(four, store):
    first = ask(four, tip_id="0123456789abcdef")
    assert ask(four, tip_id="0123456789abcdef").content == first.content
    assert len(rows_of(store)) == 1


def test_reward_models_are_freed_with_their_versions(four, reward, tmp_path, store):
    ask(four)
    assert set(four.rewards.scorers) == {"tips:v1"}
    four.rewards.close(rewarded(1, reward, tmp_path))
    four.rewards.close(rewarded(1, reward, tmp_path))
    assert not four.rewards.scorers


def test_in_the_shadow_phase_the_challenger_chooses_unseen(store, chat, reward, tmp_path):
    set_champion(store)
    register(store, rewarded(2, reward, tmp_path))
    rollout.open_rollout(store, 2, settings=SHADOW, salt="salt", now=NOON)
    server = ModelServer({1: "Champion's tip.", 2: in_turns()})
    service = service_of(store, chat, server, settings=FOUR)
    service.chats["tips:v2"] = chat

    async def asking():
        tip = await create_tip(service, TipRequest("person", "focus", MORNING))
        await asyncio.gather(*service.shadow_tasks)
        return tip

    assert asyncio.run(asking()).content == "Champion's tip."
    close_service(service)
    [row] = rows_of(store)
    assert row["choice_json"] is None
    with store.connect() as connection:
        kept = connection.exec_driver_sql("SELECT verdict FROM silent_answers").scalars().all()
    assert kept == ["passed"]


def test_a_challenger_that_fails_leaves_no_choice(store, chat, reward, tmp_path):
    set_champion(store)
    set_challenger(store, rewarded(2, reward, tmp_path), share=0.999)
    service = service_of(store, chat, ModelServer({1: "A tip.", 2: fails}), settings=FOUR)
    service.chats["tips:v2"] = chat
    assert ask(service).content == "A tip."
    close_service(service)
    [row] = rows_of(store)
    assert (row["fallback"], row["choice_json"]) == ("error", None)
