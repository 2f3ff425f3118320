"""Tips of the real small model, and a judge who compares its adapters by what people like."""

import random
from dataclasses import replace

import pytest

from reactune.config.sections import GateConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.evaluate.gate import GateReport, ask_judge, judge_line, with_judge
from reactune.generation import judge
from reactune.generation.samples import write_samples
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, rebuild
from reactune.reward.cache import reward_rows
from reactune.reward.comparisons import Reactions
from reactune.reward.features import layers_of, reward_layers
from reactune.reward.fit import dense_candidates, standardised, validate
from reactune.reward.model import assemble_model, rewards
from reward_fixtures import example

SERVE = ServeConfig(max_tokens=40)
LIKED = ("Drink a glass of water now.", "Walk for ten minutes.", "Stretch your back.")
DISLIKED = ("As an AI I cannot help.", "The user wants a tip.", "Tip: tip: tip, a tip of tips.")


@pytest.fixture(scope="module")
def base():
    return base_model(ModelConfig())


@pytest.fixture(scope="module")
def chat(base):
    return load_chat(base.folder, PromptConfig())


@pytest.fixture(scope="module")
def prompts(chat):
    return [
        rebuild(chat, "break", f'{{"free_text":"call {name}"}}') for name in ("Ann", "the bank")
    ]


@pytest.fixture(scope="module")
def drawn(base, chat, prompts):
    return write_samples(base, None, chat, prompts, SERVE, count=4, seed=3)


def test_tips_are_whole_different_and_such_as_a_service_shows(drawn, chat):
    assert [len(some) <= 4 for some in drawn] == [True, True]
    texts = [each.text for some in drawn for each in some]
    assert texts
    for some in drawn:
        assert len({each.text for each in some}) == len(some)
    assert all(text and text == text.strip() and chat.stop not in text for text in texts)
    assert all(each.logprob < 0 for some in drawn for each in some)


def test_what_the_guard_refuses_is_left_out(base, chat, prompts, drawn):
    words = tuple(max(each.text.split(), key=len) for some in drawn for each in some)
    strict = SERVE.model_copy(update={"unsafe_texts": words})
    assert write_samples(base, None, chat, prompts, strict, count=4, seed=3) == [(), ()]


def people(count, *, start):
    """Reactions of people who like an instruction and dislike talk about the tip."""
    draw = random.Random(start)
    found = []
    for number in range(count):
        liked = draw.random() < 0.5
        text = draw.choice(LIKED if liked else DISLIKED)
        context = f'{{"free_text":"case {start + number}"}}'
        found.append(
            replace(
                example(start + number, user=f"user-{start + number // 3}", context=context),
                label=liked if draw.random() < 0.9 else not liked,
                tip=f"{text} {draw.randrange(10_000)}",
            )
        )
    return found


def against(report, model):
    return next(row for row in report.rows if row.model == model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing.:FutureWarning")
def test_a_judge_of_the_real_model_compares_what_its_adapters_write(
    base, chat, tmp_path, monkeypatch
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for name, value in (("PROMPTS", 5), ("REFITS", 20)):
        monkeypatch.setattr(judge, name, value)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype="float32")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    layers = reward_layers(layers_of(base.folder))
    taught = people(150, start=0)
    rows = reward_rows(chat, taught)
    features = judge.features_of_rows(base, rows, layers, "teacher")
    scaled, mean, deviation = standardised(features)
    validated = validate(Reactions(taught), dense_candidates(scaled))
    reward = assemble_model(
        [validated.whole] * 2,
        1.0,
        mean,
        deviation,
        layers=layers,
        base_digest=base.digest,
        facts={},
    )
    assert rewards(reward, features)[0].std() > 0
    report = ask_judge(
        base,
        chat,
        people(150, start=1_000),
        taught,
        {"tuned": tmp_path},
        reward,
        serve=SERVE,
        settings=GateConfig(),
    )
    assert report.accuracy.is_above_chance
    assert [row.model for row in report.rows] == ["base", "few-shot"]
    assert [row.model for row in report.writing] == ["tuned", "base", "few-shot"]
    by_name = {row.model: row.reward for row in report.writing}
    assert against(report, "base").teacher_gain == pytest.approx(by_name["tuned"] - by_name["base"])
    # An adapter that was not trained yet is the base: neither certainly better nor worse.
    win_rate = against(report, "base").beside.win_rate
    assert win_rate.low <= 0.5 <= win_rate.high
    assert all(0 < row.shown <= 1 and row.words > 1 and row.logprob < 0 for row in report.writing)
    told = judge_line(with_judge(GateReport((), 0, 0, ()), report, GateConfig()))
    assert told.startswith("win rate of its tips by a judge over base ")
