"""A model server of our own for the service's tests, and a store in which something is live."""

import asyncio
import contextlib
import threading
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi.testclient import TestClient

from reactune.canary import rollout
from reactune.canary.routing import route, unit_key
from reactune.config.sections import CanaryConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import HashingKey, user_key
from reactune.records import Completion, Exposure, ModelVersion, Reason
from reactune.service import tips
from reactune.service.state import close_service, open_service
from reactune.store.database import create_store, writing
from reactune.store.queries import add_model_version
from reactune.store.schema import tip_scores
from reactune.web.api import create_app
from server_fixtures import free_port

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
KEY = HashingKey(b"k" * 32)
PROMPTS = PromptConfig(context_keys=("open_tasks", "free_text"), max_context_tokens=64)
QUICK = ServeConfig(timeout_seconds=0.3)
MORNING = {"open_tasks": ["water the plants"]}


@contextlib.contextmanager
def listening(app, port=None):
    """An app behind a real socket; its address."""
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


class ModelServer:
    """Stands in for the model server outside: per version, a text or a function that gives one.

    A function may give a whole `Completion`.
    """

    def __init__(self, answers):
        self.answers = answers
        self.published, self.retired = [], []
        self.closed = False

    def check(self, *, versions=1, base=""):
        return "a model server of the tests"

    def publish(self, model):
        self.published.append(model.version)

    def generate(self, model, prompt, sampling):
        if model.version not in self.published:
            raise ReleaseError(f"{model.name} is not published")
        answer = self.answers[model.version]
        text = answer if isinstance(answer, str) else answer(prompt, sampling)
        if isinstance(text, Completion):
            return text
        return Completion(text, len(prompt), len(text), "stop", 0.01, logprob=-1.5)

    async def write(self, model, prompt, sampling, *, count=1):
        draws = [replace(sampling, seed=sampling.seed + place) for place in range(count)]
        ask = partial(self._generate_all, model, prompt, draws)
        # A thread of its own each: one that hangs is left behind and holds up nobody.
        return await to_thread.run_sync(ask, abandon_on_cancel=True, limiter=CapacityLimiter(1))

    def _generate_all(self, model, prompt, draws):
        return tuple(self.generate(model, prompt, each) for each in draws)

    async def end_writing(self):
        pass

    def token_logprobs(self, model, prompt, completion):
        return None

    def chat_prompt_tokens(self, model, user_text):
        return None

    def set_aliases(self, models, *, fetch):
        return []

    def retire(self, model):
        self.published.remove(model.version)
        self.retired.append(model.version)

    def close(self):
        self.closed = True


@pytest.fixture(scope="session")
def chat():
    """The base model's template and tokenizer, with the settings of these tests."""
    return load_chat(base_model(ModelConfig()).folder, PROMPTS)


@pytest.fixture
def server():
    """A model server that has a text for both versions."""
    return ModelServer({1: "Champion's tip.", 2: "Challenger's tip."})


@pytest.fixture
def served(sqlite_url, chat):
    """A client of a service with these settings, over a store with a champion."""
    engine = create_store(sqlite_url)
    set_champion(engine)
    opened = []

    def serve(**settings):
        server = ModelServer({1: "Champion's tip.", 2: "Challenger's tip."})
        service = service_of(engine, chat, server, settings=ServeConfig(**settings))
        client = TestClient(create_app(service))
        client.__enter__()
        opened.append((client, service))
        serve.servers.append(server)
        return client

    serve.engine, serve.servers = engine, []
    yield serve
    for client, service in opened:
        client.__exit__(None, None, None)
        close_service(service)
    engine.dispose()


@pytest.fixture
def store(sqlite_url):
    """An open store with empty tables, on SQLite alone."""
    engine = create_store(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def opened(engine):
    """A rollout of version 2 against version 1, half of the units each."""
    set_champion(engine)
    return set_challenger(engine)


@pytest.fixture
def service(engine, chat, server):
    """A service over the store and the model server, without background work."""
    service = service_of(engine, chat, server)
    yield service
    close_service(service)


def cut(text):
    """What a server answers that was stopped at `max_tokens` after this text."""
    return lambda prompt, sampling: Completion(text, 9, sampling.max_tokens, "length", 0.01, -1.5)


def fails(prompt, sampling):
    raise ReleaseError(f"the server choked on {prompt}")


def breaks(prompt, sampling):
    raise KeyError(prompt)


class Hanging:
    """Does not answer before it is let go."""

    def __init__(self):
        self.let_go = threading.Event()

    def __call__(self, prompt, sampling):
        self.let_go.wait(20)
        return "too late"


def version(number, folder=Path("/models"), run_id=""):
    return ModelVersion(
        version=number,
        name=f"tips:v{number}",
        run_id=run_id or f"run-{number}",
        gguf=folder / f"v{number}.gguf",
        sha256=f"{number:02x}" * 32,
        prompt_folder=folder,
        base="smollm2-135m-instruct",
        quantisation="q8_0",
    )


def register(engine, model):
    with writing(engine) as connection:
        add_model_version(connection, model, NOON)


def set_champion(engine, model=None):
    register(engine, model or version(1))
    return rollout.bootstrap_champion(engine, 1, settings=CanaryConfig(), now=NOON)


def set_challenger(engine, model=None, *, share=0.5, unit="user_day"):
    register(engine, model or version(2))
    settings = CanaryConfig(share=share, ramp=(), unit=unit)
    return rollout.open_rollout(engine, 2, settings=settings, salt="salt of the test", now=NOON)


def roll_back(engine, opened, now=NOON):
    return rollout.roll_back(engine, opened, Reason("hand", "test", {}, now))


def promote(engine, opened, now=NOON):
    return rollout.promote(engine, opened, Reason("hand", "test", {}, now))


def service_of(engine, chat, server, *, settings=QUICK, clock=lambda: NOON, **more):
    return open_service(
        engine, chat=chat, runtime=server, key=KEY, settings=settings, clock=clock, **more
    )


def request_tip(service, *, user_id, kind, context, names=(), tip_id=""):
    request = tips.TipRequest(user_id, kind, context, tuple(names), tip_id)
    return tips.request_tip(service, request)


def ask(service, user="person-1@example.org", context=MORNING, **more):
    return request_tip(service, user_id=user, kind="focus", context=context, **more)


def report_shown(service, tip_id):
    return asyncio.run(tips.record_shown(service, tip_id))


def react(service, tip_id, reaction, dwell_ms):
    return asyncio.run(tips.record_reaction(service, tip_id, reaction, dwell_ms))


def exposure_of(**values):
    """An exposure of the champion's, with these values."""
    defaults = {
        "tip_id": "t1", "user_key": "u", "key_id": "k", "kind": "focus", "context_json": "{}",
        "source": "llm", "tip_content": "Take a walk", "model_version": 1, "sampling_json": None,
        "fallback": None, "guard": "passed", "arm": "champion", "rollout_id": None,
        "unit_key": "u", "propensity": 1.0, "created_at": NOON, "answer_ms": 5,
    }  # fmt: skip
    return Exposure(**defaults | values)


def users_on(arm, opened, *, at=NOON):
    """User ids that the routing gives this arm, without end."""
    number = 0
    while True:
        number += 1
        user = f"person-{number}@example.org"
        unit = unit_key("user_day", tip_id="", user_key=user_key(KEY, user), at=at)
        if route(unit, salt=opened.salt, share=opened.share) == arm:
            yield user


def rows_of(engine):
    with engine.connect() as connection:
        rows = connection.execute(sa.select(tip_scores).order_by("created_at")).mappings()
        return [dict(row) for row in rows]
