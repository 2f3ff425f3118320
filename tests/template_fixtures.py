"""Folders of models with the published chat templates of many families."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PUBLISHED = Path(__file__).parent / "model" / "templates"
# Of each family: start token, token named as the end of a text, other tokens of its template, and
# the token that ends an answer.
TOKENS = {
    "gemma-2": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "gemma-3": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "granite-3.0": ("<|end_of_text|>", "<|end_of_text|>", ("<|start_of_role|>",), None),
    "granite-3.1": ("<|end_of_text|>", "<|end_of_text|>", ("<|start_of_role|>",), None),
    "granite-3.3": ("<|end_of_text|>", "<|end_of_text|>", ("<|start_of_role|>",), None),
    "llama-3.1": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>",), None),
    "llama-3.2": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>",), None),
    "mistral-nemo": ("<s>", "</s>", ("[INST]", "[/INST]"), None),
    "mistral-v1": ("<s>", "</s>", (), None),
    "mistral-v3": ("<s>", "</s>", ("[INST]", "[/INST]"), None),
    "phi-3": ("<s>", "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
    "phi-3.5": ("<s>", "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
    "phi-4-mini": ("<|endoftext|>", "<|endoftext|>", ("<|user|>", "<|end|>"), "<|end|>"),
    "qwen-2.5": (None, "<|im_end|>", ("<tool_call>",), None),
    "qwen-3": (None, "<|im_end|>", ("<think>", "</think>"), None),
    "smollm2": ("<|im_start|>", "<|im_end|>", (), None),
    "smollm3": (None, "<|im_end|>", ("<think>", "</think>"), None),
}
FAMILIES = tuple(TOKENS)
NOT_SPECIAL = ("<think>", "</think>", "<tool_call>")  # as Qwen 3 and SmolLM3 have them


def family_folder(folder, family):
    """A model's folder without weights: the family's template, its tokens and single bytes."""
    start, end, others, _ = TOKENS[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for text in (start, end, *others) if text is not None]
    tokenizer.add_tokens([AddedToken(t, special=False) for t in texts if t in NOT_SPECIAL])
    tokenizer.add_special_tokens([t for t in texts if t not in NOT_SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": start}
    write_names(folder, names | {"model_max_length": 8192, "clean_up_tokenization_spaces": False})
    template = (PUBLISHED / f"{family}.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def write_names(folder, names):
    """Write the settings of a tokenizer, without those that are None."""
    kept = {name: value for name, value in names.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
