"""The only module that talks to Ollama: publish a GGUF under an immutable name, and generate.

Serving sends the rendered prompt raw, so no template of the server is involved; the template that
is published with the model is for people, and for the parity check.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import ollama

from reactune.config import ServeConfig
from reactune.errors import ReleaseError
from reactune.records import Completion, ModelVersion, Sampling

CONTEXT_TOKENS = 1024
UPLOAD_SECONDS = 3600.0


@dataclass
class Ollama:
    """A connection to the server at `[serve] ollama_url`."""

    settings: ServeConfig
    client: ollama.Client = field(init=False)
    loader: ollama.Client = field(init=False)

    def __post_init__(self) -> None:
        url = self.settings.ollama_url
        self.client = ollama.Client(host=url, timeout=self.settings.timeout_seconds)
        self.loader = ollama.Client(host=url, timeout=UPLOAD_SECONDS)

    def publish(self, model: ModelVersion) -> None:
        """Upload the GGUF and create the model with template, system prompt and parameters.

        A name that is there with these very weights and texts stays as it is.

        Raises:
            ReleaseError: the server is away or refuses, or the name holds another model.
        """
        folder = model.prompt_folder
        template, system, stop = (
            (folder / f"{name}.txt").read_text(encoding="utf-8")
            for name in ("ollama_template", "system", "stop")
        )
        with self._errors(f"publish {model.name}"):
            if model.name in self.names():
                self._require_same(model, template, system)
                return
            digest = self.loader.create_blob(str(model.gguf))
            self.loader.create(
                model=model.name,
                files={"model.gguf": digest},
                template=template,
                system=system,
                parameters={"num_ctx": CONTEXT_TOKENS, "stop": [stop]},
                license=f"gguf sha256 {model.sha256}",
                stream=False,
            )

    def generate(self, model: ModelVersion, prompt: str, sampling: Sampling) -> Completion:
        """Continue the prompt as `Runtime.generate` promises.

        Raises:
            ReleaseError: the server is away or slow, lacks the model, or answers nonsense.
        """
        started = time.monotonic()
        with self._errors(f"generate with {model.name}"):
            answer = self.client.generate(
                model=model.name,
                prompt=prompt,
                raw=True,
                stream=False,
                keep_alive="30m",
                options={
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "top_k": 0,
                    "min_p": 0.0,
                    "repeat_penalty": 1.0,
                    "num_predict": sampling.max_tokens,
                    "seed": sampling.seed,
                    "num_ctx": CONTEXT_TOKENS,
                    **self._threads(),
                },
            )
        return Completion(
            text=(answer.response or "").strip(),
            prompt_tokens=answer.prompt_eval_count or 0,
            tokens=answer.eval_count or 0,
            stopped="length" if answer.done_reason == "length" else "stop",
            seconds=time.monotonic() - started,
        )

    def chat_prompt_tokens(self, model: ModelVersion, user_text: str) -> int:
        """How many tokens the server's own template makes of a user message.

        Raises:
            ReleaseError: as `generate`.
        """
        with self._errors(f"chat with {model.name}"):
            answer = self.client.chat(
                model=model.name,
                messages=[{"role": "user", "content": user_text}],
                options={"num_predict": 1, "num_ctx": CONTEXT_TOKENS, **self._threads()},
            )
        return answer.prompt_eval_count or 0

    def point(self, alias: str, model: ModelVersion) -> bool:
        """Let a mutable tag such as `tip-generator:champion` follow a version; whether it moved.

        Raises:
            ReleaseError: the server is away or lacks the version.
        """
        with self._errors(f"point {alias} to {model.name}"):
            digests = self._digests()
            if digests.get(alias) == digests.get(model.name) is not None:
                return False
            self.client.copy(model.name, alias)
            return True

    def names(self) -> frozenset[str]:
        """Names on the server.

        Raises:
            ReleaseError: the server is away.
        """
        with self._errors("list models"):
            return frozenset(self._digests())

    def retire(self, model: ModelVersion) -> None:
        """Delete the version's name; its blobs go with the last name that uses them."""
        self.forget(model.name)

    def forget(self, name: str) -> None:
        """Delete a name; one that is not there is fine."""
        with self._errors(f"delete {name}"):
            if name in self._digests():
                self.client.delete(name)

    def close(self) -> None:
        """Nothing was started, so nothing is stopped."""

    def _digests(self) -> dict[str, str]:
        return {each.model or "": each.digest or "" for each in self.client.list().models}

    def _require_same(self, model: ModelVersion, template: str, system: str) -> None:
        shown: Any = self.client.show(model.name)
        there = (shown.license, shown.template, (shown.modelfile or ""))
        same = model.sha256 in (there[0] or "") and there[1] == template and system in there[2]
        if not same:
            raise ReleaseError(
                f"Ollama at {self.settings.ollama_url} holds another model as {model.name}; names "
                "of versions never change: delete it there, or set another [registry] model_name"
            )

    def _threads(self) -> dict[str, int]:
        return {"num_thread": self.settings.threads} if self.settings.threads else {}

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        url = self.settings.ollama_url
        try:
            yield
        except ollama.ResponseError as error:
            raise ReleaseError(
                f"Ollama at {url} refused to {action}: {error.error[:300]} "
                f"(status {error.status_code})"
            ) from error
        except (httpx.HTTPError, ConnectionError, ValueError) as error:
            raise ReleaseError(
                f"Ollama at {url} did not {action} ({type(error).__name__}); "
                "is `ollama serve` running there? See [serve] ollama_url"
            ) from error
