"""Features of tips: those of a plain pass of the model, however rows are put together."""

import numpy as np
import pytest

from reactune.reward.features import layers_of, open_layers, reward_layers, tip_features

LAYER = 1


@pytest.fixture(scope="module")
def some_rows(tiny):
    draw = np.random.default_rng(3)
    prompts = [tuple(draw.integers(5, 900, size).tolist()) for size in (3, 9, 5)]
    prompts = [(11, 12, 13, *prompt) for prompt in prompts]
    tips = [tuple(draw.integers(5, 900, 2 + n % 7).tolist()) for n in range(40)]
    return [(prompts[n % 3 if n < 30 else 0], tip) for n, tip in enumerate(tips)]


def direct(folder, prompt, tip):
    """The mean over a tip's tokens of hidden states over their root mean square, by itself."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(torch.tensor([[*prompt, *tip]]), output_hidden_states=True).hidden_states
    hidden = states[LAYER][0, len(prompt) :].double().numpy()
    return (hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)).mean(0)


def test_features_are_those_of_each_tip_alone_in_its_prompt(tiny, some_rows):
    with open_layers(tiny, LAYER, dtype="float32") as model:
        found = tip_features(model, some_rows, [LAYER], batch_tokens=100)
    assert found.shape == (40, 32)
    for place in (0, 1, 17, 39):
        assert found[place] == pytest.approx(direct(tiny, *some_rows[place]), abs=2e-5)


def test_neither_the_order_nor_the_batch_changes_the_features(tiny, some_rows):
    with open_layers(tiny, LAYER, dtype="float32") as model:
        once = tip_features(model, some_rows, [LAYER])
        backwards = tip_features(model, some_rows[::-1], [LAYER], batch_tokens=40)
        (alone,) = tip_features(model, some_rows[7:8], [LAYER])
    assert backwards[::-1] == pytest.approx(once, abs=2e-5)
    assert alone == pytest.approx(once[7], abs=2e-5)


def test_a_tip_sees_its_prompt(tiny, some_rows):
    prompt, tip = some_rows[0]
    with open_layers(tiny, LAYER, dtype="float32") as model:
        one, other = tip_features(model, [(prompt, tip), ((*prompt, 700), tip)], [LAYER])
    assert not np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2"])
def test_other_families_are_cut_and_read_alike(family, tmp_path):
    """Their lists of layers have other names; the reading by itself is that of all layers."""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    sizes = {
        "vocab_size": 99,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    more = {} if family == "gpt2" else {
        "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **sizes, **more)
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    rows = [((1, 2, 3, 4), (5, 6, 7)), ((1, 2, 3, 4), (8, 9)), ((1, 2, 9), (5, 6, 7, 8))]
    with open_layers(tmp_path, 2, dtype="float32") as cut:
        found = tip_features(cut, rows, [1, 2])
    for features, (prompt, tip) in zip(found, rows, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([[*prompt, *tip]]), output_hidden_states=True).hidden_states
        hidden = torch.stack([states[1], states[2]])[:, 0, len(prompt) :].double().numpy()
        expected = (hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-6)).mean(1)
        assert features == pytest.approx(expected.reshape(-1), abs=2e-5)


def test_no_rows_have_no_features(tiny):
    with open_layers(tiny, LAYER) as model:
        assert tip_features(model, [], [LAYER, LAYER]).shape == (0, 64)


def test_layers_up_to_the_middle_are_read_together(tiny):
    assert reward_layers(30) == (8, 12, 16)
    assert reward_layers(layers_of(tiny)) == (1,)
