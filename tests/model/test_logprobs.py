import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reactune.model.logprobs import batches, best_dtype, common_prefix_length, open_model, score
from tiny_model import tiny_rows


@pytest.mark.parametrize(
    ("kind", "special"),
    [
        ("Granite", {"logits_scaling": 3.0}),
        ("Gemma2", {"final_logit_softcapping": 2.0, "head_dim": 16}),
        ("Cohere", {"logit_scale": 0.3}),
    ],
)
def test_what_a_family_does_after_its_head_is_in_the_scores(kind, special):
    import transformers

    torch.manual_seed(4)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5}
    config = getattr(transformers, f"{kind}Config")(**sizes, **heads, **special, pad_token_id=0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    rows = [((1, 2, 3, 4), (5, 6)), ((1, 2, 9), (7, 8, 10)), ((1, 2, 3, 4, 5, 6), (11,))]
    scores = score(model, rows)
    for (prompt, completion), ours in zip(rows, scores, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        theirs = logits.log_softmax(-1)[range(len(completion)), list(completion)]
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_scores_are_what_the_whole_row_gives_without_batches_or_caches(tiny):
    rows = [(row["prompt_ids"], row["completion_ids"]) for row in tiny_rows(tiny, count=6)["kto"]]
    with open_model(tiny, threads=1) as model:
        scores = score(model, rows, batch_tokens=300)
        for (prompt, completion), ours in zip(rows, scores, strict=True):
            ids = torch.tensor([list(prompt) + list(completion)])
            with torch.inference_mode():
                logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None])
            np.testing.assert_allclose(ours, expected[:, 0].numpy(), atol=1e-4)


@pytest.fixture
def faint(tiny, tmp_path):
    """An adapter whose changes are a tenth of the distance between two numbers of bfloat16."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(5)
    with open_model(tiny, threads=1) as model:
        tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
        changes = {}
        for name, layer in tuned.named_modules():
            if isinstance(layer, LoraLayer):
                size = layer.weight.abs().mean() * 2**-9 / 10
                torch.nn.init.normal_(layer.lora_B["default"].weight)
                spread = layer.get_delta_weight("default").std()
                layer.lora_B["default"].weight.data *= size / spread
                short = name.removeprefix("base_model.model.")
                changes[short] = layer.get_delta_weight("default").detach().clone()
        tuned.save_pretrained(tmp_path)
    return tmp_path, changes


def weights_of(folder, adapter, names, dtype):
    with open_model(folder, adapter, dtype=dtype, threads=1) as model:
        return {name: model.get_submodule(name).weight.detach().float() for name in names}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_change_that_is_smaller_than_bfloat16_can_hold_is_kept_in_the_mean(tiny, faint):
    adapter, changes = faint
    before, exact, rounded, again = (
        weights_of(tiny, *each)
        for each in (
            (None, changes, "bfloat16"),
            (adapter, changes, "float32"),
            (adapter, changes, "bfloat16"),
            (adapter, changes, "bfloat16"),
        )
    )
    whole = weights_of(tiny, None, changes, "float32")
    for name, change in changes.items():
        torch.testing.assert_close(exact[name] - whole[name], change, atol=1e-7, rtol=0)
        kept = (rounded[name] - before[name]).flatten() @ change.flatten() / (change**2).sum()
        # Five standard errors of the draw at most; rounded to the nearest, it is below 0.1.
        assert abs(kept - 1) < 0.4
        assert torch.equal(rounded[name], again[name])


def test_no_rows_give_no_scores(tiny):
    with open_model(tiny, threads=1) as model:
        assert score(model, []) == []


ids = st.lists(st.integers(0, 3), min_size=1, max_size=8)


@given(st.lists(ids, min_size=1, max_size=6))
def test_the_common_prefix_is_shared_by_all_and_leaves_a_token_of_each(prompts):
    length = common_prefix_length(prompts)
    assert all(prompt[:length] == prompts[0][:length] for prompt in prompts)
    assert length < min(map(len, prompts))
    shortest = min(map(len, prompts))
    if length < shortest - 1:
        assert len({prompt[length] for prompt in prompts}) > 1


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=20), st.integers(1, 40))
def test_every_row_is_in_one_batch_and_batches_fit(rows, limit):
    made = list(batches(rows, 0, limit))
    assert sorted(index for batch in made for index in batch) == list(range(len(rows)))
    for batch in made:
        longest = max(len(rows[i][0]) + len(rows[i][1]) for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= limit


@pytest.mark.slow
def test_the_type_is_the_same_in_every_process_of_a_machine():
    ask = "from reactune.model.logprobs import best_dtype; print(best_dtype())"
    answers = [
        subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert {answer.stdout.strip() for answer in answers} == {best_dtype()}
