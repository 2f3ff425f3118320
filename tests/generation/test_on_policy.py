"""Pairs of a model's own tips, on made-up rewards, and the training on them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from reactune.config.sections import ModelConfig, PromptConfig, ServeConfig, TrainConfig
from reactune.generation.on_policy import (
    LEAST_PAIRS,
    ON_POLICY,
    PAIRS,
    Ranked,
    best_against_worst,
    own_pairs,
    train_on_own_tips,
)
from reactune.generation.samples import Sample
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.records import Prompt
from reactune.reward.features import layers_of, reward_layers
from reactune.reward.model import RewardModel
from reactune.train.trainer import Trained, plan_job
from reactune.train.with_trl import load_model
from reward_fixtures import example


def prompt(number):
    return Prompt("break", "{}", f"prompt {number}", (number,))


def ranked(text, reward, *, low=None, logprob=-1.0):
    return Ranked(Sample(text, logprob), reward, reward - 0.1 if low is None else low)


def chosen(some, *, liked=()):
    found = best_against_worst([prompt(n) for n in range(len(some))], some, liked=liked)
    return [(each.best.text, each.worst.text) for each in found]


def test_the_best_by_the_lower_bound_meets_the_worst_by_the_reward():
    tips = [
        ranked("sure", 1.0, low=0.9),
        ranked("daring", 2.0, low=0.2),
        ranked("worst", -1.0, low=-1.1),
        ranked("unsure", -0.5, low=-3.0),
    ]
    assert chosen([tips]) == [("sure", "worst")]


def test_pairs_below_the_median_margin_are_left_out():
    some = [[ranked(f"good {n}", n), ranked(f"bad {n}", 0.0)] for n in (1.0, 2.0, 3.0)]
    assert chosen(some) == [("good 2.0", "bad 2.0"), ("good 3.0", "bad 3.0")]


def test_an_improbable_text_is_no_best_tip_but_may_be_the_worst():
    usual = [ranked(f"usual {n}", float(n)) for n in range(18)]
    odd = [ranked("odd and rewarded", 99.0, logprob=-9.0), ranked("odd", -9.0, logprob=-8.0)]
    assert chosen([[*usual, *odd]]) == [("usual 17", "odd")]


def test_a_near_copy_of_a_liked_tip_teaches_nothing_new():
    tips = [
        ranked("Drink a glass of water before your call.", 3.0),
        ranked("Stretch your neck for a minute.", 2.0),
        ranked("No.", 0.0),
    ]
    liked = ["Drink a glass of water, before your call"]
    assert chosen([tips], liked=liked) == [("Stretch your neck for a minute.", "No.")]
    assert chosen([tips[:1]], liked=liked) == []


TEXTS = st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=12).map(" ".join)


@given(text=TEXTS, liked=st.lists(TEXTS, max_size=12))
def test_a_copy_shares_four_fifths_of_all_words_with_one_liked_tip(text, liked):
    words = set(text.split())
    others = [set(each.split()) for each in liked]
    is_copy = any(5 * len(words & each) >= 4 * len(words | each) for each in others)
    some = [[ranked(text, 1.0), ranked("no", 0.0)]]
    assert chosen(some, liked=liked) == ([] if is_copy else [(text, "no")])


def test_one_tip_none_and_equal_rewards_give_no_pair():
    assert chosen([]) == []
    assert chosen([[], [ranked("alone", 1.0)], [ranked("a", 1.0), ranked("b", 1.0)]]) == []


@given(st.lists(st.lists(st.floats(-3, 3), max_size=5), max_size=8))
def test_every_pair_is_of_one_prompt_and_its_margin_is_what_the_rewards_say(rewards):
    some = [[ranked(f"{n} {i}", r) for i, r in enumerate(row)] for n, row in enumerate(rewards)]
    prompts = [prompt(n) for n in range(len(some))]
    by_text = {each.sample.text: each.reward for row in some for each in row}
    for pair in best_against_worst(prompts, some, liked=[]):
        assert (
            pair.best.text.split()[0] == pair.worst.text.split()[0] == pair.prompt.text.split()[1]
        )
        assert pair.margin == by_text[pair.best.text] - by_text[pair.worst.text] > 0


# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing.:FutureWarning")
SETTINGS = TrainConfig(batch_size=4, lora_rank=4, lora_alpha=8, checkpoint_steps=5, threads=1)


@pytest.fixture
def first(tiny, rows, tmp_path):
    """An adapter of the tiny model that has changed nothing yet."""
    job = plan_job(
        "kto", rows["kto"], base_folder=tiny, settings=SETTINGS, dtype="float32", max_seconds=60
    )
    load_model(job).save_pretrained(str(tmp_path / "kto" / "adapter"))
    return Trained("kto", tmp_path / "kto" / "adapter", 5, 0.5, 30.0, 1_000, ())


REWARD = RewardModel(np.ones((5, 32), np.float32), np.zeros(5, np.float32), (1,), "cd" * 32)


def own_training(folder, first, base, chat, *, settings=SETTINGS, reward=REWARD):
    return train_on_own_tips(
        folder,
        first,
        base,
        chat,
        [],
        reward,
        serve=ServeConfig(),
        settings=settings,
        progress=lambda job: lambda line: None,
    )


def keep_pairs(folder, rows):
    (folder / PAIRS).parent.mkdir()
    (folder / PAIRS).write_text(json.dumps(rows))


def test_the_training_goes_on_from_the_first_adapter_with_the_tips_that_were_kept(
    tiny_graphs, chat, rows, first, tmp_path
):
    keep_pairs(tmp_path, rows["dpo"][:LEAST_PAIRS])
    trained = own_training(tmp_path, first, tiny_graphs[0], chat)
    assert (trained.method, trained.steps) == (ON_POLICY, 2 * LEAST_PAIRS // 4)
    job = json.loads((tmp_path / ON_POLICY / "job.json").read_text())
    assert (job["method"], Path(job["start"])) == ("dpo", first.adapter)
    before, after = (
        load_file(each / "adapter_model.safetensors") for each in (first.adapter, trained.adapter)
    )
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_without_reward_time_or_pairs_nothing_is_trained(tiny_graphs, chat, rows, first, tmp_path):
    assert own_training(tmp_path, first, tiny_graphs[0], chat, reward=None) is None
    short = SETTINGS.model_copy(update={"time_budget_minutes": 1.4})
    assert own_training(tmp_path, first, tiny_graphs[0], chat, settings=short) is None
    assert not (tmp_path / PAIRS).exists()
    keep_pairs(tmp_path, rows["dpo"][: LEAST_PAIRS - 1])
    assert own_training(tmp_path, first, tiny_graphs[0], chat) is None
    assert not (tmp_path / ON_POLICY).exists()


@pytest.mark.slow
def test_the_real_model_writes_pairs_that_a_reward_tells_apart(tmp_path):
    base = base_model(ModelConfig())
    chat = load_chat(base.folder, PromptConfig())
    layers = reward_layers(layers_of(base.folder))
    direction = np.random.default_rng(4).normal(size=(6, 576 * len(layers))).astype(np.float32)
    reward = RewardModel(direction, np.zeros(6, np.float32), layers, base.digest)
    contexts = [f'{{"free_text":"call {name}"}}' for name in ("Ann", "Bo", "Cem", "Dora")]
    examples = [
        replace(example(n, context=context), kind="break") for n, context in enumerate(contexts)
    ]
    serve = ServeConfig(max_tokens=40)
    found = own_pairs(base, None, chat, examples, reward, serve, seed=3)
    assert 1 <= len(found) <= 4
    assert all(each.margin > 0 and each.best.text != each.worst.text for each in found)
    assert own_pairs(base, None, chat, examples, reward, serve, seed=3) == found
