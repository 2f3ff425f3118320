"""llama.cpp's real server in real child processes, on SmolLM2 and on a tiny random model."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import httpx
import psutil
import pytest

from places import TESTS
from reactune.config.sections import ModelConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.records import Sampling
from reactune.release import llamacpp
from reactune.release.llamacpp import (
    LlamaCpp,
    completion_of,
    reason_in,
    request_of,
    tokens_request,
)
from reactune.release.runtimes import connect
from release_fixtures import (
    GREEDY,
    adding_a_start_token,
    chatml,
    smollm_version,
    tiny_version,
    token_count,
)

PATIENT = ServeConfig(timeout_seconds=120.0, parallel=4)
DRAWN = Sampling(temperature=0.8, top_p=0.95, max_tokens=16, seed=11)
QUESTIONS = [
    "Say hi.",
    "Give me one tip for a tidy desk.",
    "What should I do first this morning?",
]


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    return smollm_version(tmp_path_factory.mktemp("smollm"))


@pytest.fixture(scope="module")
def server(smollm):
    with closing(LlamaCpp(PATIENT)) as runtime:
        runtime.publish(smollm)
        yield runtime


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_version(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_server(tiny):
    with closing(LlamaCpp(PATIENT)) as runtime:
        runtime.publish(tiny)
        yield runtime


def child_of(runtime, model):
    return psutil.Process(runtime.servers[model.name].process.pid)


def is_gone(process):
    psutil.wait_procs([process], timeout=20)
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_the_settings_name_the_embedded_server():
    with closing(connect(PATIENT)) as runtime:
        assert isinstance(runtime, LlamaCpp)


def test_an_answer_ends_at_the_stop_token_without_showing_it(server, smollm):
    question = chatml("Answer with one word: what is the capital of France?")
    answer = server.generate(smollm, question, replace(GREEDY, max_tokens=60))
    assert "Paris" in answer.text
    assert answer.stopped == "stop"
    assert "<|" not in answer.text
    assert answer.text == answer.text.strip()
    assert 0 < answer.tokens < 60
    assert answer.seconds > 0


def test_an_answer_at_its_token_limit_is_marked_as_cut(server, smollm):
    answer = server.generate(smollm, chatml("Tell me a long story."), replace(GREEDY, max_tokens=8))
    assert (answer.stopped, answer.tokens) == ("length", 8)


@pytest.mark.parametrize("question", QUESTIONS)
def test_all_tokens_of_a_prompt_are_counted_however_many_were_kept(server, smollm, question):
    prompt = chatml(question)
    counts = {server.generate(smollm, prompt, GREEDY).prompt_tokens for _ in range(3)}
    assert counts == {token_count(prompt)}


def test_the_same_seed_gives_the_same_text(server, smollm):
    brief = replace(DRAWN, max_tokens=3)
    for question in QUESTIONS:
        story = chatml(f"{question} {' '.join(QUESTIONS)} " * 2)
        first, again = (server.generate(smollm, story, brief) for _ in range(2))
        assert first.text == again.text
        # Texts are often alike by luck; this only if every sum was rounded alike.
        assert first.logprob == again.logprob


def test_another_seed_gives_another_text(server, smollm):
    prompt = chatml("Give me one tip for a tidy desk.")
    texts = {server.generate(smollm, prompt, replace(DRAWN, seed=seed)).text for seed in range(4)}
    assert len(texts) > 1


def test_the_log_probability_is_that_of_the_drawn_tokens(server, smollm):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = base_model(ModelConfig()).folder
    prompt = chatml("Answer with one word: what is the capital of France?")
    answer = server.generate(smollm, prompt, replace(GREEDY, max_tokens=60))
    reader = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = reader(prompt + answer.text + "<|im_end|>", add_special_tokens=False).input_ids
    with torch.inference_mode():
        scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    drawn = range(token_count(prompt), len(ids))
    assert len(drawn) == answer.tokens
    expected = sum(float(scores[place - 1, ids[place]]) for place in drawn)
    # llama.cpp rounds activations to eight bits: some hundredths a token.
    assert answer.logprob == pytest.approx(expected, abs=0.1 * len(drawn))


@pytest.mark.slow
def test_each_of_many_threads_gets_its_own_answer(server, smollm):
    prompts = [chatml(f"Tell me about the number {number}.") for number in range(6)]

    def ask(prompt):
        return server.generate(smollm, prompt, replace(GREEDY, max_tokens=16)).text

    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(ask, prompts))
    alone = [ask(prompt) for prompt in prompts]
    assert len(set(alone)) > 3
    # Rounding may change an answer beside others, but a mix-up would change nearly all.
    assert sum(one == other for one, other in zip(alone, together, strict=True)) >= 5


def test_publishing_twice_starts_one_child(tiny_server, tiny):
    before = child_of(tiny_server, tiny).pid
    tiny_server.publish(tiny)
    assert child_of(tiny_server, tiny).pid == before


def test_a_version_outlives_the_thread_that_published_it(tiny):
    with closing(LlamaCpp(PATIENT)) as runtime:
        thread = threading.Thread(target=runtime.publish, args=(tiny,))
        thread.start()
        thread.join()
        time.sleep(0.5)
        assert runtime.generate(tiny, "hello", GREEDY).tokens > 0


def test_others_answer_while_a_version_is_loaded_and_after_one_is_retired(tiny_server, tiny):
    other = replace(tiny, name="tip-generator:v9")
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(tiny_server.publish, other)
        assert tiny_server.generate(tiny, "hello", GREEDY).tokens > 0
        loading.result()
    process = child_of(tiny_server, other)
    tiny_server.retire(other)
    assert is_gone(process)
    assert tiny_server.generate(tiny, "hello", GREEDY).tokens > 0


def test_a_crash_is_one_error_and_publishing_again_restarts_the_child(tiny_server, tiny):
    os.kill(child_of(tiny_server, tiny).pid, signal.SIGSEGV)
    assert is_gone(child_of(tiny_server, tiny))
    with pytest.raises(ReleaseError, match=r"v1 .*failed .*publish it again"):
        tiny_server.generate(tiny, "hello", GREEDY)
    tiny_server.publish(tiny)
    assert tiny_server.generate(tiny, "hello", GREEDY).tokens > 0


def test_closing_ends_every_child_and_removes_the_logs(tiny):
    runtime = LlamaCpp(PATIENT)
    runtime.publish(tiny)
    process, log = child_of(runtime, tiny), runtime.servers[tiny.name].log
    assert log.is_file()
    runtime.close()
    assert is_gone(process)
    assert not log.exists()
    with pytest.raises(ReleaseError, match="not published"):
        runtime.generate(tiny, "hello", GREEDY)


def test_children_end_with_a_parent_that_is_killed(tiny, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys, time
            from pathlib import Path
            sys.path.insert(0, {str(TESTS)!r})
            from release_fixtures import tiny_version
            from reactune.config.sections import ServeConfig
            from reactune.release.llamacpp import LlamaCpp
            model = tiny_version(Path({str(tmp_path)!r}))
            runtime = LlamaCpp(ServeConfig())
            runtime.publish(model)
            print(runtime.servers[model.name].process.pid, flush=True)
            time.sleep(600)
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    assert is_gone(child)


def test_a_file_that_is_no_gguf_is_one_error_that_names_it(tiny, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with closing(LlamaCpp(PATIENT)) as runtime:
        with pytest.raises(ReleaseError, match=r"broken\.gguf.*invalid magic.*GGUF"):
            runtime.publish(replace(tiny, gguf=broken))
        with pytest.raises(ReleaseError, match=r"gone\.gguf.*No such file"):
            runtime.publish(replace(tiny, gguf=tmp_path / "gone.gguf"))
        assert runtime.servers == {}


def test_without_the_wheel_the_error_names_what_to_install(tiny, tmp_path, monkeypatch):
    missing = "raise ModuleNotFoundError(\"No module named 'xllamacpp'\")"
    (tmp_path / "xllamacpp.py").write_text(missing)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        closing(LlamaCpp(PATIENT)) as runtime,
        pytest.raises(ReleaseError, match=r"pip install 'reactune\[llamacpp\]'"),
    ):
        runtime.publish(tiny)


def test_a_version_without_its_prompt_folder_is_refused(tiny, tmp_path):
    with (
        closing(LlamaCpp(PATIENT)) as runtime,
        pytest.raises(ReleaseError, match=r"prompt\.json of tip-generator:v1 cannot be read"),
    ):
        runtime.publish(replace(tiny, prompt_folder=tmp_path / "none"))


def test_a_slow_answer_is_an_error_that_names_the_limit(server, smollm):
    with closing(LlamaCpp(PATIENT)) as hasty:
        hasty.settings = ServeConfig(timeout_seconds=0.02)
        hasty.servers.update(server.servers)
        with pytest.raises(ReleaseError, match=r"within 0\.02 s; see \[serve\] timeout_seconds"):
            hasty.generate(smollm, chatml("Tell me a long story."), GREEDY)
        hasty.servers.clear()


def test_a_prompt_that_is_too_long_is_refused_with_its_size(tiny_server, tiny):
    with pytest.raises(ReleaseError, match=r"status 400, request \(2000 tokens\) exceeds"):
        tiny_server.generate(tiny, "x" * 2000, GREEDY)


def test_a_request_without_the_key_is_refused(tiny_server, tiny):
    url = tiny_server.servers[tiny.name].url
    assert url.startswith("http://127.0.0.1:")
    answer = httpx.post(f"{url}/completion", json={"prompt": "hello", "n_predict": 1})
    assert answer.status_code == 401


def test_no_start_token_is_put_before_a_rendered_prompt(tmp_path, monkeypatch):
    adding_a_start_token(monkeypatch)
    model = tiny_version(tmp_path)
    with closing(LlamaCpp(PATIENT)) as runtime:
        runtime.publish(model)
        server = runtime.servers[model.name]
        asked = {"prompt": "<|im_start|>abc", "n_predict": 1}
        key = {"Authorization": f"Bearer {server.key}"}
        naive = httpx.post(f"{server.url}/completion", json=asked, headers=key).json()
        assert naive["tokens_evaluated"] == 5
        assert runtime.generate(model, "<|im_start|>abc", GREEDY).prompt_tokens == 4


def test_an_answer_without_an_end_is_nonsense():
    with pytest.raises(ValueError, match="ended by 'none'"):
        completion_of({"content": "half a t", "stop_type": "none"}, seconds=0.1)


ANSWER = {"content": " Walk. ", "stop_type": "eos", "tokens_evaluated": 9, "tokens_predicted": 3}


@pytest.mark.parametrize(
    ("stop_type", "stopped"), [("eos", "stop"), ("word", "stop"), ("limit", "length")]
)
def test_how_an_answer_ended_is_one_of_two_ways(stop_type, stopped):
    found = completion_of({**ANSWER, "stop_type": stop_type}, seconds=0.5)
    assert (found.text, found.prompt_tokens, found.tokens) == ("Walk.", 9, 3)
    assert (found.stopped, found.seconds, found.logprob) == (stopped, 0.5, None)


def test_the_log_probability_of_a_text_is_the_sum_over_its_tokens():
    drawn = [{"logprob": -0.5}, {"logprob": -0.25}]
    found = completion_of({**ANSWER, "completion_probabilities": drawn}, seconds=0.5)
    assert found.logprob == -0.75


def test_an_answer_without_its_counts_is_nonsense():
    with pytest.raises(KeyError):
        completion_of({"content": "a", "stop_type": "eos"}, seconds=0.1)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_request_states_every_sampler_and_the_end(reuse):
    body = request_of([1, 2], GREEDY, stop="<|im_end|>", reuse_prefix=reuse)
    assert body["prompt"] == [1, 2]
    assert body["samplers"] == ["top_k", "top_p", "temperature"]
    assert (body["top_k"], body["min_p"], body["top_p"], body["temperature"]) == (0, 0.0, 1.0, 0.0)
    assert (body["n_predict"], body["seed"]) == (GREEDY.max_tokens, GREEDY.seed)
    assert body["stop"] == ["<|im_end|>"]
    assert body["cache_prompt"] is reuse


def test_special_tokens_of_a_prompt_are_read_as_such_and_none_is_added():
    assert tokens_request("<|im_start|>") == {
        "content": "<|im_start|>", "add_special": False, "parse_special": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("0.01 I loading\n0.02 E bad magic\n0.03 E failed to load\n", "bad magic; export"),
        ("loading\nkilled\n", "killed; export the version again, or check [serve] threads"),
        ("", "no output within the time limit; export"),
        ("ModuleNotFoundError: No module named 'xllamacpp'\n", "pip install 'reactune[llamacpp]'"),
    ],
)
def test_why_a_child_ended_is_its_first_error_or_its_last_line(log, reason):
    assert reason in reason_in(log)


def test_a_long_reason_is_cut():
    assert len(reason_in(f"0.02 E {'x' * 1_000}\n")) < 400


def test_a_version_that_was_never_published_is_refused_awaited_or_not(smollm):
    async def write():
        await runtime.write(smollm, "hello", GREEDY)

    with closing(LlamaCpp(PATIENT)) as runtime:
        with pytest.raises(ReleaseError, match=r"is not published on the embedded llama\.cpp"):
            runtime.generate(smollm, "hello", GREEDY)
        with pytest.raises(ReleaseError, match=r"is not published on the embedded llama\.cpp"):
            asyncio.run(write())


def test_awaited_answers_are_those_of_generate_in_any_event_loop(tiny_server, tiny):
    async def write():
        try:
            return await tiny_server.write(tiny, "hello there", GREEDY)
        finally:
            await tiny_server.end_writing()
            await tiny_server.end_writing()

    expected = tiny_server.generate(tiny, "hello there", GREEDY)
    for (found,) in (asyncio.run(write()), asyncio.run(write())):
        assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)
    assert tiny_server.async_client is None


def test_several_texts_of_one_request_have_seeds_of_their_own(tiny):
    draw = Sampling(temperature=1.0, top_p=1.0, max_tokens=6, seed=11)

    async def write(count):
        try:
            return await runtime.write(tiny, "hello there", draw, count=count)
        finally:
            await runtime.end_writing()

    settings = PATIENT.model_copy(update={"parallel": 1, "candidates": 3})
    with closing(LlamaCpp(settings)) as runtime:
        runtime.publish(tiny)
        made = asyncio.run(write(3))
        (alone,) = asyncio.run(write(1))
        draws = [replace(draw, seed=seed) for seed in (11, 12, 13)]
        seeded = [runtime.generate(tiny, "hello there", each) for each in draws]
    assert len({each.text for each in made}) == 3
    assert alone.text == made[0].text
    assert [each.text for each in made] == [each.text for each in seeded]
    for each in made:
        assert each.prompt_tokens == alone.prompt_tokens
        assert each.logprob < 0
        assert 0 < each.tokens <= 6


def test_there_are_no_tags_to_set_and_no_template_to_count_by(tiny):
    fetched = []
    with closing(LlamaCpp(PATIENT)) as runtime:
        assert runtime.set_aliases({"tips:champion": tiny}, fetch=fetched.append) == []
        assert runtime.chat_prompt_tokens(tiny, "hello") is None
        assert runtime.servers == {}
    assert fetched == []


def test_a_prompt_is_new_once_and_memory_of_prompts_is_bounded(monkeypatch):
    monkeypatch.setattr(llamacpp, "REMEMBERED_PROMPTS", 3)
    seen = set()
    assert [llamacpp._remember(seen, prompt) for prompt in ("a", "b", "a", "b")] == [
        True, True, False, False,
    ]  # fmt: skip
    for number in range(20):
        assert llamacpp._remember(seen, f"prompt {number}")
        assert len(seen) <= 3


def test_a_wheel_that_does_not_load_is_named_before_anything_is_published(tmp_path, monkeypatch):
    (tmp_path / "xllamacpp.py").write_text("raise ImportError('libgomp.so.1 is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        closing(LlamaCpp(PATIENT)) as runtime,
        pytest.raises(ReleaseError, match=r"does not load here; run `pip install 'reactune\[llama"),
    ):
        runtime.check()


def test_a_wheel_that_loads_too_slowly_is_not_called_missing(monkeypatch):
    monkeypatch.setattr(llamacpp, "IMPORT_SECONDS", 0.001)
    with (
        closing(LlamaCpp(PATIENT)) as runtime,
        pytest.raises(TimeoutError, match="repeat when the machine is idle"),
    ):
        runtime.check()
