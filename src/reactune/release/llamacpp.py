"""llama.cpp's server from the wheel `xllamacpp`, one child process a model, no template involved.

A crash in native code ends the child, not the service. `python -m reactune.release.llamacpp` is
the child. Which versions run is decided by the caller.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from reactune.config import ServeConfig
from reactune.errors import ReleaseError
from reactune.process import die_with_parent
from reactune.records import Completion, ModelVersion, Sampling

CONTEXT_TOKENS = 1024  # of one answer, prompt included
START_SECONDS = 120.0
SAMPLERS = ["top_k", "top_p", "temperature"]


@dataclass(frozen=True)
class Server:
    """A running child and where it listens."""

    process: subprocess.Popen[str]
    url: str
    log: Path


@dataclass
class LlamaCpp:
    """The servers of this process: one child for each published version."""

    settings: ServeConfig
    servers: dict[str, Server] = field(default_factory=dict)
    client: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False))
    lock: threading.Lock = field(default_factory=threading.Lock)
    starting: threading.Lock = field(default_factory=threading.Lock)

    def publish(self, model: ModelVersion) -> None:
        """Start the version's child, unless it runs.

        Raises:
            ReleaseError: the wheel or the file is missing, or llama.cpp refuses the file.
        """
        with self.starting:
            with self.lock:
                running = self.servers.get(model.name)
            if running is not None and running.process.poll() is None:
                return
            if running is not None:
                stop(running)
            # Loading takes seconds; meanwhile the others answer, so only `starting` is held.
            server = start(model.gguf, self.settings)
            with self.lock:
                self.servers[model.name] = server

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """Continue the prompt as `Runtime.generate` promises.

        Raises:
            ReleaseError: the version is not published, its child is gone or slow, or it answers
                nonsense.
        """
        with self.lock:
            server = self.servers.get(model.name)
        if server is None:
            raise ReleaseError(f"{model.name} is not published on the embedded llama.cpp")
        started = time.monotonic()
        try:
            answer = self.client.post(
                f"{server.url}/completion",
                json=request_of(prompt, sampling),
                timeout=self.settings.timeout_seconds,
            )
            answer.raise_for_status()
            return completion_of(answer.json(), seconds=time.monotonic() - started)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ReleaseError(
                f"llama.cpp for {model.name} at {server.url} failed ({type(error).__name__}); "
                f"its log: {server.log}"
            ) from error

    def retire(self, model: ModelVersion) -> None:
        """Stop the version's child, if there is one."""
        with self.lock:
            server = self.servers.pop(model.name, None)
        if server is not None:
            stop(server)

    def close(self) -> None:
        """Stop all children."""
        with self.lock:
            for server in self.servers.values():
                stop(server)
            self.servers.clear()
            self.client.close()


def request_of(prompt: str, sampling: Sampling) -> dict[str, Any]:
    """The body of one completion: only the stated samplers, and the drawn text's probabilities."""
    return {
        "prompt": prompt,
        "n_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "samplers": SAMPLERS,
        "seed": sampling.seed,
        "cache_prompt": True,
        "n_probs": 1,
        "post_sampling_probs": False,
    }


def completion_of(answer: dict[str, Any], *, seconds: float) -> Completion:
    """What the server's answer says."""
    probabilities = answer.get("completion_probabilities") or []
    logprobs = [each["logprob"] for each in probabilities if "logprob" in each]
    return Completion(
        text=answer["content"].strip(),
        prompt_tokens=int(answer["tokens_evaluated"]),
        tokens=int(answer["tokens_predicted"]),
        stopped="length" if answer["stop_type"] == "limit" else "stop",
        seconds=seconds,
        logprob=sum(logprobs) if logprobs else None,
    )


def start(gguf: Path, settings: ServeConfig) -> Server:
    """Start a child for a GGUF file and wait until it listens.

    Raises:
        ReleaseError: it does not start; the end of its log is quoted.
    """
    job = {"gguf": str(gguf), "threads": settings.threads, "parallel": settings.parallel}
    log = Path(tempfile.mkstemp(prefix="reactune-llamacpp-", suffix=".log")[1])
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "reactune.release.llamacpp", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            # Threads that spin while they wait starve each other on a busy machine.
            env={"OMP_WAIT_POLICY": "passive", **os.environ},
        )
    url = _first_line(process)
    if not url.startswith("http"):
        process.kill()
        process.wait()
        end = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
        raise ReleaseError(
            f"llama.cpp does not start with {gguf}: {end[0][:300]}; the server is in "
            "`pip install 'reactune[llamacpp]'`; its log: " + str(log)
        )
    return Server(process, url, log)


def stop(server: Server) -> None:
    """End a child; its log goes with it."""
    server.process.kill()
    server.process.wait()
    for pipe in (server.process.stdin, server.process.stdout):
        if pipe is not None:
            pipe.close()
    server.log.unlink(missing_ok=True)


def _first_line(process: subprocess.Popen[str]) -> str:
    """What the child says first: its address, or nothing if it ends or takes too long."""
    found: list[str] = []
    out: IO[str] | None = process.stdout
    if out is None:
        return ""
    reader = threading.Thread(target=lambda: found.append(out.readline()), daemon=True)
    reader.start()
    reader.join(START_SECONDS)
    return found[0].strip() if found else ""


def main(argv: list[str]) -> int:
    """The child: serve one GGUF until the parent closes our input or ends."""
    die_with_parent()
    job = json.loads(argv[0])
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["gguf"]
    params.n_parallel = job["parallel"]
    params.n_ctx = CONTEXT_TOKENS * job["parallel"]
    params.n_gpu_layers = 0
    params.port = 0
    params.ui = False
    params.cache_ram_mib = 0
    for cpu in (params.cpuparams, params.cpuparams_batch):
        if job["threads"]:
            cpu.n_threads = job["threads"]
        cpu.poll = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
