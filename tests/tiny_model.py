"""A very small Llama with the real tokenizer: real training in seconds."""

import shutil

import pytest

from reactune.config.sections import ModelConfig, PromptConfig
from reactune.model.files import BaseModel, base_model
from reactune.model.prompt import completion_ids, load_chat, rebuild
from reactune.reward.graph import graph_of
from sharing import made_once

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of the model."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_graphs(tiny):
    """The tiny model as a base, and a cache folder with the graph of its first layer."""
    base = BaseModel("tiny", tiny, None, "cd" * 32, "unknown")
    return base, made_once("graphs", lambda folder: graph_of(base, (1,), cache=folder))


@pytest.fixture(scope="session")
def rows(tiny):
    """Rows to train it on, by method."""
    return tiny_rows(tiny)


def make_tiny_model(folder):
    """Write a random two-layer Llama with SmolLM2's tokenizer into the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(base_model(ModelConfig()).folder / name, folder / name)
    return folder


def tiny_rows(folder, *, count=24):
    """Rows of all three methods: short liked tips, long disliked ones."""
    chat = load_chat(folder, PromptConfig())
    judged, paired = [], []
    for number in range(count):
        prompt = list(rebuild(chat, "focus", f'{{"free_text": "task {number}"}}').token_ids)
        liked = list(completion_ids(chat, f"Do task {number} for ten minutes."))
        disliked = list(completion_ids(chat, f"It is important to remember that {number} is long."))
        judged.append({"prompt_ids": prompt, "completion_ids": liked, "label": True})
        judged.append({"prompt_ids": prompt, "completion_ids": disliked, "label": False})
        paired.append({"prompt_ids": prompt, "chosen_ids": liked, "rejected_ids": disliked})
    return {"sft": [row for row in judged if row["label"]], "kto": judged, "dpo": paired}
