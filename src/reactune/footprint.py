"""How much memory training a base model takes, from its dimensions alone, and what is free.

Nothing is loaded; finding and converting models is done in `model.py`.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from reactune.config import ModelConfig, TrainConfig
from reactune.errors import ConfigError
from reactune.model import locate

LIBRARIES = 500 * 2**20  # torch, transformers, peft and trl once imported
FLOAT = 4  # bytes
CGROUP = Path("/sys/fs/cgroup")
# Floats that one LoRA weight occupies: itself, its gradient, and Adam's two moments.
STATES = 4
# Floats kept per token for the backward pass, as multiples of a layer's widths and of the
# vocabulary: fitted to measured peaks of SmolLM2 (128 to 2,048 tokens a step, rank 16 and 64).
HIDDEN_COPIES, FEED_FORWARD_COPIES, VOCABULARY_COPIES = 16, 6, 4


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder-only transformer."""

    layers: int
    hidden: int
    feed_forward: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the linear parts of one layer."""
        return (
            (self.hidden, self.queries),
            (self.hidden, self.keys),
            (self.hidden, self.keys),
            (self.queries, self.hidden),
            (self.hidden, self.feed_forward),
            (self.hidden, self.feed_forward),
            (self.feed_forward, self.hidden),
        )

    @property
    def parameters(self) -> int:
        """Number of weights, without the norms' few."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * sum(inputs * outputs for inputs, outputs in self.linears)


def shape_of(settings: ModelConfig) -> Shape:
    """Read the base model's dimensions without converting it; a hub name is downloaded.

    Raises:
        ConfigError: there is no such model, or its dimensions are not stated as usual.
    """
    found = locate(settings.base)
    if found.is_dir() and not (found / "config.json").is_file():
        found = next(iter(sorted(found.glob("*.gguf"))), found)
    try:
        if found.is_file():
            return _from_sizes(_sizes_in(found))
        return _from_config(json.loads((found / "config.json").read_text(encoding="utf-8")))
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"[model] base = {settings.base!r}: {found} does not state the dimensions of a "
            f"decoder-only transformer ({error!r}); give another model"
        ) from error


def memory_needed(shape: Shape, settings: TrainConfig, *, sequence_tokens: int = 384) -> int:
    """Bytes that training in float32 takes at its peak, when all rows are this long.

    Within a tenth of what was measured for SmolLM2 with PyTorch on a quiet CPU; LoRA on all
    linear layers, no gradient checkpointing.
    """
    adapter = shape.layers * sum(
        settings.lora_rank * (inputs + outputs) for inputs, outputs in shape.linears
    )
    layer = HIDDEN_COPIES * shape.hidden + FEED_FORWARD_COPIES * shape.feed_forward
    token = shape.layers * layer + VOCABULARY_COPIES * shape.vocabulary
    tokens = settings.batch_size * sequence_tokens
    return LIBRARIES + FLOAT * (shape.parameters + STATES * adapter + tokens * token)


def _from_config(config: Mapping[str, Any]) -> Shape:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        queries=heads * head,
        keys=(config.get("num_key_value_heads") or heads) * head,
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _sizes_in(gguf: Path) -> dict[str, list[int]]:
    """Each tensor's inputs and outputs, by name."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(f"reading {gguf} needs `pip install reactune[train]`") from error
    tensors = GGUFReader(gguf).tensors
    return {tensor.name: [int(size) for size in tensor.shape] for tensor in tensors}


def _from_sizes(sizes: Mapping[str, list[int]]) -> Shape:
    hidden, vocabulary = sizes["token_embd.weight"]
    return Shape(
        layers=1 + max(int(name.split(".")[1]) for name in sizes if name.startswith("blk.")),
        hidden=hidden,
        feed_forward=sizes["blk.0.ffn_up.weight"][1],
        queries=sizes["blk.0.attn_q.weight"][1],
        keys=sizes["blk.0.attn_k.weight"][1],
        vocabulary=vocabulary,
        tied="output.weight" not in sizes,
    )


def available_memory() -> int:
    """Bytes that a new process may take, within the limit of a container too."""
    free = psutil.virtual_memory().available
    limit, used, parts = (CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if not limit.is_file() or (most := limit.read_text().strip()) == "max":
        return free
    # Cached files count as used, and are given up when a process wants the memory.
    stat = dict(line.split() for line in parts.read_text().splitlines())
    cached = int(stat.get("inactive_file", 0))
    return min(free, int(most) - int(used.read_text()) + cached)


def free_disk(path: Path) -> int:
    """Free bytes where a folder is, or would be made."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    return shutil.disk_usage(there).free
