"""Tips from the embedded llama.cpp: one child process for each published version.

The rendered prompt is sent as token ids, so no template of the server is involved. A child ends
with this process, whatever ends it.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from reactune.config.sections import ServeConfig
from reactune.errors import ReleaseError
from reactune.model.prompt import context_tokens, stop_text
from reactune.process import child_environment, die_with_parent
from reactune.records import Completion, ModelVersion, Sampling

IMPORT_SECONDS = 60.0
START_SECONDS = 120.0
SCORE_SECONDS = 600.0  # of a large model for one prompt
IDLE_SECONDS = 2.0  # well below the five after which the server closes an idle connection
SAMPLERS = ["top_k", "top_p", "temperature"]
REMEMBERED_PROMPTS = 50_000
LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)


@dataclass(frozen=True)
class Server:
    """A running child, where it listens, and the prompts that a slot of it may still hold."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    key: str
    stop: str
    seen: set[int] = field(default_factory=set)


@dataclass
class LlamaCpp:
    """The servers of this process: one child for each published version; safe for many threads."""

    settings: ServeConfig
    servers: dict[str, Server] = field(default_factory=dict)
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(trust_env=False, limits=LIMITS)
    )
    async_client: httpx.AsyncClient | None = None  # opened by `write` in its event loop
    lock: threading.Lock = field(default_factory=threading.Lock)
    starting: threading.Lock = field(default_factory=threading.Lock)
    # Linux ends a child with the thread that started it, so one thread starts all and stays.
    starter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def check(self, *, versions: int = 1, base: str = "") -> str:
        """A line if the wheel of llama.cpp loads here, in a process of its own.

        Raises:
            ReleaseError: it does not.
            TimeoutError: it took a minute.
        """
        probe = [sys.executable, "-c", "import xllamacpp"]
        try:
            done = subprocess.run(probe, capture_output=True, timeout=IMPORT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(
                "llama.cpp took more than a minute to load; repeat when the machine is idle"
            ) from error
        if done.returncode != 0:
            raise ReleaseError(
                "llama.cpp does not load here; run `pip install 'reactune[llamacpp]'`, or use "
                'Ollama: serve.runtime = "ollama"'
            )
        return "embedded llama.cpp"

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
            server = start(model, self.settings, in_thread=self.starter)
            with self.lock:
                self.servers[model.name] = server

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """Continue the prompt as `Runtime.generate` promises.

        A prompt that is sent alone gives the same text for the same seed, bit for bit. Beside
        others, some answers in a hundred differ: sums of another batch are rounded differently.

        Raises:
            ReleaseError: the version is not published, its child is gone or slow, or it answers
                nonsense.
        """
        server, is_new = self._server_for(model, prompt)
        started = time.monotonic()
        with self._errors(server, model):
            ids = self._post(server, "/tokenize", tokens_request(prompt))["tokens"]
            body = request_of(ids, sampling, stop=server.stop, reuse_prefix=is_new)
            answer = self._post(server, "/completion", body)
            return completion_of(answer, seconds=time.monotonic() - started)

    async def write(
        self, model: ModelVersion, prompt: str, sampling: Sampling, *, count: int = 1
    ) -> tuple[Completion, ...]:
        """`generate`, awaited, `count` times in one request; all calls from one event loop.

        Raises:
            ReleaseError: as `generate`.
        """
        server, is_new = self._server_for(model, prompt)
        started = time.monotonic()
        with self._errors(server, model):
            ids = (await self._post_async(server, "/tokenize", tokens_request(prompt)))["tokens"]
            body = request_of(ids, sampling, stop=server.stop, reuse_prefix=is_new)
            if count > 1:
                body["n_cmpl"] = count
            answer = await self._post_async(server, "/completion", body)
            seconds = time.monotonic() - started
            answers = answer if isinstance(answer, list) else [answer]
            return tuple(completion_of(each, seconds=seconds) for each in answers)

    async def end_writing(self) -> None:
        """Close the connections of `write`; the next call opens new ones."""
        client, self.async_client = self.async_client, None
        if client is not None:
            await client.aclose()

    def token_logprobs(
        self, model: ModelVersion, prompt: Sequence[int], completion: Sequence[int]
    ) -> None:
        """None: parity scores the version's file instead, by `file_logprobs`."""

    def chat_prompt_tokens(self, model: ModelVersion, user_text: str) -> None:
        """None: no template of the server is involved."""

    def set_aliases(
        self,
        models: Mapping[str, ModelVersion | None],
        *,
        fetch: Callable[[ModelVersion], object],
    ) -> list[str]:
        """Nothing: this server has no tags."""
        return []

    def retire(self, model: ModelVersion) -> None:
        """Stop the version's child, if there is one."""
        with self.lock:
            server = self.servers.pop(model.name, None)
        if server is not None:
            stop(server)

    def close(self) -> None:
        """Stop all children."""
        with self.starting, self.lock:
            for server in self.servers.values():
                stop(server)
            self.servers.clear()
            self.client.close()
            self.starter.shutdown()

    def _server_for(self, model: ModelVersion, prompt: str) -> tuple[Server, bool]:
        """The version's child, and whether the prompt is new to it."""
        with self.lock:
            server = self.servers.get(model.name)
            is_new = server is not None and _remember(server.seen, prompt)
        if server is None:
            raise ReleaseError(f"{model.name} is not published on the embedded llama.cpp")
        return server, is_new

    @contextmanager
    def _errors(self, server: Server, model: ModelVersion) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise ReleaseError(
                f"llama.cpp did not answer for {model.name} within "
                f"{self.settings.timeout_seconds:g} s; see [serve] timeout_seconds, parallel"
            ) from error
        except httpx.HTTPStatusError as error:
            raise ReleaseError(f"llama.cpp for {model.name}: {_refusal(error.response)}") from error
        except (httpx.HTTPError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ReleaseError(
                f"llama.cpp for {model.name} at {server.url} failed ({type(error).__name__}); "
                f"publish it again; its log: {server.log}"
            ) from error

    async def _post_async(self, server: Server, path: str, body: dict[str, Any]) -> Any:
        if self.async_client is None:
            self.async_client = httpx.AsyncClient(trust_env=False, limits=LIMITS)
        return _read(await self.async_client.post(**self._request(server, path, body)))

    def _post(self, server: Server, path: str, body: dict[str, Any]) -> Any:
        return _read(self.client.post(**self._request(server, path, body)))

    def _request(self, server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "url": server.url + path,
            "json": body,
            "headers": {"Authorization": f"Bearer {server.key}"},
            "timeout": self.settings.timeout_seconds,
        }


def file_logprobs(
    model: ModelVersion, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, threads: int
) -> list[tuple[float, ...]]:
    """Natural log-probability of each token of each completion, given its prompt, by llama.cpp.

    Raises:
        ReleaseError: as `LlamaCpp.publish` and `LlamaCpp.generate`.
    """
    settings = ServeConfig(threads=threads, parallel=1, timeout_seconds=SCORE_SECONDS)
    with closing(LlamaCpp(settings)) as runtime:
        runtime.publish(model)
        server = runtime.servers[model.name]
        with runtime._errors(server, model):
            return [
                tuple(
                    _logprob(runtime, server, [*prompt, *tip[:place]], token, end=tip[-1])
                    for place, token in enumerate(tip)
                )
                for prompt, tip in rows
            ]


def _logprob(
    runtime: LlamaCpp, server: Server, before: list[int], token: int, *, end: int
) -> float:
    """One token's log-probability; `end` is a token that is no part of a character.

    The server tells it of the token that it draws, so the bias leaves nothing else to draw. Of one
    that is a part of a character it tells nothing; for those it lists the whole vocabulary.
    """
    drawn = runtime._post(server, "/completion", forced_request(before, token, listed=1))
    if drawn.get("completion_probabilities"):
        return float(drawn["completion_probabilities"][0]["logprob"])
    drawn = runtime._post(server, "/completion", forced_request(before, end, listed=2**30))
    every = drawn["completion_probabilities"][0]["top_logprobs"]
    return next(float(each["logprob"]) for each in every if each["id"] == token)


def forced_request(before: list[int], token: int, *, listed: int) -> dict[str, Any]:
    """The body that draws this token and no other, and lists so many log-probabilities.

    They are the model's own, without the bias.
    """
    return {
        "prompt": before,
        "n_predict": 1,
        "temperature": 0.0,
        "samplers": ["temperature"],
        "logit_bias": [[token, 1e6]],
        "cache_prompt": True,
        "n_probs": listed,
        "post_sampling_probs": False,
    }


def tokens_request(prompt: str) -> dict[str, Any]:
    """The body that asks for token ids: special tokens are read as such, and none is added."""
    return {"content": prompt, "add_special": False, "parse_special": True}


def request_of(
    ids: list[int], sampling: Sampling, *, stop: str, reuse_prefix: bool
) -> dict[str, Any]:
    """The body of one completion: only the stated samplers, and the drawn text's probabilities.

    A slot that holds the whole prompt would compute its last token alone, which rounds differently
    from computing it with others: so `reuse_prefix` must be false for a prompt sent before.
    """
    return {
        "prompt": ids,
        "n_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "samplers": SAMPLERS,
        "seed": sampling.seed,
        "stop": [stop],
        "cache_prompt": reuse_prefix,
        "n_probs": 1,
        "post_sampling_probs": False,
    }


def completion_of(answer: dict[str, Any], *, seconds: float) -> Completion:
    """The answer as a `Completion`; a stop token counts as drawn, and is not in the text.

    Raises:
        KeyError, TypeError, ValueError: it is no answer.
    """
    if answer["stop_type"] not in ("eos", "word", "limit"):
        raise ValueError(f"ended by {answer['stop_type']!r}")
    probabilities = answer.get("completion_probabilities") or []
    return Completion(
        text=answer["content"].strip(),
        prompt_tokens=int(answer["tokens_evaluated"]),
        tokens=int(answer["tokens_predicted"]),
        stopped="length" if answer["stop_type"] == "limit" else "stop",
        seconds=seconds,
        logprob=sum(each["logprob"] for each in probabilities) if probabilities else None,
    )


def _read(answer: httpx.Response) -> Any:
    return answer.raise_for_status().json()


def _remember(seen: set[int], prompt: str) -> bool:
    """Whether a prompt is new; it is not from now on."""
    if len(seen) >= REMEMBERED_PROMPTS:
        seen.clear()
    before = len(seen)
    seen.add(hash(prompt))
    return len(seen) > before


def _refusal(answer: httpx.Response) -> str:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = "no reason given"
    return f"status {answer.status_code}, {message[:300]}"


def start(model: ModelVersion, settings: ServeConfig, *, in_thread: ThreadPoolExecutor) -> Server:
    """Start a child for a version and wait until it listens.

    Raises:
        ReleaseError: it does not start; the reason is taken from its log.
    """
    key = secrets.token_hex(16)
    job = {
        "gguf": str(model.gguf),
        "threads": settings.threads,
        # The texts of one request are written side by side.
        "parallel": max(settings.parallel, settings.candidates),
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
    """End a child, and remove its log."""
    server.process.kill()
    server.process.wait()
    for pipe in (server.process.stdin, server.process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    server.log.unlink(missing_ok=True)


def reason_in(log: str) -> str:
    """Why a child ended: the first error or the last line of its log, and what to do about it."""
    if "No module named 'xllamacpp'" in log:
        return "the server is not installed; `pip install 'reactune[llamacpp]'`"
    errors = re.findall(r"^[\d.]+ E (.+)$", log, flags=re.MULTILINE)
    lines = log.strip().splitlines()
    reason = [*errors, *lines[-1:], "no output within the time limit"][0]
    return f"{reason[:300]}; export the version again, or check [serve] threads and parallel"


def _popen(log: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "reactune.release.llamacpp"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=child_environment(),
    )


def _first_line(process: subprocess.Popen[str], job: str) -> str:
    """Give the child its job; its first line is its address, or empty if it ends or hangs."""
    lines: list[str] = []
    send, read = process.stdin, process.stdout
    if send is None or read is None:
        return ""
    with suppress(BrokenPipeError):
        send.write(job + "\n")
        send.flush()
    reader = threading.Thread(target=lambda: lines.append(read.readline()), daemon=True)
    reader.start()
    reader.join(START_SECONDS)
    return lines[0].strip() if lines else ""


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
    # With it, sums depend on how many requests run at once, and a seed would not fix the text.
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
