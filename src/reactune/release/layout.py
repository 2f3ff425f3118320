"""What a GGUF file says about its model, and how llama.cpp lays out the weights of each kind.

Writing files is `gguf.py`'s work, loading them as a model `readback.py`'s.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reactune.errors import ReleaseError

if TYPE_CHECKING:
    from gguf import GGUFReader


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
    """GGUF's name of the model's architecture; empty if the file does not say."""
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
