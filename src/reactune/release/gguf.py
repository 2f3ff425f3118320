"""Write the model that is served: base weights plus adapter, as one GGUF file.

Which adapter, and whether the file may be served, is decided elsewhere (gate, parity).
"""

import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import psutil
from numpy.typing import NDArray

from reactune.errors import ReleaseError
from reactune.model import BaseModel
from reactune.records import sha256_of
from reactune.release.layout import heads_of, open_gguf, tensor_names
from reactune.release.lora import LowRank, read_lora

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

Quantisation = Literal["q8_0", "f16"]
Progress = Callable[[int, int], None]
Floats = NDArray[np.float32]

LARGEST_HALF = 65_504.0


@dataclass(frozen=True)
class Exported:
    """A written GGUF file; `merged` counts the weights that the adapter changed."""

    gguf: Path
    sha256: str
    size: int
    quantisation: Quantisation
    merged: int


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


def _write(
    out: Path,
    reader: "GGUFReader",
    kinds: list[Any],
    changes: Mapping[str, LowRank],
    *,
    quantisation: Quantisation,
    progress: Progress | None,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            _write_header(file, reader, kinds, quantisation)
            for done, (tensor, kind) in enumerate(zip(reader.tensors, kinds, strict=True), 1):
                data = _encoded(tensor, kind, changes.get(tensor.name))
                file.write(data + b"\0" * (-len(data) % reader.alignment))
                if progress is not None:
                    progress(done, len(kinds))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Remove what killed exports of this file left behind."""
    for partial in out.parent.glob(f".{out.name}.*"):
        owner = partial.suffix.removeprefix(".")
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            partial.unlink(missing_ok=True)


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


def _interleave(rows: Floats, heads: int) -> Floats:
    """Reorder a head's rows from transformers' halves to llama.cpp's pairs (rotary positions).

    As `permute` in llama.cpp's conversion of llama models.
    """
    if not heads:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _target(tensor: "ReaderTensor", quantisation: Quantisation) -> Any:
    from gguf import GGMLQuantizationType as Kind

    if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
        return tensor.tensor_type
    return Kind.Q8_0 if quantisation == "q8_0" and tensor.shape[0] % 32 == 0 else Kind.F16


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


def _require_space(out: Path, reader: "GGUFReader", kinds: list[Any]) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    needed, free = sum(_sizes(reader, kinds)), shutil.disk_usage(folder).free
    if needed > free:
        raise ReleaseError(
            f"the model takes {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free"
        )


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
