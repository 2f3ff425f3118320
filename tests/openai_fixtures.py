"""A server written to vLLM's documentation, small enough for tests: one base model and adapters.

Its answers are computed by transformers and PEFT from real files, so a version that is loaded here
answers as it was trained. It keeps what it was asked.
"""

import argparse
import functools
from contextlib import contextmanager

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from transformers import AutoTokenizer

from reactune.model.logprobs import open_model
from serving_fixtures import listening


class VllmLike:
    """The state of one server, and its answers. `base` is the name under which it lists itself."""

    def __init__(self, folder, *, base="org/base", key=""):
        self.folder, self.base, self.key = folder, base, key
        self.tokenizer = tokenizer_in(folder)
        self.asked, self.adapters = [], {}
        with open_model(folder, threads=1) as model:
            self.models = {base: model}

    def cards(self):
        common = {"object": "model", "owned_by": "vllm"}
        yield {"id": self.base, "root": str(self.folder), "parent": None, **common}
        for name, path in self.adapters.items():
            yield {"id": name, "root": path, "parent": self.base, **common}

    def load(self, body):
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            return refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            return refusal(400, f"The lora adapter '{name}' has already been loaded.")
        try:
            with open_model(self.folder, path, threads=1) as model:
                self.models[name] = model
        except (OSError, ValueError):
            return refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        self.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    def unload(self, body):
        name = body["lora_name"]
        if name not in self.adapters:
            return refusal(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name], self.models[name]
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    def complete(self, body):
        self.asked.append(body)
        model = self.models.get(body["model"])
        if model is None:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        prompt = body["prompt"]
        ids = self.tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
        drawn, values, end = self._draw(model, ids, body)
        choice = {
            "index": 0,
            "text": self.tokenizer.decode(drawn, skip_special_tokens=True),
            "finish_reason": end,
            "logprobs": {"token_logprobs": values},
            "prompt_logprobs": None,
        }
        if body.get("prompt_logprobs") is not None:
            told = logprobs_of_all(model, ids)
            choice["prompt_logprobs"] = [
                None,
                *(
                    {str(token): {"logprob": value, "rank": 1, "decoded_token": "?"}}
                    for token, value in zip(ids[1:], told, strict=True)
                ),
            ]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(drawn)}
        return JSONResponse({"choices": [choice], "usage": usage, "model": body["model"]})

    def _draw(self, model, ids, body):
        draw = torch.Generator().manual_seed(body.get("seed") or 0)
        stops, drawn, values = set(body.get("stop_token_ids", ())), [], []
        with torch.inference_mode():
            while len(drawn) < body["max_tokens"]:
                scores = model(torch.tensor([[*ids, *drawn]])).logits[0, -1].float()
                heat = body["temperature"]
                token = int(
                    torch.multinomial((scores / heat).softmax(-1), 1, generator=draw)
                    if heat
                    else scores.argmax()
                )
                drawn.append(token)
                values.append(float(scores.log_softmax(-1)[token]))
                if token in stops:
                    return drawn, values, "stop"
        return drawn, values, "length"

    def app(self):
        app = FastAPI()

        @app.middleware("http")
        async def check_key(request: Request, call_next):
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await call_next(request)

        app.get("/v1/models")(lambda: {"object": "list", "data": [*self.cards()]})
        app.post("/v1/load_lora_adapter")(_with_body(self.load))
        app.post("/v1/unload_lora_adapter")(_with_body(self.unload))
        app.post("/v1/completions")(_with_body(self.complete))
        return app


@functools.cache
def tokenizer_in(folder):
    return AutoTokenizer.from_pretrained(folder)


def _with_body(answer):
    async def handle(request: Request):
        return answer(await request.json())

    return handle


def refusal(status, message):
    return JSONResponse({"error": {"message": message, "code": status}}, status)


def logprobs_of_all(model, ids):
    """Log-probability of every token but the first, given those before it."""
    with torch.inference_mode():
        scores = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(scores[place, token]) for place, token in enumerate(ids[1:])]


@contextmanager
def vllm_like(folder, **options):
    """A listening server of a model's folder, and its address."""
    server = VllmLike(folder, **options)
    with listening(server.app()) as url:
        yield server, url


def main(arguments=None):
    """`vllm serve` as vLLM documents it, by this server; only options of our page are taken."""
    parser = argparse.ArgumentParser(prog="vllm")
    serve = parser.add_subparsers(required=True).add_parser("serve")
    serve.add_argument("model")
    serve.add_argument("--enable-lora", action="store_true", required=True)
    for name in ("--max-loras", "--max-lora-rank", "--max-model-len", "--port"):
        serve.add_argument(name, type=int, required=True)
    serve.add_argument("--api-key", required=True)
    given = parser.parse_args(arguments)
    server = VllmLike(given.model, base=given.model, key=given.api_key)
    uvicorn.run(server.app(), host="127.0.0.1", port=given.port)


if __name__ == "__main__":
    main()
