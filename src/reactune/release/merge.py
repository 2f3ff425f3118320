"""A base model's folder with an adapter merged in: safetensors in, safetensors out.

PEFT merges each layer by itself, on one weight at a time; no model is ever loaded whole. What an
adapter changed is written as float32, because bfloat16 would round away much of a small change.
"""

import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from reactune.errors import ReleaseError

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Types of a weight that can be merged, as PyTorch names them.
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Settings of PEFT's LoraConfig under which more than the weights of layers was trained, or the
# adapter belongs to other base weights than the ones on disk.
REFUSED = (
    "alora_invocation_tokens", "arrow_config", "layer_replication", "lora_bias", "modules_to_save",
    "target_parameters", "trainable_token_indices",
)  # fmt: skip
# Initialisations that leave the base weights as they are.
STARTS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, its type and shape, and its first and last byte there."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a model's safetensors, by name; only the headers of the files are read.

    Raises:
        ReleaseError: a file is missing or broken.
    """
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder):
        header, start = _header(file)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            tensors[name] = Stored(
                file, entry["dtype"], tuple(entry["shape"]), start + first, start + last
            )
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights: those of its index, or the only one.

    Raises:
        ReleaseError: one is missing.
    """
    index = folder / INDEX
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ReleaseError(
            f"{folder} lacks {', '.join(missing)}; fetch the model again, with weights as "
            "model.safetensors or in the parts that its index names"
        )
    return files


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The tensors that a safetensors file states, and where their bytes begin.

    Format: https://github.com/huggingface/safetensors#format
    """
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            if size > file.stat().st_size:
                raise ValueError(f"a header of {size} bytes")
            header: dict[str, Any] = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        end = 8 + size + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if file.stat().st_size != end:
            raise ValueError(f"{file.stat().st_size} bytes where {end} are stated")
    except (OSError, ValueError, KeyError, struct.error, OverflowError) as error:
        raise ReleaseError(f"{file} is no whole safetensors file ({error}); fetch it again") from (
            error
        )
    return header, 8 + size


def merge(base: Path, adapter: Path | None, out: Path) -> int:
    """Write the base with the adapter merged in to a new folder; the number of changed weights.

    What does not change is linked, not copied. Without an adapter that is everything.

    Raises:
        ReleaseError: the adapter is broken or of another model, or cannot be merged.
    """
    changes = {} if adapter is None else lora_layers(base, adapter)
    tensors = stored_tensors(base)
    absent = sorted(name for name in changes if name not in tensors)
    if absent:
        raise ReleaseError(
            f"{adapter} changes {_some(absent)}, of which {base} holds no weights (tied, or of "
            "another model); train without it"
        )
    out.mkdir(parents=True)
    touched = {tensors[name].file.name for name in changes}
    for path in base.iterdir():
        if path.is_file() and path.name not in touched and path.suffix != ".gguf":
            (out / path.name).symlink_to(path.resolve())
    for name in sorted(touched):
        _write_merged(base / name, out / name, tensors, changes)
    return len(changes)


def lora_layers(base: Path, adapter: Path) -> dict[str, Any]:
    """PEFT's layers of an adapter, by the name of the weight that each changes.

    They hang on a model without memory: each weight is one number, repeated.

    Raises:
        ReleaseError: the adapter is broken, of another model, or more than PEFT can merge.
    """
    from peft import LoraConfig, PeftModel, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    tensors = _read_adapter(adapter)
    _require_same_vocabulary(tensors, base, adapter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = LoraConfig.from_pretrained(str(adapter))
            tuned = PeftModel(_without_memory(base), settings)
            trained = {name: value for name, value in tensors.items() if ".lora_" in name}
            loaded = set_peft_model_state_dict(tuned, trained)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"{adapter} does not fit {base} ({str(error).splitlines()[0]}): it was trained on "
            "another model, or with another PEFT; train it anew"
        ) from error
    lacking = [name for name in loaded.missing_keys if ".lora_" in name]
    if lacking or loaded.unexpected_keys or not trained:
        raise ReleaseError(
            f"{adapter} does not fit {base}: {_some(lacking) or 'nothing'} missing, "
            f"{_some(loaded.unexpected_keys) or 'nothing'} unknown; train it anew"
        )
    model = tuned.get_base_model()
    found = {
        f"{name}.weight": layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    _require_one_place(model, found, adapter)
    return found


def _read_adapter(adapter: Path) -> dict[str, "Tensor"]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    missing = [n for n in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if not (adapter / n).is_file()]
    if missing:
        raise ReleaseError(f"{adapter} is no adapter: {', '.join(missing)} missing; train it anew")
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = load_file(adapter / ADAPTER_WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise ReleaseError(f"{adapter} is broken ({error}); train the adapter anew") from error
    _require_mergeable(config, adapter)
    return tensors


def _require_same_vocabulary(tensors: Mapping[str, "Tensor"], base: Path, adapter: Path) -> None:
    """PEFT may save the base's embeddings beside the adapter; then they must be the base's."""
    stored = stored_tensors(base)
    for saved, tensor in tensors.items():
        name = saved.removeprefix("base_model.model.").replace(".base_layer", "")
        if ".lora_" in saved or name not in stored or stored[name].shape == tuple(tensor.shape):
            continue
        raise ReleaseError(
            f"{adapter} holds {name} of {tuple(tensor.shape)}, {base} has {stored[name].shape}: "
            "its vocabulary was changed; train without new tokens"
        )


def _require_mergeable(config: Mapping[str, Any], adapter: Path) -> None:
    used = [name for name in REFUSED if config.get(name)]
    if config.get("peft_type") != "LORA":
        used.append(f"peft_type = {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        used.append(f"bias = {config['bias']!r}")
    if config.get("init_lora_weights", True) not in STARTS:
        used.append(f"init_lora_weights = {config['init_lora_weights']!r}")
    if used:
        raise ReleaseError(
            f"{adapter} is more than LoRA on the weights of layers ({', '.join(used)}) and cannot "
            "be merged; train without it"
        )


def _without_memory(base: Path) -> Any:
    """A model of the base's class whose weights take no memory: one number each, repeated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            flat = torch.zeros(()).expand(weight.shape)
            module.register_parameter(name, torch.nn.Parameter(flat, requires_grad=False))
    return model


def _require_one_place(model: Any, layers: Mapping[str, Any], adapter: Path) -> None:
    """A weight that two layers share cannot be changed for one of them."""
    embeddings = model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and any(layer is embeddings for layer in layers.values()):
        raise ReleaseError(
            f"{adapter} changes the embeddings, which this base shares with its output; train "
            "without embed_tokens"
        )


def _write_merged(
    source: Path, out: Path, tensors: Mapping[str, Stored], changes: Mapping[str, Any]
) -> None:
    """Write a safetensors file anew, tensor by tensor, with the changed ones as float32."""
    own = {name: each for name, each in tensors.items() if each.file == source}
    header, offset = {}, 0
    for name, each in own.items():
        size = each.end - each.start
        kind = each.kind
        if name in changes:
            kind, size = "F32", 4 * prod(each.shape)
        header[name] = {
            "dtype": kind, "shape": each.shape, "data_offsets": [offset, offset + size]
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with source.open("rb") as read, out.open("wb") as write:
        write.write(struct.pack("<Q", len(text)) + text)
        for name, each in own.items():
            if name in changes:
                write.write(_merged(read, name, each, changes[name]))
            else:
                _copy(read, write, each)


def _copy(read: BinaryIO, write: BinaryIO, each: Stored, *, piece: int = 2**24) -> None:
    read.seek(each.start)
    for first in range(each.start, each.end, piece):
        write.write(read.read(min(piece, each.end - first)))


def _merged(read: BinaryIO, name: str, each: Stored, layer: Any) -> Any:
    """The bytes of one weight after PEFT's own merge."""
    import torch

    if each.kind not in FLOATS:
        raise ReleaseError(
            f"{each.file}: {name} is kept as {each.kind}, and only {', '.join(FLOATS)} can be "
            "merged; take the model's unquantised weights as [model] base"
        )
    read.seek(each.start)
    data = bytearray(read.read(each.end - each.start))
    weight = torch.frombuffer(data, dtype=getattr(torch, FLOATS[each.kind])).view(each.shape)
    base = layer.get_base_layer()
    flat = base.weight.data
    if flat.shape != weight.shape:
        raise ReleaseError(
            f"{each.file}: {name} is {tuple(weight.shape)}, config.json makes it "
            f"{tuple(flat.shape)}; fetch the model again"
        )
    base.weight.data = weight.float()
    del weight, data
    try:
        layer.merge(safe_merge=True)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ReleaseError(
            f"PEFT does not merge the adapter into {name} ({error}); train it anew"
        ) from error
    merged = base.weight.data.contiguous()
    base.weight.data = flat
    return memoryview(merged.numpy()).cast("B")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
