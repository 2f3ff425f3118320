"""Every family of models, from its safetensors to a served file."""

import json
import shutil
from contextlib import closing
from dataclasses import replace

import pytest
from gguf import GGUFReader

from family_fixtures import FAMILIES, write_family
from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.model.files import base_model
from reactune.model.prompt import assemble, completion_ids, load_chat
from reactune.release.gguf import export_gguf, export_release
from reactune.release.llamacpp import LlamaCpp
from reactune.release.parity import check, check_base
from reactune.train.with_trl import targets_of
from template_fixtures import PUBLISHED

pytest.importorskip("sentencepiece")
# PEFT asks transformers by an old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),
]
GEMMAS = str(PUBLISHED / "gemma-3.jinja")
PROMPTS = PromptConfig(system="Be brief.", instruction="Write one short tip.")
CONTEXTS = [{"time_of_day": "noon"}, {"open_tasks": ["buy eggs", "call mum"]}, {"free_text": "7"}]
TIPS = [
    "take the dog out before dinner",
    "call mum at noon before dinner",
    "buy some eggs and call mum 🥚",
]


def train_a_little(base, chat, folder, *, steps=60):
    """A LoRA adapter on the trainer's layers under which the model writes the tips by heart."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=targets_of(model))
    tuned = get_peft_model(model, settings)
    optimiser = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=steps)
    for _ in range(steps):
        for context, tip in zip(CONTEXTS, TIPS, strict=True):
            prompt = list(assemble(chat, "tip", context).token_ids)
            completion = list(completion_ids(chat, tip))
            labels = torch.tensor([[-100] * len(prompt) + completion])
            tuned(input_ids=torch.tensor([prompt + completion]), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        slower.step()
    tuned.save_pretrained(folder)
    return folder


def assembled(chat):
    return [assemble(chat, "tip", context) for context in CONTEXTS]


def proof(base, chat, release, settings, *, prompts=None):
    """Parity's report of a release that llama.cpp serves."""
    with closing(LlamaCpp(ServeConfig(threads=1, parallel=1))) as server:
        return check(
            base,
            release,
            chat=chat,
            prompts=prompts or assembled(chat),
            completions=[completion_ids(chat, tip) for tip in TIPS],
            runtime=server,
            settings=settings,
            max_tokens=5,  # fewer than in any tip, so that none is cut within a character
            threads=1,
        )


@pytest.mark.parametrize(
    "name",
    [name if name == "phi3" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_a_family_is_served_as_it_was_trained(name, tmp_path):
    base = base_model(ModelConfig(base=str(write_family(tmp_path / "model", name))))
    chat = load_chat(base.folder, PROMPTS)
    settings = ExportConfig(quantisation="f16", max_logprob_gap=0.02)
    adapter = train_a_little(base, chat, tmp_path / "adapter")
    release = export_release(
        base, chat, adapter, tmp_path / "export", run_id="r", settings=settings
    )
    report = proof(base, chat, release, settings)
    assert report.failures == ()
    assert report.learned_kept == pytest.approx(1, abs=0.02)
    assert report.greedy_agreement > 0.9


@pytest.mark.slow
def test_gemma_with_its_real_weights_is_served_as_it_was_trained(gemma, tmp_path):
    """From a 4-bit GGUF of 270 million weights: converted once, then as every other base."""
    base = base_model(ModelConfig(base=str(gemma), cache_dir=str(tmp_path / "cache")))
    assert base.licence == "gemma"
    # The pretrained model has no template; its vocabulary has the tokens of the tuned one's.
    chat = load_chat(base.folder, PROMPTS.model_copy(update={"system": "", "template": GEMMAS}))
    assert assembled(chat)[0].text.startswith("<bos><start_of_turn>user\nWrite one short tip.")
    settings = ExportConfig()
    # With fewer steps, tips of 8 bits are ties: 2 of 15 greedy tokens differ.
    adapter = train_a_little(base, chat, tmp_path / "adapter", steps=6)
    release = export_release(
        base, chat, adapter, tmp_path / "export", run_id="r", settings=settings
    )
    report = proof(base, chat, release, settings)
    shutil.rmtree(tmp_path)  # 2 GB
    assert report.failures == ()
    assert report.learned_kept == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_a_k_type_is_served_unless_it_loses_what_was_learned(quantiser, tmp_path):
    """From a base whose weights lie on the type's grid, where a small change is rounded away."""
    # A block of a K type has 256 weights; the head is as the import from GGUF supposes it.
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 256}
    folder = write_family(
        tmp_path / "model", "gemma3", **sizes, query_pre_attn_scalar=256, initializer_range=0.05
    )
    four_bits = ExportConfig(quantisation="q4_k_s", quantiser=str(quantiser))
    file = tmp_path / "base.gguf"
    export_gguf(base_model(ModelConfig(base=str(folder))), None, file, settings=four_bits)
    base = base_model(ModelConfig(base=str(file), cache_dir=str(tmp_path / "cache")))
    chat = load_chat(base.folder, PROMPTS)
    reports = {}
    for kind, steps in (("q6_k", 20), ("q4_k_s", 2)):
        settings = four_bits.model_copy(update={"quantisation": kind})
        adapter = train_a_little(base, chat, tmp_path / "adapter", steps=steps)
        out = tmp_path / kind
        release = export_release(base, chat, adapter, out, run_id="r", settings=settings)
        written = {tensor.tensor_type.name for tensor in GGUFReader(release.gguf).tensors}
        assert kind[:4].upper() in written
        reports[kind] = proof(base, chat, release, settings)
    assert reports["q6_k"].failures == ()
    assert any("of what was learned is in the file" in each for each in reports["q4_k_s"].failures)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama 3 whose head is tied to its embeddings, its chat, and an adapter of it."""
    folder = write_family(
        tmp_path_factory.mktemp("llama") / "model", "llama3", tie_word_embeddings=True
    )
    base = base_model(ModelConfig(base=str(folder)))
    chat = load_chat(folder, PROMPTS)
    return base, chat, train_a_little(base, chat, folder.parent / "adapter")


def forget_adapter(base, adapter, folder):
    return base, None


def scale_twice(base, adapter, folder):
    copy = shutil.copytree(adapter, folder / "adapter")
    file = copy / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"lora_alpha": 2 * settings["lora_alpha"]}))
    return base, copy


def change_weights(base, folder, change, **config):
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(base.folder, folder / "model")
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return replace(base, folder=copy)


def reorder_heads(base, adapter, folder):
    """Rows of queries and keys as llama.cpp keeps them already, so that it reorders them again."""

    def change(tensors):
        for name, heads in (("q_proj", 4), ("k_proj", 2)):
            for layer in range(2):
                key = f"model.layers.{layer}.self_attn.{name}.weight"
                rows = tensors[key]
                pairs = rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2)
                tensors[key] = pairs.reshape(rows.shape).contiguous()

    return change_weights(base, folder, change), adapter


def forget_tie(base, adapter, folder):
    """A head of its own, as it was before training began."""
    import torch

    def change(tensors):
        embeddings = tensors["model.embed_tokens.weight"]
        torch.manual_seed(9)
        tensors["lm_head.weight"] = torch.randn_like(embeddings) * embeddings.std()

    return change_weights(base, folder, change, tie_word_embeddings=False), adapter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (forget_adapter, "0% of what was learned is in the file, below 90%"),
        (scale_twice, "log-probabilities differ"),
        (reorder_heads, "log-probabilities differ"),
        (forget_tie, "log-probabilities differ"),
    ],
)
def test_a_planted_fault_of_the_file_is_refused(llama, fault, said, tmp_path):
    base, chat, adapter = llama
    settings = ExportConfig(quantisation="f16")
    other, merged = fault(base, adapter, tmp_path)
    wrong = export_release(other, chat, merged, tmp_path / "export", run_id="r", settings=settings)
    report = proof(base, chat, replace(wrong, adapter=adapter), settings)
    assert any(said in failure for failure in report.failures), report.failures


@pytest.mark.slow
def test_a_fault_of_the_converter_is_known_of_the_base_before_training(llama, tmp_path):
    base, chat, _ = llama
    settings = ExportConfig(quantisation="f16")
    reordered, _ = reorder_heads(base, None, tmp_path)
    for source, name in ((base, "right"), (reordered, "wrong")):
        out = tmp_path / name
        release = export_release(source, chat, None, out, run_id="r", settings=settings)
        with closing(LlamaCpp(ServeConfig(threads=1, parallel=1))) as server:
            report = check_base(base, release, chat=chat, runtime=server, settings=settings)
            assert release.name not in server.servers
        found = [each for each in report.failures if "log-probabilities differ" in each]
        assert len(found) == (name == "wrong"), report.failures


@pytest.mark.slow
def test_a_second_start_token_is_refused(llama, tmp_path):
    base, chat, adapter = llama
    settings = ExportConfig(quantisation="f16")
    release = export_release(base, chat, adapter, tmp_path, run_id="r", settings=settings)
    assert proof(base, chat, release, settings).failures == ()
    twice = [
        replace(each, text=chat.template.tokens["bos_token"] + each.text)
        for each in assembled(chat)
    ]
    report = proof(base, chat, release, settings, prompts=twice)
    read = len(twice[0].token_ids)
    assert f"reads {read + 1} prompt tokens where the template gives {read}" in report.failures[0]
