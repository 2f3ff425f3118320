"""What is sent to Ollama and how its answers are read, with servers that stand in for one."""

import asyncio
import json
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import ollama
import pytest

from reactune.config.sections import ServeConfig
from reactune.errors import ReleaseError
from reactune.records import Completion
from reactune.release import runtimes
from reactune.release.ollama import (
    AsyncConnections,
    Ollama,
    completion_of,
    prompt_tokens_of,
    tagged,
)
from release_fixtures import GREEDY, smollm_version


@pytest.fixture
def server():
    """A server that answers with the request line and headers that it got; its address."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            seen = {"line": self.path, "headers": [name.lower() for name in self.headers]}
            body = json.dumps(seen).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def ask(url):
    async def both():
        connections = AsyncConnections(url, timeout_seconds=5)
        try:
            return await connections.post("/api/x", {})
        finally:
            await connections.close()

    status, body = asyncio.run(both())
    assert status == 200
    return json.loads(body)


def test_the_proxy_of_the_environment_is_used_unless_the_host_is_excepted(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.setenv("no_proxy", "")
    assert ask("http://models.invalid:11434")["line"] == "http://models.invalid:11434/api/x"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ask(server)["line"] == "/api/x"


@pytest.mark.parametrize("runtime", ["ollama", "openai"])
def test_an_error_names_the_proxy_without_its_password(monkeypatch, runtime):
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    url = "http://models.invalid:11434"
    settings = ServeConfig(runtime=runtime, ollama_url=url, openai_url=url)
    with closing(runtimes.connect(settings)) as server, pytest.raises(ReleaseError) as found:
        server.check()
    assert f"{url} by way of the proxy http://me:***@127.0.0.1:9 (NO_PROXY" in str(found.value)


def test_no_password_is_sent_that_only_a_netrc_file_knows(server, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "authorization" not in ask(server)["headers"]


@contextmanager
def answering(answers):
    """A server that answers paths from a dict and keeps what it was sent; its address."""
    sent = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("content-length") or 0)
            content = self.rfile.read(length)
            sent.append((self.path, json.loads(content) if content else None))
            status, reply = answers[self.path]
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", sent
    finally:
        httpd.shutdown()
        httpd.server_close()


def settings_for(url, **changes):
    return ServeConfig(runtime="ollama", ollama_url=url, timeout_seconds=5, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return smollm_version(tmp_path_factory.mktemp("smollm"))


ANSWER = {
    "model": "m", "created_at": "2026-01-01T00:00:00Z", "response": " Walk. ", "done": True,
    "done_reason": "stop", "prompt_eval_count": 12, "eval_count": 3,
}  # fmt: skip


def write_twice(runtime, model):
    async def both():
        try:
            return [(await runtime.write(model, "<|im_start|>", GREEDY))[0] for _ in range(2)]
        finally:
            await runtime.end_writing()

    return asyncio.run(both())


def test_several_texts_are_asked_for_at_once_each_with_a_seed_of_its_own(model):
    async def write():
        try:
            return await runtime.write(model, "<|im_start|>", GREEDY, count=3)
        finally:
            await runtime.end_writing()

    with (
        answering({"/api/generate": (200, ANSWER)}) as (url, sent),
        closing(Ollama(settings_for(url))) as runtime,
    ):
        made = asyncio.run(write())
    assert [each.text for each in made] == ["Walk."] * 3
    assert sorted(body["options"]["seed"] for _, body in sent) == [1, 2, 3]


def test_awaited_or_not_the_same_raw_prompt_is_sent_with_every_sampler_stated(model):
    with (
        answering({"/api/generate": (200, ANSWER)}) as (url, sent),
        closing(Ollama(settings_for(url, threads=2))) as runtime,
    ):
        blocking = runtime.generate(model, "<|im_start|>", GREEDY)
        awaited = write_twice(runtime, model)
        again = write_twice(runtime, model)  # in another event loop
    assert len(sent) == 5
    bodies = [body for path, body in sent]
    assert all(body == bodies[-1] for body in bodies[1:])
    for body in bodies:
        assert (body["model"], body["prompt"], body["raw"]) == (model.name, "<|im_start|>", True)
        options = body["options"]
        assert (options["temperature"], options["top_p"], options["seed"]) == (0.0, 1.0, 1)
        assert (options["top_k"], options["min_p"], options["repeat_penalty"]) == (0, 0.0, 1.0)
        assert (options["num_predict"], options["num_thread"]) == (24, 2)
        assert options["num_ctx"] % 256 == 0
    for found in (blocking, *awaited, *again):
        assert replace(found, seconds=0.0) == Completion("Walk.", 12, 3, "stop", 0.0)


def test_threads_are_not_stated_where_the_server_decides(model):
    with (
        answering({"/api/generate": (200, ANSWER)}) as (url, sent),
        closing(Ollama(settings_for(url))) as runtime,
    ):
        runtime.generate(model, "hi", GREEDY)
    assert "num_thread" not in sent[0][1]["options"]


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (404, {"error": "model not found"}, r"refused to generate with .* \(status 404\); publish"),
        (500, {"error": "out of memory"}, r"out of memory.* \(status 500\)"),
        (200, {**ANSWER, "done_reason": "load"}, "makes no sense .*ended by 'load'"),
        (200, {**ANSWER, "prompt_eval_count": 0}, "does not give the length of the prompt"),
        (200, {**ANSWER, "prompt_eval_count": 10**6}, "fills all .* tokens .* so it was cut"),
        (200, ["no object"], "makes no sense"),
    ],
)
def test_a_bad_answer_is_one_error_awaited_or_not(model, status, answer, message):
    with (
        answering({"/api/generate": (status, answer)}) as (url, _),
        closing(Ollama(settings_for(url))) as runtime,
    ):
        with pytest.raises(ReleaseError, match=message):
            runtime.generate(model, "hi", GREEDY)
        with pytest.raises(ReleaseError, match=message):
            write_twice(runtime, model)


def test_a_server_that_is_away_is_one_error_awaited_or_not(model):
    with closing(Ollama(settings_for("http://127.0.0.1:9"))) as runtime:
        with pytest.raises(ReleaseError, match=r"is `ollama serve` running there\? See"):
            runtime.generate(model, "hi", GREEDY)
        with pytest.raises(ReleaseError, match=r"is `ollama serve` running there\? See"):
            write_twice(runtime, model)


def listed(*names):
    return {"models": [{"model": name, "digest": name} for name in names]}


def test_a_tag_that_nothing_follows_any_more_is_removed_once(model):
    tag = "tip-generator:challenger"
    answers = {"/api/tags": (200, listed(tag)), "/api/delete": (200, {})}
    fetched = []
    with answering(answers) as (url, sent), closing(Ollama(settings_for(url))) as runtime:
        assert runtime.set_aliases({tag: None}, fetch=fetched.append) == [
            "Ollama tag tip-generator:challenger: removed"
        ]
        answers["/api/tags"] = (200, listed())
        assert runtime.set_aliases({tag: None}, fetch=fetched.append) == []
    assert [body for path, body in sent if path == "/api/delete"] == [{"model": tag}]
    assert fetched == []


def test_the_names_of_a_server_that_is_away_are_an_error():
    with (
        closing(Ollama(settings_for("http://127.0.0.1:9"))) as runtime,
        pytest.raises(ReleaseError, match="cannot list models on Ollama at http://127"),
    ):
        runtime.names()


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("tips", "tips:latest"),
        ("tips:v1", "tips:v1"),
        ("host:5000/library/tips", "host:5000/library/tips:latest"),
        ("host:5000/library/tips:v1", "host:5000/library/tips:v1"),
    ],
)
def test_a_name_without_a_tag_is_listed_with_the_latest(name, full):
    assert tagged(name) == full


def answer_of(**changes):
    return ollama.GenerateResponse.model_validate({**ANSWER, **changes})


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_reason_of_an_end_is_kept(reason):
    found = completion_of(answer_of(done_reason=reason), {"options": {"num_ctx": 100}}, seconds=0.5)
    assert found == Completion("Walk.", 12, 3, reason, 0.5)
    assert found.logprob is None


def test_a_prompt_that_fills_the_context_was_cut():
    assert prompt_tokens_of(answer_of(), room=13) == 12
    with pytest.raises(ValueError, match="fills all 12 tokens"):
        prompt_tokens_of(answer_of(), room=12)


def test_a_server_closes_its_connections_once():
    async def closed_twice():
        connections = AsyncConnections("http://127.0.0.1:9", timeout_seconds=1)
        await connections.close()
        await connections.close()

    asyncio.run(closed_twice())


def test_a_server_is_checked_by_its_version():
    with (
        answering({"/api/version": (200, {"version": "0.40.1"})}) as (url, _),
        closing(Ollama(settings_for(f"{url}/"))) as runtime,
    ):
        assert runtime.check() == f"Ollama 0.40.1 at {url}"


@pytest.mark.parametrize(
    "answer", [(200, ["hello"]), (200, {"other": 1}), (503, {"version": "0.40.1"})]
)
def test_a_server_that_answers_otherwise_is_no_ollama(answer):
    with (
        answering({"/api/version": answer}) as (url, _),
        closing(Ollama(settings_for(url))) as runtime,
        pytest.raises(ReleaseError, match=rf"no Ollama at {url}; run `ollama serve`, or set serve"),
    ):
        runtime.check()
