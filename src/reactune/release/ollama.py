"""Tips from a server of Ollama: GGUF files are published under names that never change.

Prompts are sent raw, already rendered, so no template of the server is involved; the template that
is published with the model is for people, and for the parity check.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import httpx
import ollama

from reactune.config.sections import ServeConfig
from reactune.environment import by_proxy, proxy_of
from reactune.errors import ReleaseError
from reactune.model.prompt import context_tokens, read_prompt_file, start_text, stop_text
from reactune.records import Completion, ModelVersion, Sampling

CHECK_SECONDS = 5.0
IDLE_SECONDS = 5.0
UPLOAD_SECONDS = 3600.0
KEEP_LOADED = "30m"


@dataclass
class Ollama:
    """A connection to the server at `[serve] ollama_url`; safe for many threads."""

    settings: ServeConfig
    client: ollama.Client = field(init=False)
    loader: ollama.Client = field(init=False)
    connections: "AsyncConnections" = field(init=False)
    added: dict[str, str] = field(default_factory=dict)
    """Names of models, each with the start token that the server puts before every prompt."""

    def __post_init__(self) -> None:
        url = self.settings.ollama_url
        self.client = ollama.Client(host=url, timeout=self.settings.timeout_seconds)
        self.connections = AsyncConnections(url, timeout_seconds=self.settings.timeout_seconds)
        self.loader = ollama.Client(host=url, timeout=UPLOAD_SECONDS)

    def check(self, *, versions: int = 1, base: str = "") -> str:
        """The server's version and address.

        Raises:
            ReleaseError: no Ollama answers there.
        """
        url = self.settings.ollama_url
        try:
            answer = httpx.get(f"{url}/api/version", timeout=CHECK_SECONDS)
            version = answer.raise_for_status().json()["version"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise ReleaseError(
                f"no Ollama at {url}{by_proxy(url)}; run `ollama serve`, or set serve.ollama_url"
            ) from error
        return f"Ollama {version} at {url}"

    def publish(self, model: ModelVersion) -> None:
        """Upload the GGUF, create the model with template, system prompt and stop, and load it.

        A name that is there with these very weights and texts stays as it is. Where the file makes
        the server put a start token before every prompt, template and prompts leave theirs out.

        Raises:
            ReleaseError: the server is away or refuses, the name holds another model, the GGUF
                is not the one that was registered, or prompts would get a start token too many.
        """
        template, start = read_prompt_file(model, "ollama_template.txt"), start_text(model)
        rest = template.removeprefix(start)
        with self._errors(f"publish {model.name}", within=UPLOAD_SECONDS):
            if model.name in self._digests():
                shown = self._require_same(model, (template, rest))
            else:
                self._upload(model)
                shown = self._create(model, template)
            if not self._adds_start(model):
                return
            if rest == template:
                raise ReleaseError(
                    f"Ollama at {self.settings.ollama_url} puts a start token before every prompt "
                    f"of {model.name}, and its chat template has none; export it again, with "
                    "tokenizer.ggml.add_bos_token false in the GGUF"
                )
            self.added[model.name] = start
            if shown != rest:
                self._create(model, rest)
                self._adds_start(model)

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """Continue the prompt as `Runtime.generate` promises, without a log-probability.

        Raises:
            ReleaseError: the server is away or slow, lacks the model, has no room for the prompt,
                or answers nonsense.
        """
        request = self._request_of(model, prompt, sampling)
        started = time.monotonic()
        with self._errors(f"generate with {model.name}", within=self.settings.timeout_seconds):
            answer = self.client.generate(**request)
            return completion_of(answer, request, seconds=time.monotonic() - started)

    async def write(
        self, model: ModelVersion, prompt: str, sampling: Sampling, *, count: int = 1
    ) -> tuple[Completion, ...]:
        """`generate`, awaited, in `count` requests at once; all calls from one event loop.

        Raises:
            ReleaseError: as `generate`.
        """
        draws = (replace(sampling, seed=sampling.seed + place) for place in range(count))
        return tuple(await asyncio.gather(*(self._write(model, prompt, each) for each in draws)))

    async def _write(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        request = self._request_of(model, prompt, sampling)
        started = time.monotonic()
        with self._errors(f"generate with {model.name}", within=self.settings.timeout_seconds):
            status, body = await self.connections.post("/api/generate", request)
            if status != httpx.codes.OK:
                raise ollama.ResponseError(body.decode(errors="replace"), status)
            answer = ollama.GenerateResponse.model_validate_json(body)
            return completion_of(answer, request, seconds=time.monotonic() - started)

    async def end_writing(self) -> None:
        """Close the connections of `write`; the next call opens new ones."""
        await self.connections.close()

    def token_logprobs(
        self, model: ModelVersion, prompt: Sequence[int], completion: Sequence[int]
    ) -> None:
        """None: this server does not tell them of a text that it did not write."""

    def chat_prompt_tokens(self, model: ModelVersion, user_text: str) -> int:
        """How many tokens the server's own template makes of a user message.

        Raises:
            ReleaseError: as `generate`.
        """
        room = context_tokens(model, self.settings)
        with self._errors(f"chat with {model.name}", within=self.settings.timeout_seconds):
            answer = self.client.chat(
                model=model.name,
                messages=[{"role": "user", "content": user_text}],
                options=self._options(room) | {"num_predict": 1},
                keep_alive=KEEP_LOADED,
            )
            return prompt_tokens_of(answer, room=room)

    def set_aliases(
        self,
        models: Mapping[str, ModelVersion | None],
        *,
        fetch: Callable[[ModelVersion], object],
    ) -> list[str]:
        """Make each tag (such as `tip-generator:champion`) follow its version, or remove it.

        Raises:
            ReleaseError: the server is away, or refuses a version.
        """
        moved = []
        for alias, model in models.items():
            if model is None:
                if tagged(alias) in self.names():
                    self.delete_name(alias)
                    moved.append(f"Ollama tag {alias}: removed")
                continue
            fetch(model)
            self.publish(model)
            if self.set_alias(alias, model):
                moved.append(f"Ollama tag {alias}: -> {model.name}")
        return moved

    def set_alias(self, alias: str, model: ModelVersion) -> bool:
        """Make a mutable tag follow a published version; whether it moved.

        Raises:
            ReleaseError: the server is away or lacks the version.
        """
        with self._errors(f"point {alias} to {model.name}"):
            digests = self._digests()
            if digests.get(tagged(alias)) == digests.get(model.name) is not None:
                return False
            self.client.copy(model.name, alias)
            return True

    def names(self) -> frozenset[str]:
        """Names on the server, each with its tag.

        Raises:
            ReleaseError: the server is away.
        """
        with self._errors("list models"):
            return frozenset(self._digests())

    def unload(self, model: ModelVersion) -> None:
        """Free the memory a version takes; its name stays, and the next request loads it again.

        Raises:
            ReleaseError: the server is away.
        """
        with self._errors(f"unload {model.name}"):
            if model.name in self._digests():
                self.client.generate(model=model.name, keep_alive=0)

    def retire(self, model: ModelVersion) -> None:
        """Unload the version and delete its name; its blobs go with the last name that uses them.

        Raises:
            ReleaseError: the server is away.
        """
        self.unload(model)
        self.delete_name(model.name)

    def delete_name(self, name: str) -> None:
        """Delete a name; one that is not there is fine.

        Raises:
            ReleaseError: the server is away.
        """
        with self._errors(f"delete {name}"):
            if tagged(name) in self._digests():
                self.client.delete(name)

    def close(self) -> None:
        """Close the connections; nothing was started, so nothing is stopped."""
        for client in (self.client, self.loader):
            client.close()  # type: ignore[no-untyped-call]

    def _digests(self) -> dict[str, str]:
        return {each.model or "": each.digest or "" for each in self.client.list().models}

    def _upload(self, model: ModelVersion) -> None:
        """Send the weights, unless they are there; the server compares them with their digest."""
        blob = f"{self.settings.ollama_url}/api/blobs/sha256:{model.sha256}"
        with httpx.Client(timeout=UPLOAD_SECONDS) as web:
            if web.head(blob).status_code == httpx.codes.OK:
                return
            if not model.gguf.is_file():
                raise ReleaseError(f"{model.gguf} of {model.name} is missing; export it again")
            with model.gguf.open("rb") as file:
                answer = web.post(blob, content=file)
            if answer.is_error:
                raise ollama.ResponseError(answer.text, answer.status_code)

    def _create(self, model: ModelVersion, template: str) -> str:
        """Create the model of an uploaded file; its template."""
        self.loader.create(
            model=model.name,
            files={"model.gguf": f"sha256:{model.sha256}"},
            template=template,
            system=read_prompt_file(model, "system.txt"),
            parameters={
                "num_ctx": context_tokens(model, self.settings),
                "stop": [stop_text(model)],
            },
            license=f"gguf sha256 {model.sha256}",
            stream=False,
        )
        return template

    def _adds_start(self, model: ModelVersion) -> bool:
        """Load the model, and see whether the server reads two tokens where one is sent."""
        room = context_tokens(model, self.settings)
        answer = self.loader.generate(
            model=model.name,
            prompt=stop_text(model),
            raw=True,
            options=self._options(room) | {"num_predict": 1},
            keep_alive=KEEP_LOADED,
        )
        return prompt_tokens_of(answer, room=room) == 2

    def _require_same(self, model: ModelVersion, templates: tuple[str, ...]) -> str:
        """The template of a model that is there.

        Raises:
            ReleaseError: it is another model, or has none of these templates.
        """
        shown = self.client.show(model.name)
        modelfile, parameters = shown.modelfile or "", shown.parameters or ""
        is_same = (
            model.sha256 in modelfile
            and shown.template in templates
            and read_prompt_file(model, "system.txt") in modelfile
            and stop_text(model) in parameters
        )
        if not is_same:
            raise ReleaseError(
                f"Ollama at {self.settings.ollama_url} holds another model as {model.name}; names "
                "of versions never change: delete it there, or set another [registry] model_name"
            )
        return shown.template or ""

    def _request_of(self, model: ModelVersion, prompt: str, sampling: Sampling) -> dict[str, Any]:
        options = self._options(context_tokens(model, self.settings)) | {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "num_predict": sampling.max_tokens,
            "seed": sampling.seed,
        }
        return {
            "model": model.name,
            "prompt": prompt.removeprefix(self.added.get(model.name, "")),
            "raw": True,
            "stream": False,
            "keep_alive": KEEP_LOADED,
            "options": options,
        }

    def _options(self, room: int) -> dict[str, Any]:
        """Options that are fixed while a model is loaded: another value would load it anew."""
        threads = {"num_thread": self.settings.threads} if self.settings.threads else {}
        return {"num_ctx": room, **threads}

    @contextmanager
    def _errors(self, action: str, *, within: float = 0.0) -> Iterator[None]:
        url, limit = self.settings.ollama_url, within or self.settings.timeout_seconds
        try:
            yield
        except ollama.ResponseError as error:
            raise ReleaseError(
                f"Ollama at {url} refused to {action}: {str(error.error)[:300]} "
                f"(status {error.status_code}); publish the version again, or see its log"
            ) from error
        except (httpx.TimeoutException, TimeoutError) as error:
            raise ReleaseError(
                f"Ollama at {url} did not {action} within {limit:g} s; see [serve] timeout_seconds"
            ) from error
        except (OSError, httpx.TransportError, aiohttp.ClientConnectionError) as error:
            raise ReleaseError(
                f"cannot {action} on Ollama at {url}{by_proxy(url)} "
                f"({error or type(error).__name__}); is "
                "`ollama serve` running there? See [serve] ollama_url"
            ) from error
        except (
            httpx.InvalidURL,
            aiohttp.ClientError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            raise ReleaseError(
                f"Ollama at {url} did not {action}: its answer makes no sense ({error}); does "
                "[serve] ollama_url lead to an Ollama?"
            ) from error


def completion_of(
    answer: ollama.GenerateResponse, request: dict[str, Any], *, seconds: float
) -> Completion:
    """The answer as a `Completion`.

    Raises:
        ValueError: it is no answer.
    """
    counted = prompt_tokens_of(answer, room=request["options"]["num_ctx"])
    if answer.response is None or answer.done_reason not in ("stop", "length"):
        raise ValueError(f"ended by {answer.done_reason!r}")
    return Completion(
        text=answer.response.strip(),
        prompt_tokens=counted,
        tokens=answer.eval_count or 0,
        stopped="length" if answer.done_reason == "length" else "stop",
        seconds=seconds,
    )


def prompt_tokens_of(answer: ollama.GenerateResponse | ollama.ChatResponse, *, room: int) -> int:
    """All tokens of the prompt, cached ones included, as Ollama counts since 0.2.

    Raises:
        ValueError: the count is missing, or fills the context: then Ollama has cut the prompt.
    """
    counted = answer.prompt_eval_count
    if not counted:
        raise ValueError("it does not give the length of the prompt")
    if counted >= room:
        raise ValueError(f"the prompt fills all {room} tokens of the context, so it was cut")
    return counted


def tagged(name: str) -> str:
    """The name as the server lists it: `latest` is the tag of a name without one."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class AsyncConnections:
    """Kept-alive connections to one server; all calls from one event loop, which closes them."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._url, self._timeout = url.rstrip("/"), aiohttp.ClientTimeout(timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """The answer's status and body.

        Raises:
            TimeoutError: it did not come in time.
            aiohttp.ClientError: there is no connection, or it broke.
        """
        if self._session is None:
            # The service limits how many requests run at once.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
            # The environment names the proxy, and is read once: aiohttp's own `trust_env` would
            # also read a netrc file, in another thread, for every request.
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, proxy=proxy_of(self._url)
            )
        async with self._session.post(self._url + path, json=body) as answer:
            return answer.status, await answer.read()

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
