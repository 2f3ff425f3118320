"""Tips from any server of OpenAI's completions API: vLLM, SGLang, llama.cpp's own, TGI.

Prompts are sent as token ids, or as rendered text, so no template of the server is involved. On
vLLM one base model serves all versions: each is an adapter that is loaded beside it by name. A
server without that call answers for what it was started with.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from reactune.config.sections import ServeConfig
from reactune.environment import by_proxy
from reactune.errors import ReleaseError
from reactune.model.prompt import read_prompt_file, stop_text
from reactune.records import Completion, ModelVersion, Sampling

KEY = "REACTUNE_OPENAI_KEY"
CHECK_SECONDS = 5.0
LOAD_SECONDS = 600.0
IDLE_SECONDS = 2.0  # well below the five after which vLLM and llama.cpp close a connection
BUSY_SECONDS = 1.0  # where a busy server does not say when to come again
SHORTEST_PAUSE = 0.05
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
ENDS = {"stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length"}
ABSENT = (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED)
BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
REFUSED = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)
DENIED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
NEED = (
    "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or take another "
    "[serve] runtime"
)
Card = Mapping[str, Any]


@dataclass
class OpenAICompatible:
    """A connection to the server at `[serve] openai_url`; safe for many threads.

    At most `openai_requests` requests are in flight; more wait, within their time limit. A key that
    no request can hold is a `ReleaseError`.
    """

    settings: ServeConfig
    key: str = field(default_factory=lambda: os.environ.get(KEY, "").strip(), repr=False)
    served: dict[str, str] = field(default_factory=dict)  # name of a version = the server's name
    client: httpx.Client = field(init=False)
    async_client: httpx.AsyncClient | None = None  # opened by `write` in its event loop
    writes_several: bool = True  # texts for one request; False once it did not

    def __post_init__(self) -> None:
        if not (self.key.isascii() and self.key.isprintable()):
            raise ReleaseError(f"{KEY}: no key of a server has such characters; set it anew")
        self.client = httpx.Client(**self._connection())

    def check(self, *, versions: int = 1, base: str = "") -> str:
        """The server's address and base model, and whether it can hold several versions.

        Raises:
            ReleaseError: no such server answers, it wants another key, lacks the base model or
                holds another, or cannot hold so many versions.
        """
        with self._errors("list its models", within=CHECK_SECONDS):
            cards = self._cards(timeout=CHECK_SECONDS)
            # Without a name to load, a server that could load one refuses, and nothing changes.
            probe = self.client.post(LOAD, json={}, timeout=CHECK_SECONDS)
            if probe.status_code not in (*ABSENT, *REFUSED):
                probe.raise_for_status()
        name = self._base_name(cards)
        self._require_same_base(next(card for card in cards if card["id"] == name), base)
        server = f"{name} at {self.settings.openai_url}"
        if probe.status_code not in ABSENT:
            return f"{server}, which loads an adapter for each version"
        if versions > 1:
            raise ReleaseError(
                f"{server} answers for one version, and {versions} are needed; {NEED}"
            )
        return f"{server}, which answers for one version: it loads no adapters"

    def publish(self, model: ModelVersion) -> None:
        """Load the version's adapter under its name, unless the server lists that name already.

        The base model, which has no adapter, answers under the server's own name for it.

        Raises:
            ReleaseError: the server is away, cannot hold the version or read its adapter, or holds
                another adapter under the name.
        """
        try:
            with self._errors(f"publish {model.name}", within=LOAD_SECONDS):
                cards = self._cards()
                name = model.name
                if not self._lists(cards, model):
                    if model.adapter is None:
                        name = self._base_name(cards)
                    else:
                        self._load(model)
        except ReleaseError:
            self.served.pop(model.name, None)
            raise
        # Only now: until then it answers under the name that it had.
        self.served[model.name] = name

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """Continue the prompt as `Runtime.generate` promises.

        Raises:
            ReleaseError: the version is not published, or the server is away, slow, busy, or
                answers nonsense.
        """
        body = self._completion_request(model, prompt, sampling)
        started = time.monotonic()
        with self._errors(f"generate with {model.name}"):
            answer = self._post("/v1/completions", body)
            return completions_of(answer, seconds=time.monotonic() - started)[0]

    async def write(
        self, model: ModelVersion, prompt: str, sampling: Sampling, *, count: int = 1
    ) -> tuple[Completion, ...]:
        """`generate`, awaited, `count` times in one request; all calls from one event loop.

        A server that refuses several texts, or writes fewer, is asked for each alone from then on.

        Raises:
            ReleaseError: as `generate`.
        """
        made: tuple[Completion, ...] = ()
        if count == 1 or self.writes_several:
            made = await self._write(model, prompt, sampling, count)
            self.writes_several &= len(made) == count
        draws = (replace(sampling, seed=sampling.seed + n) for n in range(len(made), count))
        others = await asyncio.gather(*(self._write(model, prompt, each, 1) for each in draws))
        return made + tuple(one for (one,) in others)

    async def _write(
        self, model: ModelVersion, prompt: str, sampling: Sampling, count: int
    ) -> tuple[Completion, ...]:
        """At most `count` texts of one request; none where the server refuses so many."""
        body = self._completion_request(model, prompt, sampling)
        started = time.monotonic()
        with self._errors(f"generate with {model.name}"):
            try:
                several = {"n": count} if count > 1 else {}
                answer = await self._post_async("/v1/completions", body | several)
            except httpx.HTTPStatusError as error:
                if count > 1 and error.response.status_code in REFUSED:
                    return ()
                raise
            return completions_of(answer, seconds=time.monotonic() - started)[:count]

    async def end_writing(self) -> None:
        """Close the connections of `write`; the next call opens new ones."""
        client, self.async_client = self.async_client, None
        if client is not None:
            await client.aclose()

    def token_logprobs(
        self, model: ModelVersion, prompt: Sequence[int], completion: Sequence[int]
    ) -> tuple[float, ...] | None:
        """The server's log-probability of each token of a completion; None: it tells none.

        vLLM answers to `prompt_logprobs`, others to `echo` with `logprobs`, llama.cpp to neither.

        Raises:
            ReleaseError: as `generate`.
        """
        ids = [*prompt, *completion]
        body = {
            "model": self._name_of(model),
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "echo": True,
            "logprobs": 1,
        }
        with self._errors(f"score with {model.name}"):
            try:
                answer = self._post("/v1/completions", body)
            except httpx.HTTPStatusError as error:
                if error.response.status_code in REFUSED:
                    return None
                raise
            found = logprobs_of(answer["choices"][0], ids)
        return None if found is None else tuple(found[len(prompt) :])

    def chat_prompt_tokens(self, model: ModelVersion, user_text: str) -> None:
        """None: no template of the server is involved."""

    def set_aliases(
        self,
        models: Mapping[str, ModelVersion | None],
        *,
        fetch: Callable[[ModelVersion], object],
    ) -> list[str]:
        """Nothing: these servers have no tags."""
        return []

    def retire(self, model: ModelVersion) -> None:
        """Unload the version's adapter; one that is not there is fine.

        Raises:
            ReleaseError: the server is away, or cannot unload it.
        """
        self.served.pop(model.name, None)
        if model.adapter is None:
            return
        with self._errors(f"unload {model.name}"):
            answer = self.client.post(UNLOAD, json={"lora_name": model.name})
            if answer.status_code not in (*ABSENT, *REFUSED):
                answer.raise_for_status()

    def close(self) -> None:
        """Close the connections; nothing was started, so nothing is stopped."""
        self.client.close()

    def _connection(self) -> dict[str, Any]:
        return {
            "base_url": self.settings.openai_url,
            "headers": {"Authorization": f"Bearer {self.key}"} if self.key else {},
            "timeout": self.settings.timeout_seconds,
            # A connection carries one request at a time.
            "limits": httpx.Limits(
                max_connections=self.settings.openai_requests, keepalive_expiry=IDLE_SECONDS
            ),
        }

    def _cards(self, *, timeout: float | None = None) -> list[Card]:
        """What the server lists: base models, and adapters, which name a parent."""
        answer = self.client.get("/v1/models", timeout=timeout or self.settings.timeout_seconds)
        cards: list[Card] = answer.raise_for_status().json()["data"]
        return cards

    def _base_name(self, cards: Sequence[Card]) -> str:
        """The server's name for the base model.

        Raises:
            ReleaseError: it does not list the one that the settings name, or none or several.
        """
        wanted = self.settings.openai_model
        names = [str(card["id"]) for card in cards if not card.get("parent")]
        if wanted in names or (not wanted and len(names) == 1):
            return wanted or names[0]
        listed = ", ".join(names) or "no model"
        raise ReleaseError(
            f"[serve] openai_model = {wanted!r}, but the server at {self.settings.openai_url} "
            f"lists {listed}; name the one that is the base model there"
        )

    def _require_same_base(self, card: Card, base: str) -> None:
        """Compare the server's model with ours by name, unless the settings name the server's.

        A name is the last part of a path or of a name from the hub, in any case.
        """
        theirs = {last_part(str(card["id"])), last_part(str(card.get("root") or ""))}
        if self.settings.openai_model or not base or last_part(base) in theirs:
            return
        raise ReleaseError(
            f"the server at {self.settings.openai_url} holds {card['id']}, and [model] base is "
            f"{base}; serve that, or if both are the same model, set [serve] openai_model = "
            f"{card['id']!r}"
        )

    def _lists(self, cards: Sequence[Card], model: ModelVersion) -> bool:
        """Whether the server lists the version by its own name.

        Raises:
            ReleaseError: the name is there, for an adapter of another folder.
        """
        card = next((card for card in cards if card["id"] == model.name), None)
        if card is None:
            return False
        if card.get("parent") and card.get("root") != self._adapter_path(model):
            raise ReleaseError(
                f"the server at {self.settings.openai_url} holds the adapter {card.get('root')} as "
                f"{model.name}; names of versions never change: unload it there, or set another "
                "[registry] model_name"
            )
        return True

    def _load(self, model: ModelVersion) -> None:
        url, path = self.settings.openai_url, str(self._adapter_path(model))
        body = {"lora_name": model.name, "lora_path": path}
        answer = self.client.post(LOAD, json=body, timeout=LOAD_SECONDS)
        if answer.is_success:
            return
        status, reason = answer.status_code, reason_of(answer)
        # vLLM says 404 too where it does not find the adapter, and names it.
        if status in ABSENT and model.name not in reason and path not in reason:
            raise ReleaseError(
                f"the server at {url} cannot hold {model.name} beside its own model, for it loads "
                f"no adapters (status {status}); {NEED}, or start a server of {model.gguf} under "
                "that name"
            )
        if status in (*DENIED, *BUSY):
            answer.raise_for_status()
        # Another process may have loaded it since the models were listed.
        if not self._lists(self._cards(), model):
            raise ReleaseError(
                f"the server at {url} does not load {path} as {model.name}: {reason} (status "
                f"{status}); it must see that folder ([serve] openai_runs) and allow the rank of "
                "[train] lora_rank (vLLM: --max-lora-rank)"
            )

    def _adapter_path(self, model: ModelVersion) -> str | None:
        """Where the server finds the adapter: run, stage and folder below `openai_runs`."""
        if model.adapter is None:
            return None
        here = model.adapter.absolute()
        there = self.settings.openai_runs
        return str(Path(there, *here.parts[-3:]) if there else here)

    def _name_of(self, model: ModelVersion) -> str:
        name = self.served.get(model.name)
        if name is None:
            raise ReleaseError(
                f"{model.name} is not published on the server at {self.settings.openai_url}; "
                "publish it first"
            )
        return name

    def _completion_request(
        self, model: ModelVersion, prompt: str, sampling: Sampling
    ) -> dict[str, Any]:
        tokenizer = tokenizer_of(model)
        as_text = self.settings.openai_prompt == "text"
        return request_of(
            self._name_of(model),
            text_to_send(tokenizer, prompt) if as_text else ids_of(tokenizer, prompt),
            sampling,
            stop=stop_text(model),
            stop_id=tokenizer.token_to_id(stop_text(model)),
        )

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer; while the server is busy, the request is repeated until its time is over."""
        until = time.monotonic() + self.settings.timeout_seconds
        while True:
            answer = self.client.post(path, json=body)
            pause = pause_of(answer, left=until - time.monotonic())
            if pause is None:
                return _read(answer)
            time.sleep(pause)

    async def _post_async(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + self.settings.timeout_seconds
        if self.async_client is None:
            self.async_client = httpx.AsyncClient(**self._connection())
        while True:
            answer = await self.async_client.post(path, json=body)
            pause = pause_of(answer, left=until - time.monotonic())
            if pause is None:
                return _read(answer)
            await asyncio.sleep(pause)

    @contextmanager
    def _errors(self, action: str, *, within: float = 0.0) -> Iterator[None]:
        url, limit = self.settings.openai_url, within or self.settings.timeout_seconds
        try:
            yield
        except httpx.HTTPStatusError as error:
            answer = error.response
            reason = reason_of(answer)
            raise ReleaseError(
                f"the server at {url} refused to {action}: "
                f"{reason.replace(self.key, '***') if self.key else reason} "
                f"(status {answer.status_code}); {_advice(answer)}"
            ) from None  # the request of the cause holds the key
        except httpx.TimeoutException as error:
            raise ReleaseError(
                f"the server at {url} did not {action} within {limit:g} s; see [serve] "
                "timeout_seconds, openai_requests"
            ) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise ReleaseError(
                f"cannot {action} on the server at {url}{by_proxy(url)} "
                f"({error or type(error).__name__}); does "
                "it run there? See [serve] openai_url"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ReleaseError(
                f"the server at {url} did not {action}: its answer makes no sense ({error!r}); "
                "does [serve] openai_url lead to a server with /v1/completions?"
            ) from error


@lru_cache(maxsize=8)
def tokenizer_of(model: ModelVersion) -> Tokenizer:
    """The tokenizer by which the version was trained.

    Raises:
        ReleaseError: the version's prompt folder is missing.
    """
    return Tokenizer.from_str(read_prompt_file(model, "tokenizer.json"))


def last_part(name: str) -> str:
    """The last part of a path or of a name from the hub, in lower case."""
    return name.rstrip("/").rpartition("/")[2].lower()


def ids_of(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a rendered prompt, as training reads it: nothing is added."""
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids
    return ids


def text_to_send(tokenizer: Tokenizer, prompt: str) -> str:
    """The text of which a server that adds a start token makes the prompt's token ids.

    Where the tokenizer adds the token with which the prompt begins already, that one is left out.
    """
    plain = tokenizer.encode(prompt, add_special_tokens=False)
    added = tokenizer.encode(prompt)
    if plain.ids and added.ids == [plain.ids[0], *plain.ids]:
        return prompt[plain.offsets[0][1] :]
    return prompt


def request_of(
    name: str, prompt: str | list[int], sampling: Sampling, *, stop: str, stop_id: int | None
) -> dict[str, Any]:
    """The body of one completion; every sampler is stated, for a model may bring its own defaults.

    `top_k`, `min_p`, `repetition_penalty` and `stop_token_ids` are not of OpenAI's API; servers
    that do not know them leave them out.
    """
    return {
        "model": name,
        "prompt": prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        # Without effect on greedy answers, for which TGI refuses 1.
        **({"top_p": sampling.top_p} if sampling.temperature else {}),
        "top_k": -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": sampling.seed,
        "stop": [stop],
        # A stop text that is a special token is in no text that vLLM compares.
        **({} if stop_id is None else {"stop_token_ids": [stop_id]}),
        "logprobs": 1,
    }


def completions_of(answer: Mapping[str, Any], *, seconds: float) -> tuple[Completion, ...]:
    """The texts of an answer; where the server counts it, a stop token counts as drawn.

    Of several texts the server counts the tokens together: each has those of which it tells the
    log-probability, else an equal part.

    Raises:
        IndexError, KeyError, TypeError, ValueError: it is no answer.
    """
    choices, usage = answer["choices"], answer["usage"]
    if not choices:
        raise ValueError("no text")
    together, made = int(usage["completion_tokens"]), []
    for choice in sorted(choices, key=lambda each: each.get("index", 0)):
        if choice["finish_reason"] not in ENDS:
            raise ValueError(f"ended by {choice['finish_reason']!r}")
        drawn = drawn_logprobs(choice.get("logprobs"))
        alone = len(choices) == 1
        made.append(
            Completion(
                text=choice["text"].strip(),
                prompt_tokens=int(usage["prompt_tokens"]),
                tokens=together if alone else len(drawn) or together // len(choices),
                stopped="length" if ENDS[choice["finish_reason"]] == "length" else "stop",
                seconds=seconds,
                logprob=sum(drawn) if drawn else None,
            )
        )
    return tuple(made)


def drawn_logprobs(logprobs: Mapping[str, Any] | None) -> list[float]:
    """Log-probabilities in OpenAI's form for completions, or in that of its chats (llama.cpp)."""
    if not logprobs:
        return []
    if "content" in logprobs:
        return [each["logprob"] for each in logprobs["content"] or ()]
    return [each for each in logprobs.get("token_logprobs") or () if each is not None]


def logprobs_of(choice: Mapping[str, Any], ids: Sequence[int]) -> list[float] | None:
    """Log-probability of each token of an echoed prompt; None: the answer does not tell.

    The first token follows nothing and has none; it counts as certain.

    Raises:
        KeyError, TypeError, ValueError: the answer is not about these tokens.
    """
    told = choice.get("prompt_logprobs")
    if told:
        rest = [
            place[str(token)]["logprob"] for place, token in zip(told[1:], ids[1:], strict=True)
        ]
        return [0.0, *map(float, rest)]
    echoed = (choice.get("logprobs") or {}).get("token_logprobs") or []
    # A server that does not echo tells of the one token that it wrote.
    if len(echoed) < len(ids):
        return None
    return [0.0, *map(float, echoed[1 : len(ids)])]


def pause_of(answer: httpx.Response, *, left: float) -> float | None:
    """Seconds to wait before the request is repeated; None: it is not.

    It is where the server is busy (429, 503) and there are seconds left for it.
    """
    if answer.status_code not in BUSY:
        return None
    try:
        pause = max(float(answer.headers.get("Retry-After", BUSY_SECONDS)), SHORTEST_PAUSE)
    except ValueError:
        pause = BUSY_SECONDS  # a date
    return pause if pause < left else None


def reason_of(answer: httpx.Response) -> str:
    """What a server says about a refusal, in one of the forms that are in use."""
    try:
        said = answer.json()
        found = said.get("error", said)
        message = found["message"] if "message" in found else found["detail"]
    except (ValueError, KeyError, TypeError, AttributeError):
        message = answer.text.strip() or "no reason given"
    return str(message)[:300]


def _advice(answer: httpx.Response) -> str:
    if answer.status_code in DENIED:
        return f"put its key into the environment variable {KEY}"
    if answer.status_code in BUSY:
        return "it is busy: lower [serve] openai_requests, or give it more room"
    return "publish the version again, or see its log"


def _read(answer: httpx.Response) -> dict[str, Any]:
    content: dict[str, Any] = answer.raise_for_status().json()
    return content
