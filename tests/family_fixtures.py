"""Tiny models of the families that people bring: transformers' own classes, random weights.

Each has what is special about its family (scaled positions, fused projections, norms of queries,
soft caps, multipliers, a sliding window), and the kind of tokenizer that llama.cpp's converter
expects of it.
"""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from gguf_fixtures import TEMPLATE
from reactune.config.sections import ModelConfig
from reactune.model.files import base_model

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,  # so that a greedy answer is no tie
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32}
# How Qwen and Llama 3 cut a text, from their published tokenizers.
SPLIT = {
    "qwen2.5": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
# Family = class of transformers, its special settings, and whether it has a sentencepiece model.
FAMILIES = {
    "llama3": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}, False),
    "qwen2.5": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}, False),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 32}, False),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {"num_hidden_layers": 4, "tie_word_embeddings": True},  # the fourth has no positions
        False,
    ),
    "granite": (
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
        False,
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": None, "head_dim": 16}, True),
    "phi3": ("Phi3ForCausalLM", {"original_max_position_embeddings": 2048}, True),
    "gemma2": ("Gemma2ForCausalLM", GEMMA, True),
    "gemma3": ("Gemma3ForCausalLM", GEMMA, True),
    # Their linear layers have names of their own, or hold several in one.
    "gpt-neox": ("GPTNeoXForCausalLM", {}, False),
    "falcon": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
        False,
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 512},
        False,
    ),
    # Experts.
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        },
        False,
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}, True),
}


def write_family(folder, name, **changes):
    """Write config.json, safetensors and tokenizer of a family's tiny model; the folder.

    `changes` are settings of its config that differ from those of the family.
    """
    import torch
    import transformers

    kind, special, has_pieces = FAMILIES[name]
    if has_pieces:
        write_pieces(folder, adds_spaces=not name.startswith("gemma"))
    else:
        folder.mkdir(parents=True)
        write_bytes_tokenizer(folder, split=SPLIT.get(name))
        write_names(folder, tokenizer_class="PreTrainedTokenizerFast", bos_token="<|im_start|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stop = tokenizer.token_to_id("<|im_end|>")
    ids = {"bos_token_id": 1, "eos_token_id": stop, "pad_token_id": stop}
    size = {"vocab_size": tokenizer.get_vocab_size()}
    torch.manual_seed(len(name))
    model = getattr(transformers, kind)
    config = model.config_class(**{**SIZES, **size, **ids, **special, **changes})
    model(config).save_pretrained(folder)
    return folder


def write_bytes_tokenizer(folder, *, split):
    """SmolLM2's tokenizer; with `split`, texts are cut by that expression and not by its rule."""
    file = base_model(ModelConfig()).folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    if split:
        bytes_only = {**content["pre_tokenizer"]["pretokenizers"][-1], "use_regex": False}
        steps = [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
            bytes_only,
        ]
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def write_pieces(folder, *, adds_spaces):
    """A small sentencepiece model and the tokenizer.json that is read like it.

    `adds_spaces`: a text begins with a space after every special token, as Llama 2 began it.
    """
    from transformers import LlamaTokenizer

    shutil.copytree(pieces(), folder)
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    steps = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    if adds_spaces:
        steps.insert(0, {"type": "Prepend", "prepend": "▁"})
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    content["pre_tokenizer"] = None
    for token in content["added_tokens"]:
        token["special"] = True
    file.write_text(json.dumps(content), encoding="utf-8")
    write_names(
        folder,
        tokenizer_class="LlamaTokenizer",
        bos_token="<s>",
        unk_token="<unk>",
        add_bos_token=False,
        add_prefix_space=adds_spaces,
    )


def write_names(folder, **names):
    """Write tokenizer_config.json."""
    names |= {"eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


@functools.cache
def pieces():
    """A folder with a sentencepiece model of a few hundred pieces."""
    import sentencepiece

    folder = Path(tempfile.mkdtemp(prefix="reactune-pieces-"))
    atexit.register(shutil.rmtree, folder)
    words = "take the dog out before dinner and call mum at noon buy some eggs write one short tip"
    lines = [f"{words} {word} {word}s" for word in words.split()] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        control_symbols=["<|im_start|>", "<|im_end|>", "<|endoftext|>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder
