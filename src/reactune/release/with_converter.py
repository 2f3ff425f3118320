"""The child that runs llama.cpp's converter: `python -m reactune.release.with_converter`.

It reads one JSON object: the converter's `arguments`, and `vocabulary`, a GGUF file whose tokenizer
is to be copied, or null. The folders of the converter come first in PYTHONPATH, so the package
`gguf` is the converter's here.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from reactune.process import die_with_parent

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How a tokenizer cuts a text before it merges = llama.cpp's name for it.
SPLITS = {
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
    (("Split", WORDS + r"\p{N}{1,3}" + REST), ("ByteLevel", False)): "llama-bpe",
    (("Split", WORDS + r"\p{N}" + REST), ("ByteLevel", False)): "qwen2",
}


def main() -> int:
    """Convert as the arguments say; an error ends the process as it ends the converter."""
    die_with_parent()
    job = json.loads(sys.stdin.read())
    import convert_hf_to_gguf as converter
    from conversion.base import ModelBase, TextModel

    ModelBase.load_hparams = staticmethod(with_older_names(ModelBase.load_hparams))
    TextModel.get_vocab_base_pre = knowing_splits(TextModel.get_vocab_base_pre)
    if job["vocabulary"]:
        class_of = converter.get_model_class
        converter.get_model_class = lambda name, mmproj=False: keeping_vocabulary(
            class_of(name, mmproj), job["vocabulary"]
        )
    sys.argv = ["convert_hf_to_gguf", *job["arguments"]]
    converter.main()
    return 0


def with_older_names(load: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The converter's reading of config.json, with names that transformers 5 no longer writes."""

    def load_hparams(*arguments: Any, **named: Any) -> dict[str, Any]:
        config = load(*arguments, **named)
        rope = config.get("rope_parameters") or {}
        config.setdefault("rotary_pct", rope.get("partial_rotary_factor", 1.0))
        if "n_positions" in config:
            config.setdefault("n_ctx", config["n_positions"])
        return config

    return load_hparams


def knowing_splits(recognise: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    """The converter's recognition of a tokenizer, and ours where it fails.

    It knows tokenizers by the token ids of one text, so any change of the vocabulary makes one
    unknown to it; how the text is cut is what llama.cpp has to be told.
    """

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return recognise(self, tokenizer)
        except NotImplementedError:
            name = SPLITS.get(split_of(json.loads(tokenizer.backend_tokenizer.to_str())))
            if name is None:
                raise
            return name

    return get_vocab_base_pre


def split_of(tokenizer: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The steps by which a tokenizer.json cuts a text, each with what decides where."""
    rule = tokenizer["pre_tokenizer"] or {}
    decides = {
        "Split": lambda step: step["pattern"].get("Regex"),
        "Digits": lambda step: step["individual_digits"],
        "ByteLevel": lambda step: step["use_regex"],
    }
    return tuple(
        (step["type"], decides.get(step["type"], str)(step))
        for step in rule.get("pretokenizers", [rule] if rule else [])
    )


def keeping_vocabulary(model: Any, file: str) -> Any:
    """The converter's class of a model, which copies the tokenizer of a GGUF file as it is.

    A tokenizer that was made from a GGUF file need not be one that the converter recognises.
    """
    from gguf import GGUFReader, GGUFValueType

    def set_vocab(self: Any) -> None:
        for name, field in GGUFReader(file).fields.items():
            if name.startswith("tokenizer."):
                kind = field.types[0]
                inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
                self.gguf_writer.add_key_value(name, field.contents(), kind, sub_type=inner)

    model.set_vocab = set_vocab
    return model


if __name__ == "__main__":
    sys.exit(main())
