"""A trained LoRA adapter as plain numbers: two thin matrices and a scale per weight.

Reads what PEFT writes, without PEFT; refuses every kind whose effect is more than W + s * B A.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reactune.errors import ReleaseError

# Settings of PEFT's LoraConfig under which the adapter is more than W + s * B A, or A and B belong
# to other base weights than the ones on disk.
REFUSED = (
    "alora_invocation_tokens", "arrow_config", "corda_config", "fan_in_fan_out", "kasa_config",
    "layer_replication", "lora_bias", "lora_ga_config", "megatron_config", "modules_to_save",
    "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora",
    "use_qalora", "velora_config",
)  # fmt: skip
# Initialisations that leave the base weights as they are.
STARTS = (True, False, "gaussian", "orthogonal", "eva")
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight W (outputs, inputs): scale * up @ down."""

    down: NDArray[np.float32]
    up: NDArray[np.float32]
    scale: float


def read_lora(folder: Path) -> dict[str, LowRank]:
    """Read a PEFT adapter: name of the module in the base model = what is added to its weight.

    Scales follow PEFT: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv:2312.03732), where
    `alpha_pattern` and `rank_pattern` override alpha and r by module.

    Raises:
        ReleaseError: a file is missing or broken, or it is more than plain LoRA: DoRA, biases,
            whole modules, embeddings, an initialisation that changed the base.
    """
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    missing = [file.name for file in (config_file, weights_file) if not file.is_file()]
    if missing:
        raise ReleaseError(f"{folder} is no adapter: {', '.join(missing)} missing; train it anew")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReleaseError(
            f"{config_file} is not JSON ({error}); train the adapter anew"
        ) from error
    _require_plain(config, folder)
    parts = _parts(_read_tensors(weights_file), folder)
    return {module: _low_rank(module, config, *parts[module]) for module in sorted(parts)}


def _require_plain(config: Mapping[str, Any], folder: Path) -> None:
    used = [name for name in REFUSED if config.get(name)]
    if config.get("peft_type") != "LORA":
        used.append(f"peft_type = {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        used.append(f"bias = {config['bias']!r}")
    if config.get("init_lora_weights", True) not in STARTS:
        used.append(f"init_lora_weights = {config['init_lora_weights']!r}")
    if used:
        raise ReleaseError(
            f"{folder} is more than plain LoRA ({', '.join(used)}) and cannot be merged here; "
            "train without it"
        )


def _parts(
    tensors: Mapping[str, NDArray[np.float32]], folder: Path
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    names = {name: TENSOR_NAME.fullmatch(name) for name in tensors}
    foreign = [name for name, match in names.items() if match is None]
    modules = {match["module"] for match in names.values() if match is not None}
    wanted = {_tensor_name(module, part) for module in modules for part in "AB"}
    odd = foreign + sorted(wanted - tensors.keys())
    if odd or not modules:
        raise ReleaseError(
            f"{folder}: {_some(odd) or 'no LoRA matrices'}: not the pairs of lora_A and lora_B of "
            "plain LoRA on linear layers; train without embeddings, biases and whole modules"
        )
    return {
        module: (tensors[_tensor_name(module, "A")], tensors[_tensor_name(module, "B")])
        for module in modules
    }


def _tensor_name(module: str, part: str) -> str:
    return f"base_model.model.{module}.lora_{part}.weight"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _low_rank(
    module: str,
    config: Mapping[str, Any],
    down: NDArray[np.float32],
    up: NDArray[np.float32],
) -> LowRank:
    rank = _by_module(config.get("rank_pattern") or {}, module, config["r"])
    alpha = _by_module(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    if down.ndim != 2 or up.ndim != 2 or not rank == down.shape[0] == up.shape[1]:
        raise ReleaseError(
            f"adapter of {module}: rank {rank} in adapter_config.json, but matrices of "
            f"{down.shape} and {up.shape}; the two files are not of one training"
        )
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise ReleaseError(f"adapter of {module} holds NaN or infinity; train it anew")
    return LowRank(down, up, alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _by_module(pattern: Mapping[str, Any], module: str, default: float) -> float:
    for key in pattern:
        if re.match(rf"(.*\.)?({key})$", module):
            return float(pattern[key])
    return default


def _read_tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ReleaseError(f"{file} is broken ({error}); train the adapter anew") from error
    return {name: _floats(name, tensor) for name, tensor in stored}


def _floats(name: str, tensor: Mapping[str, Any]) -> NDArray[np.float32]:
    # NumPy has no bfloat16: it is the upper half of a float32.
    readings = {
        "F32": lambda data: np.frombuffer(data, "<f4").astype(np.float32),
        "F16": lambda data: np.frombuffer(data, "<f2").astype(np.float32),
        "BF16": lambda data: (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32),
    }
    if tensor["dtype"] not in readings:
        raise ReleaseError(f"adapter tensor {name} is of type {tensor['dtype']}, not a float")
    return readings[tensor["dtype"]](tensor["data"]).reshape(tensor["shape"])
