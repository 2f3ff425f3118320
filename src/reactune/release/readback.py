"""Load an exported GGUF file as a transformers model: what was written, not what was meant.

Reads with gguf-py, so that a mistake of our writer shows; the file itself is `gguf.py`'s work.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reactune.errors import ReleaseError
from reactune.release.layout import LAYOUTS, architecture_of, heads_of, number, open_gguf
from reactune.release.layout import tensor_names as names_of

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PretrainedConfig, PreTrainedModel

# Tensors that llama.cpp keeps ready-made and transformers computes from its settings.
COMPUTED = {"rope_freqs.weight"}
TOLERANCE = 1e-6  # of numbers that GGUF keeps as float32


def load_gguf(path: Path, base_folder: Path) -> "PreTrainedModel":
    """Load every tensor of the file, dequantised to float32, into a model of the base's settings.

    Strict: the file's dimensions, positions and epsilon must be those of the base's config.json,
    every tensor must find its place and every weight be filled. Takes less than half the time of
    transformers' own GGUF import, with the same weights (a test compares them).

    Raises:
        ReleaseError: the file is broken, of an unknown architecture, or not of this base.
    """
    import torch
    import transformers

    reader = open_gguf(path)
    config = transformers.AutoConfig.from_pretrained(base_folder)
    _require_same_settings(reader, config, path)
    kind = getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in kind(config).state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    weights = _weights(reader, wanted, path)
    model = kind.from_pretrained(
        None,
        config=config,
        state_dict={name: torch.from_numpy(value) for name, value in weights.items()},
        dtype=torch.float32,
    )
    return model.eval()


def _require_same_settings(reader: "GGUFReader", config: "PretrainedConfig", path: Path) -> None:
    stated = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": _rope_base(config),
    }
    for name, value in stated.items():
        if abs(number(reader, name) - value) > TOLERANCE * abs(value):
            raise ReleaseError(
                f"{path} has {name} = {number(reader, name):g}, the base model has {value:g}: "
                "it was made of another model"
            )


def _rope_base(config: "PretrainedConfig") -> float:
    # Gemma 3 has one entry per kind of attention; llama.cpp states that of the full one.
    positions = config.rope_parameters
    return float(positions.get("full_attention", positions)["rope_theta"])


def _weights(
    reader: "GGUFReader", wanted: Mapping[str, tuple[int, ...]], path: Path
) -> dict[str, NDArray[np.float32]]:
    """Each wanted parameter from its tensor; nothing may be missing or left over."""
    names = names_of(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name not in COMPUTED}
    weights, missing = {}, []
    for name, shape in wanted.items():
        tensor = tensors.pop(names.get_name(name, try_suffixes=(".weight", ".bias")), None)
        if tensor is None or tuple(tensor.shape[::-1].tolist()) != shape:
            missing.append(name)
        else:
            weights[name] = _weight(reader, tensor)
    if missing or tensors:
        raise ReleaseError(
            f"{path} does not fit the base model: {len(missing)} weights are missing or of another "
            f"shape ({', '.join(missing[:3])}), {len(tensors)} are unknown "
            f"({', '.join([*tensors][:3])})"
        )
    return weights


def _weight(reader: "GGUFReader", tensor: Any) -> NDArray[np.float32]:
    from gguf import quants

    weight = np.array(quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    heads = heads_of(reader, tensor.name)
    if heads:
        # llama.cpp keeps a head's rows in pairs, transformers in halves.
        pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
        weight = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))
    if tensor.name.endswith("norm.weight"):
        weight -= np.float32(LAYOUTS[architecture_of(reader)].norm_offset)
    return weight
