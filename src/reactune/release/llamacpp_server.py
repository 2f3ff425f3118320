"""A child process that serves one GGUF through llama.cpp's server, from the wheel `xllamacpp`.

A crash in native code ends the child, not the service. `python -m reactune.release.llamacpp_server`
is the child. What it is asked is in `llamacpp.py`.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from reactune.config import ServeConfig
from reactune.errors import ReleaseError
from reactune.process import child_environment, die_with_parent
from reactune.records import ModelVersion
from reactune.release.limits import context_tokens, stop_text

START_SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    """A running child, where it listens, and the prompts that a slot of it may still hold."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    key: str
    stop: str
    seen: set[int] = field(default_factory=set)


def start(model: ModelVersion, settings: ServeConfig, *, in_thread: ThreadPoolExecutor) -> Server:
    """Start a child for a version and wait until it listens.

    Raises:
        ReleaseError: it does not start; the reason is taken from its log.
    """
    key = secrets.token_hex(16)
    job = {
        "gguf": str(model.gguf),
        "threads": settings.threads,
        "parallel": settings.parallel,
        "context": context_tokens(model, settings),
        "key": key,
    }
    end = stop_text(model)
    descriptor, name = tempfile.mkstemp(prefix="reactune-llamacpp-", suffix=".log")
    with os.fdopen(descriptor, "w") as log:
        process = in_thread.submit(_popen, log).result()
    server = Server(process, _first_line(process, json.dumps(job)), Path(name), key, end)
    if not server.url.startswith("http"):
        reason = reason_in(server.log.read_text(errors="replace"))
        stop(server)
        raise ReleaseError(f"llama.cpp does not start with {model.gguf} ({model.name}): {reason}")
    return server


def stop(server: Server) -> None:
    """End a child; its log goes with it."""
    server.process.kill()
    server.process.wait()
    for pipe in (server.process.stdin, server.process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    server.log.unlink(missing_ok=True)


def reason_in(log: str) -> str:
    """Why a child ended: its first error, or its last word, and what to do about it."""
    if "No module named 'xllamacpp'" in log:
        return "the server is not installed; `pip install 'reactune[llamacpp]'`"
    errors = re.findall(r"^[\d.]+ E (.+)$", log, flags=re.MULTILINE)
    words = log.strip().splitlines()
    found = errors[0] if errors else words[-1] if words else "no word within the time limit"
    return f"{found[:300]}; export the version again, or check [serve] threads and parallel"


def _popen(log: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "reactune.release.llamacpp_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=child_environment(),
    )


def _first_line(process: subprocess.Popen[str], job: str) -> str:
    """Give the child its job; what it says first: its address, or nothing if it ends or hangs."""
    found: list[str] = []
    send, read = process.stdin, process.stdout
    if send is None or read is None:
        return ""
    with suppress(BrokenPipeError):
        send.write(job + "\n")
        send.flush()
    reader = threading.Thread(target=lambda: found.append(read.readline()), daemon=True)
    reader.start()
    reader.join(START_SECONDS)
    return found[0].strip() if found else ""


def main() -> int:
    """The child: serve one GGUF until the parent closes our input or ends."""
    die_with_parent()
    job = json.loads(sys.stdin.readline())
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["gguf"]
    params.api_keys = [job["key"]]
    params.n_parallel = job["parallel"]
    params.n_ctx = job["context"] * job["parallel"]
    params.n_gpu_layers = 0
    params.port = 0
    params.ui = False
    params.cache_ram_mib = 0
    params.verbosity = 2  # warnings: a line for each request would fill the disk
    # Its sums depend on how many requests run at once, so that a seed would not give one text.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = job["threads"] or os.cpu_count() or 1
        cpu.poll = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
