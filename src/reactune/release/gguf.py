"""A release on disk: the GGUF with the adapter merged in, and the prompt folder beside it.

Every version, the base too, takes the same way: PEFT's arithmetic on the base's safetensors
(`merge`), llama.cpp's converter, and for some types llama.cpp's quantiser (`converter`).
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import numpy as np

from reactune.config.sections import ExportConfig, Quantisation
from reactune.errors import ReleaseError
from reactune.model.files import BaseModel, free_disk
from reactune.model.prompt import Chat, write_prompt_folder
from reactune.records import ModelVersion, sha256_of, write_atomically
from reactune.release.converter import (
    DIRECT,
    check,
    convert,
    converter_folder,
    find_quantiser,
    quantise,
)
from reactune.release.merge import merge, stored_tensors

GGUF = "model.gguf"
PROMPT = "prompt"
NOTE = "release.json"
SCRATCH = ".export-"
UNQUANTISED = "f16"  # what llama-quantize starts from
# Bits of a weight, with its share of the block's scale; the K types by the largest of their blocks.
BITS = {"f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q6_k": 6.6, "q5": 6.0, "q4": 5.0, "q3": 4.3}


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
        ReleaseError: the adapter cannot be merged, the converter does not know the base, or the
            disk is full.
    """
    out = folder / GGUF
    export_gguf(base, adapter, out, settings=settings)
    write_prompt_folder(chat, base.folder, folder / PROMPT)
    digest = sha256_of(out)
    return ModelVersion(
        version=0,
        name=f"reactune-trial:{digest[:12]}",
        run_id=run_id,
        gguf=out,
        sha256=digest,
        prompt_folder=folder / PROMPT,
        base=base.name,
        quantisation=settings.quantisation,
        adapter=adapter,
    )


def write_release(release: ModelVersion) -> tuple[str, ...]:
    """Note the release beside its GGUF; names of all that a model server or `read_release` needs.

    They are relative to the folder of the GGUF.
    """
    folder = release.gguf.parent
    write_atomically(folder / NOTE, json.dumps(asdict(release), default=str))
    parts = (release.prompt_folder, release.reward, release.adapter)
    here = [part for part in parts if part is not None and part.parent == folder]
    files = (
        release.gguf,
        *(file for part in here for file in sorted(part.iterdir())),
        folder / NOTE,
    )
    return tuple(file.relative_to(folder).as_posix() for file in files)


def read_release(run: Path) -> ModelVersion:
    """The release of a run, with its files where they lie here."""
    folder = run / "export"
    values = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    # Another worker may have written it, so its folders are not ours: stage and folder are.
    paths = {
        name: run.joinpath(*Path(values[name]).parts[-2:])
        for name in ("gguf", "prompt_folder", "adapter", "reward")
        if values.get(name)
    }
    return ModelVersion(**{**values, **paths})


def export_gguf(base: BaseModel, adapter: Path | None, out: Path, *, settings: ExportConfig) -> int:
    """Write the base, with an adapter merged in if one is given; the number of changed weights.

    The same input gives the same bytes. The file appears whole or not at all; what lay between is
    removed, now or, after a kill, by the next export there.

    Raises:
        ReleaseError: as `export_release`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f"{SCRATCH}*"):
        shutil.rmtree(left)
    _require_disk(base, out.parent, settings)
    kind = settings.quantisation
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=out.parent) as name:
        scratch = Path(name)
        # The converter makes metadata of the folder's name, so it is the same for every export.
        folder, written = scratch / "model", scratch / out.name
        merged = merge(base.folder, adapter, folder)
        convert(
            folder,
            written,
            kind=kind if kind in DIRECT else UNQUANTISED,
            converter=converter_folder(settings),
            name=Path(base.name).name,
            vocabulary=base.gguf,
        )
        if kind not in DIRECT:
            unquantised = written.rename(scratch / "unquantised.gguf")
            quantise(unquantised, written, kind=kind, settings=settings)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(out)
    return merged


def unquantise(source: Path, out: Path) -> None:
    """Write a GGUF file anew with each quantised weight as the 16-bit number that it stands for.

    One tensor at a time is in memory.

    Raises:
        ReleaseError: it cannot be read.
    """
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFReader, GGUFWriter, quants

    try:
        reader = GGUFReader(source)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ReleaseError(f"{source} is no readable GGUF ({error}); export it again") from error
    writer = GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    kept = (Kind.F32, Kind.F16)
    for tensor in reader.tensors:
        shape = tensor.shape[::-1].tolist()
        kind = np.dtype(np.float32 if tensor.tensor_type == Kind.F32 else np.float16)
        writer.add_tensor_info(tensor.name, shape, kind, kind.itemsize * int(tensor.n_elements))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.tensor_type not in kept:
            data = quants.dequantize(data, tensor.tensor_type).astype(np.float16)
        writer.write_tensor_data(data)
    writer.close()


def possible_types(settings: ExportConfig) -> tuple[Quantisation, ...]:
    """The types in which a model can be exported on this machine."""
    has_quantiser = find_quantiser(settings) is not None
    return tuple(k for k in get_args(Quantisation) if k in DIRECT or has_quantiser)


def require_exportable(folder: Path, vocabulary: Path | None, settings: ExportConfig) -> None:
    """See in seconds that a base, and all that is trained from it, can become a GGUF file here.

    The converter reads config.json, the tokenizer and the headers of the weights.

    Raises:
        ReleaseError: it does not know the architecture or the tokenizer, weights are missing, or
            the type needs a program that is not here.
    """
    possible = possible_types(settings)
    if settings.quantisation not in possible:
        raise ReleaseError(
            f"[export] quantisation = {settings.quantisation!r} needs llama.cpp's program "
            f"llama-quantize; install it and name it in [export] quantiser, or take one of "
            f"{', '.join(possible)}"
        )
    stored_tensors(folder)
    check(folder, converter_folder(settings), vocabulary)


def _require_disk(base: BaseModel, folder: Path, settings: ExportConfig) -> None:
    needed, free = disk_needed(base, settings), free_disk(folder)
    if needed > free:
        raise ReleaseError(
            f"exporting {base.name!r} takes {needed / 1e9:.1f} GB of disk, and {folder} has "
            f"{free / 1e9:.1f} GB free; free some, or name another [run] root"
        )


def disk_needed(base: BaseModel, settings: ExportConfig) -> int:
    """Bytes that an export takes at its peak: merged weights, as float32, and the GGUF files."""
    weights = sum(_count(each.shape) for each in stored_tensors(base.folder).values())
    kind = settings.quantisation
    between = 0 if kind in DIRECT else bits_of(UNQUANTISED)
    return round(weights * (32 + between + bits_of(kind)) / 8)


def bits_of(kind: str) -> float:
    """How many bits a weight takes in a type, at most."""
    return BITS.get(kind) or BITS.get(kind[:2], 16.0)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
