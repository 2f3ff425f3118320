"""A real Ollama server of our own, with SmolLM2 and a tiny random model on it."""

import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import httpx
import pytest

from gguf_fixtures import write_tiny_gguf
from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat, render, write_prompt_folder
from reactune.records import Sampling, sha256_of
from reactune.release.gguf import export_release
from reactune.release.ollama import Ollama
from reactune.release.parity import check_base
from reactune.release.runtimes import connect
from release_fixtures import (
    GREEDY,
    adding_a_start_token,
    chatml,
    knowing_longer_texts,
    smollm_version,
    tiny_version,
    token_count,
)
from template_fixtures import family_folder

pytestmark = pytest.mark.ollama
DRAWN = Sampling(temperature=0.8, top_p=0.95, max_tokens=12, seed=11)


@pytest.fixture(scope="module")
def settings(ollama_url):
    return ServeConfig(runtime="ollama", ollama_url=ollama_url, timeout_seconds=180.0, threads=1)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    return smollm_version(tmp_path_factory.mktemp("smollm"))


@pytest.fixture(scope="module")
def server(settings, smollm):
    with closing(Ollama(settings)) as runtime:
        runtime.publish(smollm)
        yield runtime


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_version(tmp_path_factory.mktemp("tiny"), version=7)


def loaded(settings):
    running = httpx.get(f"{settings.ollama_url}/api/ps", timeout=30).json()["models"]
    return {each["name"] for each in running}


def shown(settings, name):
    asked = httpx.post(f"{settings.ollama_url}/api/show", json={"model": name}, timeout=30)
    return asked.json()


def test_the_settings_name_the_server(settings):
    with closing(connect(settings)) as runtime:
        assert isinstance(runtime, Ollama)


def test_a_version_is_published_with_template_system_prompt_and_parameters(
    server, settings, smollm
):
    found = shown(settings, smollm.name)
    assert found["system"] == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert found["template"].startswith("<|im_start|>system\n{{ .System }}<|im_end|>\n")
    # Ollama lists them in an order that it draws.
    parameters = sorted(line.split() for line in found["parameters"].splitlines())
    assert parameters == [["num_ctx", "1024"], ["stop", '"<|im_end|>"']]
    assert f"blobs/sha256-{smollm.sha256}" in found["modelfile"]
    assert found["details"]["family"] == "llama"


def test_a_published_version_is_loaded_before_the_first_request(server, settings, smollm):
    server.unload(smollm)
    assert until(lambda: smollm.name not in loaded(settings))
    server.publish(smollm)
    assert smollm.name in loaded(settings)
    # Other options would make Ollama load the model anew for the first tip.
    before = time.monotonic()
    server.generate(smollm, chatml("Say hi."), replace(GREEDY, max_tokens=1))
    assert loaded(settings) == {smollm.name}
    assert time.monotonic() - before < 60


def until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_an_answer_ends_at_the_stop_token_without_showing_it(server, smollm):
    answer = server.generate(
        smollm, chatml("Answer with one word: yes or no?"), replace(GREEDY, max_tokens=60)
    )
    assert answer.text
    assert answer.stopped == "stop"
    assert "<|" not in answer.text
    assert answer.text == answer.text.strip()
    assert 0 < answer.tokens < 60


def test_an_answer_at_its_token_limit_is_marked_as_cut(server, smollm):
    answer = server.generate(smollm, chatml("Tell me a long story."), replace(GREEDY, max_tokens=6))
    assert (answer.stopped, answer.tokens, answer.logprob) == ("length", 6, None)


def test_all_tokens_of_a_prompt_are_counted_however_many_were_kept(server, smollm):
    prompt = chatml("Give me one tip for a tidy desk.")
    short = replace(GREEDY, max_tokens=2)
    counts = [server.generate(smollm, prompt, short).prompt_tokens for _ in range(3)]
    assert counts == [token_count(prompt)] * 3


def test_the_servers_template_makes_the_prompt_that_ours_makes(server, smollm):
    for question in ("Say hi.", "Give me one tip for a tidy desk."):
        assert server.chat_prompt_tokens(smollm, question) == token_count(chatml(question))


def test_a_start_token_is_read_once_where_the_file_asks_for_one(settings, tmp_path, monkeypatch):
    adding_a_start_token(monkeypatch)
    model = tiny_version(tmp_path, version=31)
    asked = {"model": model.name, "prompt": chatml("Hi?"), "raw": True, "stream": False}
    with closing(Ollama(settings)) as runtime:
        runtime.publish(model)
        naive = httpx.post(f"{settings.ollama_url}/api/generate", json=asked, timeout=60).json()
        once = naive["prompt_eval_count"] - 1
        assert runtime.generate(model, chatml("Hi?"), GREEDY).prompt_tokens == once
        assert runtime.chat_prompt_tokens(model, "Hi?") == once
        assert shown(settings, model.name)["template"].startswith("system\n{{ .System }}")
        runtime.publish(model)
        assert runtime.chat_prompt_tokens(model, "Hi?") == once
    with closing(Ollama(settings)) as another:
        another.publish(model)
        assert another.generate(model, chatml("Hi?"), GREEDY).prompt_tokens == once
        another.retire(model)


def test_a_start_token_that_the_template_lacks_is_refused(settings, tmp_path, monkeypatch):
    adding_a_start_token(monkeypatch)
    model = tiny_version(tmp_path, version=32)
    (model.prompt_folder / "ollama_template.txt").write_text("{{ .Prompt }}{{ .Response }}")
    with closing(Ollama(settings)) as runtime:
        with pytest.raises(ReleaseError, match="its chat template has none"):
            runtime.publish(model)
        runtime.retire(model)


@pytest.mark.slow
def test_a_base_that_ollama_reads_otherwise_is_known_before_it_is_live(settings, tmp_path):
    file = write_tiny_gguf(tmp_path / "tiny.gguf", context=1024)
    base = base_model(ModelConfig(base=str(file), cache_dir=str(tmp_path / "cache")))
    chat, export = load_chat(base.folder, PromptConfig()), ExportConfig()
    model = export_release(base, chat, None, tmp_path / "export", run_id="base", settings=export)
    with closing(Ollama(settings)) as runtime:
        asked = {"chat": chat, "runtime": runtime, "settings": export}
        assert check_base(base, model, **asked).failures == ()
        template = model.prompt_folder / "ollama_template.txt"
        template.write_text("<|im_start|>" + template.read_text())
        faults = check_base(base, model, **asked).failures
        assert all("chat endpoint reads" in fault for fault in faults)
        assert faults
        assert model.name not in runtime.names()


@pytest.mark.parametrize("family", ["gemma-2", "gemma-3", "llama-3.2", "mistral-nemo", "phi-3"])
def test_templates_of_other_families_make_the_prompts_that_ours_make(
    settings, tmp_path, monkeypatch, family
):
    knowing_longer_texts(monkeypatch)
    folder = family_folder(tmp_path / family, family)
    chat = load_chat(folder, PromptConfig())
    model = tiny_version(tmp_path, version=33)
    write_prompt_folder(chat, folder, model.prompt_folder)
    with closing(Ollama(settings)) as runtime:
        runtime.publish(model)
        for question in ("Hi?", "Call {{ .X }} & <b>?"):
            # The tiny model reads single bytes, and knows no token of the family.
            length = len(render(chat, question).encode())
            assert runtime.chat_prompt_tokens(model, question) == length
        runtime.retire(model)


def test_a_system_prompt_of_our_own_is_what_the_server_puts_in(settings, tmp_path):
    prompts = PromptConfig(system="You write tips.")
    model = smollm_version(tmp_path, version=4, prompts=prompts)
    with closing(Ollama(settings)) as runtime:
        runtime.publish(model)
        counted = runtime.chat_prompt_tokens(model, "Say hi.")
        runtime.retire(model)
    assert counted == token_count(chatml("Say hi.", system="You write tips."))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_text(server, smollm):
    prompt = chatml("Give me one tip for a tidy desk.")
    # The first request fills the cache, and a cached prompt is rounded otherwise.
    server.generate(smollm, prompt, replace(DRAWN, max_tokens=1))
    texts = [server.generate(smollm, prompt, DRAWN).text for _ in range(2)]
    assert texts[0] == texts[1]
    others = {server.generate(smollm, prompt, replace(DRAWN, seed=seed)).text for seed in range(4)}
    assert len(others) > 1


def test_threads_get_their_own_answers(server, smollm):
    prompts = [chatml(word) for word in ("One?", "Two, please?", "Three of them, please?")]
    short = replace(GREEDY, max_tokens=2)
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda prompt: server.generate(smollm, prompt, short), prompts))
    assert [answer.prompt_tokens for answer in answers] == [token_count(each) for each in prompts]


def test_publishing_again_changes_nothing(server, settings, smollm):
    before = shown(settings, smollm.name)["modified_at"]
    server.publish(smollm)
    assert shown(settings, smollm.name)["modified_at"] == before


def test_a_name_with_other_weights_or_texts_is_refused(settings, tiny, tmp_path):
    with closing(Ollama(settings)) as runtime:
        runtime.publish(tiny)
        other = tiny_version(tmp_path, version=7, seed=2)
        with pytest.raises(ReleaseError, match=r"holds another model as tip-generator:v7; names"):
            runtime.publish(other)
        folder = smollm_version(tmp_path, prompts=PromptConfig(system="Another.")).prompt_folder
        with pytest.raises(ReleaseError, match=r"holds another model as tip-generator:v7"):
            runtime.publish(replace(tiny, prompt_folder=folder))
        runtime.publish(tiny)
        runtime.retire(tiny)


def test_weights_that_are_there_are_not_sent_again(server, smollm, tmp_path):
    # The file is gone: publishing can only work because the server has the blob.
    again = replace(smollm, name="tip-generator:v5", gguf=tmp_path / "gone.gguf")
    with pytest.raises(ReleaseError, match=r"gone\.gguf of tip-generator:v5 is missing"):
        server.publish(replace(again, sha256="0" * 64))
    server.publish(again)
    assert again.name in server.names()
    server.retire(again)


def test_a_file_that_changed_since_it_was_registered_is_refused(settings, tiny, tmp_path):
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(tiny.gguf.read_bytes() + b"\0")
    with (
        closing(Ollama(settings)) as runtime,
        pytest.raises(ReleaseError, match=r"refused to publish tip-generator:v8: digest mismatch"),
    ):
        runtime.publish(replace(tiny, name="tip-generator:v8", gguf=changed, sha256="1" * 64))


def test_a_file_that_is_no_gguf_is_refused(settings, tiny, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    model = replace(tiny, name="tip-generator:v8", gguf=broken, sha256=sha256_of(broken))
    with closing(Ollama(settings)) as runtime:
        with pytest.raises(ReleaseError, match=r"refused to publish tip-generator:v8"):
            runtime.publish(model)
        assert model.name not in runtime.names()


def test_an_alias_follows_a_version_and_reports_whether_it_moved(settings, tiny, smollm, server):
    server.publish(tiny)
    assert server.set_alias("tip-generator:champion", smollm)
    assert not server.set_alias("tip-generator:champion", smollm)
    assert server.set_alias("tip-generator:champion", tiny)
    assert tiny.sha256 in shown(settings, "tip-generator:champion")["modelfile"]
    assert server.set_alias("favourite", tiny)
    assert not server.set_alias("favourite", tiny)
    for name in ("tip-generator:champion", "favourite", "never-was-there"):
        server.delete_name(name)
    server.retire(tiny)
    assert server.names() == {smollm.name}


def test_an_alias_to_a_version_that_is_not_there_is_an_error(server, tiny):
    with pytest.raises(ReleaseError, match=r"refused to point .*champion to tip-generator:v7"):
        server.set_alias("tip-generator:champion", tiny)


def test_retiring_frees_memory_and_name_and_may_be_repeated(settings, tiny):
    with closing(Ollama(settings)) as runtime:
        runtime.publish(tiny)
        assert tiny.name in loaded(settings)
        runtime.retire(tiny)
        runtime.retire(tiny)
        assert until(lambda: tiny.name not in loaded(settings))
        assert tiny.name not in runtime.names()
        with pytest.raises(ReleaseError, match=r"tip-generator:v7.*not found \(status 404\)"):
            runtime.generate(tiny, "hello", GREEDY)


def test_a_prompt_that_would_be_cut_silently_is_an_error(settings, tmp_path, monkeypatch):
    knowing_longer_texts(monkeypatch)
    model = tiny_version(tmp_path, version=9)
    with closing(Ollama(settings)) as runtime:
        runtime.publish(model)
        fits = runtime.generate(model, "x" * 1000, replace(GREEDY, max_tokens=1))
        assert fits.prompt_tokens == 1000
        with pytest.raises(ReleaseError, match="fills all 1024 tokens of the context"):
            runtime.generate(model, "x" * 3000, replace(GREEDY, max_tokens=1))
        runtime.retire(model)


def test_a_server_that_is_away_is_one_error_with_advice(smollm):
    away = Ollama(ServeConfig(runtime="ollama", ollama_url="http://127.0.0.1:9"))
    calls = {
        "publish": lambda: away.publish(smollm),
        "generate": lambda: away.generate(smollm, "hello", GREEDY),
        "chat": lambda: away.chat_prompt_tokens(smollm, "hello"),
        "list": away.names,
        "unload": lambda: away.retire(smollm),
    }
    for action, call in calls.items():
        with pytest.raises(ReleaseError, match=rf"cannot {action} .*127\.0\.0\.1:9.*ollama serve"):
            call()


def test_a_slow_answer_is_an_error_that_names_the_limit(settings, smollm, server):
    hasty = Ollama(settings.model_copy(update={"timeout_seconds": 0.02}))
    with pytest.raises(ReleaseError, match=r"within 0\.02 s; see \[serve\] timeout_seconds"):
        hasty.generate(smollm, chatml("Tell me a long story."), GREEDY)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>hello</html>", "makes no sense"),
        (200, b"[1, 2]", "makes no sense"),
        (200, b"{}", "makes no sense"),
        (200, b'{"response": "half", "done": false, "prompt_eval_count": 4}', "ended by None"),
        (
            200,
            b'{"response": "a tip", "done": true, "done_reason": "stop"}',
            "length of the prompt",
        ),
        (200, b'{"error": "out of memory"}\n', "makes no sense"),
        (500, b'{"error": "out of memory"}', r"out of memory \(status 500\)"),
        (502, b"[]", "makes no sense"),
        (502, b"Bad gateway", r"Bad gateway \(status 502\)"),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error(smollm, status, body, message):
    with (
        answering(status, body) as url,
        closing(Ollama(ServeConfig(runtime="ollama", ollama_url=url))) as runtime,
        pytest.raises(ReleaseError, match=message) as raised,
    ):
        runtime.generate(smollm, "hello", GREEDY)
    assert url in str(raised.value)


@contextmanager
def answering(status, body):
    """Something that listens and is no Ollama."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
