"""A release on disk: the GGUF with the adapter merged in, and the prompt folder beside it.

Every version, the base too, is written in the same types from the base's own GGUF. `load_gguf`
reads a file back, for the proof that it holds what was trained.
"""

import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from reactune.config.sections import ExportConfig
from reactune.errors import ReleaseError
from reactune.model.files import BaseModel
from reactune.model.prompt import Chat, write_prompt_folder
from reactune.records import ModelVersion, replacing, sha256_of, write_atomically

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from transformers import PretrainedConfig, PreTrainedModel

GGUF = "model.gguf"
PROMPT = "prompt"
NOTE = "release.json"
LARGEST_HALF = 65_504.0
TOLERANCE = 1e-6  # of numbers that GGUF keeps as float32
# Tensors that llama.cpp keeps ready-made and transformers computes from its settings.
COMPUTED = {"rope_freqs.weight"}
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
Quantisation = Literal["q8_0", "f16"]
Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Exported:
    """A written GGUF file; `merged` counts the weights that the adapter changed."""

    gguf: Path
    sha256: str
    size: int
    quantisation: Quantisation
    merged: int


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight W (outputs, inputs): scale * up @ down."""

    down: Floats
    up: Floats
    scale: float


@dataclass(frozen=True)
class Layout:
    """How llama.cpp stores an architecture, where it differs from transformers."""

    interleaved_heads: bool = False
    norm_offset: float = 0.0


# Architectures whose storage is known here, by GGUF's names (Mistral and SmolLM are `llama`).
LAYOUTS = {
    "llama": Layout(interleaved_heads=True),
    "qwen2": Layout(),
    "qwen3": Layout(),
    "gemma3": Layout(norm_offset=1.0),
}


def export_release(
    base: BaseModel,
    chat: Chat,
    adapter: Path | None,
    folder: Path,
    *,
    run_id: str,
    settings: ExportConfig,
) -> ModelVersion:
    """Write GGUF and prompt folder; the base itself is exported the same way, without adapter.

    The version that is returned has number 0 and a name of its own: it is on trial until it is
    registered.

    Raises:
        ReleaseError: the base has no GGUF, or the adapter cannot be merged into it.
    """
    out = folder / GGUF
    quantisation = settings.quantisation
    exported = (
        export_base(base, out, quantisation=quantisation)
        if adapter is None
        else export_merged(base, adapter, out=out, quantisation=quantisation)
    )
    write_prompt_folder(chat, base.folder, folder / PROMPT)
    return ModelVersion(
        version=0,
        name=f"reactune-trial:{exported.sha256[:12]}",
        run_id=run_id,
        gguf=out,
        sha256=exported.sha256,
        prompt_folder=folder / PROMPT,
        base=base.name,
        quantisation=quantisation,
        adapter=adapter,
    )


def write_release(release: ModelVersion) -> tuple[str, ...]:
    """Note the release beside its GGUF; names of all that a model server or `read_release` needs.

    They are relative to the folder of the GGUF.
    """
    folder = release.gguf.parent
    write_atomically(folder / NOTE, json.dumps(asdict(release), default=str))
    files = (release.gguf, *sorted(release.prompt_folder.iterdir()), folder / NOTE)
    return tuple(file.relative_to(folder).as_posix() for file in files)


def read_release(run: Path) -> ModelVersion:
    """The release of a run, with its files where they lie here."""
    folder = run / "export"
    values = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    # Another worker may have written it, so its folders are not ours.
    adapter = run / "train" / "adapter" if values["adapter"] else None
    paths = {"gguf": folder / GGUF, "prompt_folder": folder / PROMPT, "adapter": adapter}
    return ModelVersion(**{**values, **paths})


def export_base(
    base: BaseModel, out: Path, *, quantisation: Quantisation, progress: Progress | None = None
) -> Exported:
    """Write the base model in the types in which every trained version is written.

    All matrices (embeddings too) become Q8_0 or F16, a matrix whose rows Q8_0 cannot cut into
    blocks of 32 becomes F16; vectors (norms, biases), metadata and tokenizer are copied byte for
    byte. `progress` is called with tensors done and in all. The file appears whole or not at all.

    Raises:
        ReleaseError: there is no base GGUF, it is of an unknown kind or broken, or the disk full.
    """
    return _export(base, {}, out=out, quantisation=quantisation, progress=progress)


def export_merged(
    base: BaseModel,
    adapter: Path,
    *,
    out: Path,
    quantisation: Quantisation,
    progress: Progress | None = None,
) -> Exported:
    """Write the base model with a PEFT LoRA adapter merged in; else as `export_base`.

    Raises:
        ReleaseError: as `export_base`; the adapter is more than plain LoRA, or not of this base.
    """
    return _export(base, read_lora(adapter), out=out, quantisation=quantisation, progress=progress)


def _export(
    base: BaseModel,
    adapter: Mapping[str, LowRank],
    *,
    out: Path,
    quantisation: Quantisation,
    progress: Progress | None,
) -> Exported:
    if base.gguf is None:
        raise ReleaseError(
            f"base model {base.name!r} has no GGUF file, and reactune writes a served model from "
            "one; put the model's GGUF (F16 or Q8_0 is best) into a folder with its safetensors "
            "and name that folder in [model] base"
        )
    reader = open_gguf(base.gguf)
    changes = _changes_by_tensor(reader, adapter, base)
    kinds = [_target(tensor, quantisation) for tensor in reader.tensors]
    _require_space(out, reader, kinds)
    _write(out, reader, kinds, changes, quantisation=quantisation, progress=progress)
    return Exported(
        gguf=out,
        sha256=sha256_of(out),
        size=out.stat().st_size,
        quantisation=quantisation,
        merged=len(changes),
    )


def _changes_by_tensor(
    reader: "GGUFReader", adapter: Mapping[str, LowRank], base: BaseModel
) -> dict[str, LowRank]:
    """GGUF tensor name = what is added to it, in GGUF's order of rows."""
    names = tensor_names(reader)
    shapes = {tensor.name: tuple(tensor.shape[::-1].tolist()) for tensor in reader.tensors}
    changes = {}
    for module, change in adapter.items():
        name = f"{names.get_name(module)}.weight"
        shape = (change.up.shape[0], change.down.shape[1])
        if shapes.get(name) != shape:
            raise ReleaseError(
                f"the adapter changes {module} {shape}, which in {base.name!r} is "
                f"{shapes.get(name, 'absent')}: it was trained on another model"
            )
        if change.up.any() and change.down.any():
            up = _interleave(change.up, heads_of(reader, name))
            changes[name] = LowRank(change.down, up, change.scale)
    return changes


def _target(tensor: "ReaderTensor", quantisation: Quantisation) -> Any:
    from gguf import GGMLQuantizationType as Kind

    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return tensor.tensor_type
    return Kind.Q8_0 if quantisation == "q8_0" and tensor.shape[0] % 32 == 0 else Kind.F16


def _require_space(out: Path, reader: "GGUFReader", kinds: list[Any]) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    needed, free = sum(_sizes(reader, kinds)), shutil.disk_usage(folder).free
    if needed > free:
        raise ReleaseError(
            f"the model takes {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free"
        )


def _write(
    out: Path,
    reader: "GGUFReader",
    kinds: list[Any],
    changes: Mapping[str, LowRank],
    *,
    quantisation: Quantisation,
    progress: Progress | None,
) -> None:
    _sweep(out)
    with replacing(out) as partial, partial.open("wb") as file:
        _write_header(file, reader, kinds, quantisation)
        for done, (tensor, kind) in enumerate(zip(reader.tensors, kinds, strict=True), 1):
            data = _encoded(tensor, kind, changes.get(tensor.name))
            file.write(data + b"\0" * (-len(data) % reader.alignment))
            if progress is not None:
                progress(done, len(kinds))
        file.flush()
        os.fsync(file.fileno())


def _sweep(out: Path) -> None:
    """Remove the partial files of killed exports of this file."""
    for partial in out.parent.glob(f".{out.name}.*"):
        owner = partial.name.removeprefix(f".{out.name}.").partition(".")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            partial.unlink(missing_ok=True)


def _encoded(tensor: "ReaderTensor", kind: Any, change: LowRank | None) -> bytes:
    """The tensor's bytes in the new type; one that stays as it is, is copied."""
    from gguf import quants

    if change is None and kind == tensor.tensor_type:
        return bytes(tensor.data.tobytes())
    weights = quants.dequantize(tensor.data, tensor.tensor_type)
    if change is not None:
        weights = weights + np.float32(change.scale) * (change.up @ change.down)
    if not np.abs(weights).max() <= LARGEST_HALF:
        raise ReleaseError(f"{tensor.name} has weights beyond {LARGEST_HALF:,.0f}, or NaN")
    return bytes(quants.quantize(weights, kind).tobytes())


def _sizes(reader: "GGUFReader", kinds: Iterable[Any]) -> list[int]:
    from gguf import GGML_QUANT_SIZES

    sizes = []
    for tensor, kind in zip(reader.tensors, kinds, strict=True):
        block, block_bytes = GGML_QUANT_SIZES[kind]
        sizes.append(int(tensor.n_elements) // block * block_bytes)
    return sizes


def _write_header(
    file: BinaryIO, reader: "GGUFReader", kinds: list[Any], quantisation: Quantisation
) -> None:
    """Magic, keys as in the base file, and where each tensor will lie.

    Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    start = reader.tensors[0].field.offset
    keys = bytearray(reader.data[:start].tobytes())
    _state_type(keys, reader, quantisation)
    file.write(keys)
    offset = 0
    for tensor, kind, size in zip(reader.tensors, kinds, _sizes(reader, kinds), strict=True):
        name = tensor.name.encode()
        file.write(struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape)))
        file.write(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape.tolist()))
        file.write(struct.pack("<IQ", int(kind), offset))
        offset += size + -size % reader.alignment
    file.write(b"\0" * (-file.tell() % reader.alignment))


def _state_type(keys: bytearray, reader: "GGUFReader", quantisation: Quantisation) -> None:
    from gguf import LlamaFileType

    field = reader.get_field("general.file_type")
    if field is None:
        return
    stated = {"q8_0": LlamaFileType.MOSTLY_Q8_0, "f16": LlamaFileType.MOSTLY_F16}[quantisation]
    # A key is its length (8 bytes), its name and its type (4 bytes); then comes the value.
    value = field.offset + 8 + len(field.name.encode()) + 4
    keys[value : value + 4] = struct.pack("<I", int(stated))


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


def _parts(tensors: Mapping[str, Floats], folder: Path) -> dict[str, tuple[Floats, Floats]]:
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
    down: Floats,
    up: Floats,
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


def _read_tensors(file: Path) -> dict[str, Floats]:
    from safetensors import SafetensorError, deserialize

    try:
        stored = deserialize(file.read_bytes())
    except SafetensorError as error:
        raise ReleaseError(f"{file} is broken ({error}); train the adapter anew") from error
    return {name: _floats(name, tensor) for name, tensor in stored}


def _floats(name: str, tensor: Mapping[str, Any]) -> Floats:
    # NumPy has no bfloat16: it is the upper half of a float32.
    readings = {
        "F32": lambda data: np.frombuffer(data, "<f4").astype(np.float32),
        "F16": lambda data: np.frombuffer(data, "<f2").astype(np.float32),
        "BF16": lambda data: (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32),
    }
    if tensor["dtype"] not in readings:
        raise ReleaseError(f"adapter tensor {name} is of type {tensor['dtype']}, not a float")
    return readings[tensor["dtype"]](tensor["data"]).reshape(tensor["shape"])


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
) -> dict[str, Floats]:
    """Each wanted parameter from its tensor; nothing may be missing or left over."""
    names = tensor_names(reader)
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


def _weight(reader: "GGUFReader", tensor: Any) -> Floats:
    from gguf import quants

    weight = np.array(quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    weight = _in_halves(weight, heads_of(reader, tensor.name))
    if tensor.name.endswith("norm.weight"):
        weight -= np.float32(LAYOUTS[architecture_of(reader)].norm_offset)
    return weight


def open_gguf(path: Path) -> "GGUFReader":
    """Open a GGUF file of an architecture that is known here.

    Raises:
        ReleaseError: it is absent, broken, one part of several, or of another architecture.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ReleaseError(f"{path} is no readable GGUF file ({error}); fetch it again") from error
    architecture = architecture_of(reader)
    if architecture not in LAYOUTS:
        raise ReleaseError(
            f"{path} is of architecture {architecture!r}; models of {', '.join(LAYOUTS)} can be "
            "exported: take one as [model] base"
        )
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() > 1:
        raise ReleaseError(f"{path} is one of {parts.contents()} parts; join them first")
    if not reader.tensors:
        raise ReleaseError(f"{path} holds no weights; fetch it again")
    if reader.byte_order != "I":
        raise ReleaseError(f"{path} was written for machines of the other byte order")
    return reader


def architecture_of(reader: "GGUFReader") -> str:
    """GGUF's name of the model's architecture; empty if the file states none."""
    field = reader.get_field("general.architecture")
    return "" if field is None else str(field.contents())


def number(reader: "GGUFReader", name: str) -> float:
    """A number that the file states under `<architecture>.<name>`.

    Raises:
        ReleaseError: it states none.
    """
    field = reader.get_field(f"{architecture_of(reader)}.{name}")
    if field is None:
        raise ReleaseError(f"the GGUF file states no {architecture_of(reader)}.{name}")
    return float(field.contents())


def tensor_names(reader: "GGUFReader") -> Any:
    """gguf-py's map from transformers' module names to GGUF's tensor names."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = int(number(reader, "block_count"))
    return gguf.get_tensor_name_map(kinds[architecture_of(reader)], layers)


def heads_of(reader: "GGUFReader", tensor_name: str) -> int:
    """Number of heads whose rows the tensor holds interleaved; 0 where rows are as in training."""
    if not LAYOUTS[architecture_of(reader)].interleaved_heads:
        return 0
    if ".attn_q." in tensor_name:
        return int(number(reader, "attention.head_count"))
    if ".attn_k." in tensor_name:
        return int(number(reader, "attention.head_count_kv"))
    return 0


def _interleave(rows: Floats, heads: int) -> Floats:
    """Reorder a head's rows from transformers' halves to llama.cpp's pairs (rotary positions).

    As `permute` in llama.cpp's conversion of llama models.
    """
    if not heads:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _in_halves(rows: Floats, heads: int) -> Floats:
    """The way back from `_interleave`."""
    if not heads:
        return rows
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))
