"""What is sent to a server like vLLM, and how its answers are read: adapters, refusals, pressure.

vLLM itself was not run: `openai_fixtures` follows its documentation, with a real model behind it.
"""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from openai_fixtures import vllm_like
from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.logprobs import open_model, score
from reactune.model.prompt import assemble, completion_ids, load_chat
from reactune.records import Completion, Sampling
from reactune.release import parity
from reactune.release.openai import (
    KEY,
    OpenAICompatible,
    completions_of,
    logprobs_of,
    pause_of,
    reason_of,
    request_of,
    text_to_send,
)
from release_fixtures import GREEDY, smollm_version, token_count

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

PROMPT = "<|im_start|>user\nTip?<|im_end|>\n<|im_start|>assistant\n"
SHORT = replace(GREEDY, max_tokens=4)
ANSWER = {
    "choices": [{"text": " Walk. ", "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3},
}


def settings_for(url, **changes):
    return ServeConfig(runtime="openai", openai_url=url, **{"timeout_seconds": 20, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The first version: the base model, which has no adapter."""
    return smollm_version(tmp_path_factory.mktemp("base"), version=1)


@pytest.fixture(scope="module")
def tuned(base, tiny, tmp_path_factory):
    """A second version whose adapter changes what the tiny model writes."""
    import torch
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("runs") / "20260301-120000" / "train" / "adapter"
    torch.manual_seed(5)
    with open_model(tiny, threads=1) as model:
        changed = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        for name, weight in changed.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        changed.save_pretrained(folder)
    return replace(base, version=2, name="tip-generator:v2", adapter=folder)


@pytest.fixture
def vllm(tiny):
    """The server of the tiny model that is like vLLM, and its address."""
    with vllm_like(tiny) as place:
        yield place


@pytest.fixture
def runtime(vllm):
    with closing(OpenAICompatible(settings_for(vllm[1]))) as runtime:
        yield runtime


def names_on(url):
    return [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]


def test_one_server_holds_the_base_and_both_arms(vllm, runtime, base, tuned):
    server, url = vllm
    assert runtime.check() == f"org/base at {url}, which loads an adapter for each version"
    assert runtime.check(versions=2) == runtime.check()
    for model in (base, tuned, tuned):
        runtime.publish(model)
    assert names_on(url) == ["org/base", tuned.name]
    assert server.adapters == {tuned.name: str(tuned.adapter)}
    drawn = replace(SHORT, temperature=0.7)
    texts = {each.name: runtime.generate(each, PROMPT, drawn).text for each in (base, tuned)}
    assert [body["model"] for body in server.asked] == ["org/base", tuned.name]
    assert texts[base.name] != texts[tuned.name]
    runtime.retire(base)
    runtime.retire(tuned)
    runtime.retire(tuned)
    assert names_on(url) == ["org/base"]


def test_a_version_is_asked_for_with_token_ids_its_stop_token_and_every_sampler(
    vllm, runtime, base
):
    runtime.publish(base)
    found = runtime.generate(base, PROMPT, Sampling(0.7, 0.9, max_tokens=5, seed=8))
    (body,) = vllm[0].asked
    assert len(body["prompt"]) == token_count(PROMPT) == found.prompt_tokens
    assert (body["stop"], body["stop_token_ids"]) == (["<|im_end|>"], [2])
    stated = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed")
    assert [body[name] for name in stated] == [0.7, 0.9, -1, 0.0, 1.0, 5, 8]
    assert found.logprob < 0


def test_a_prompt_goes_as_text_where_the_settings_say_so(vllm, base):
    settings = settings_for(vllm[1], openai_prompt="text")
    with closing(OpenAICompatible(settings)) as runtime:
        runtime.publish(base)
        found = runtime.generate(base, PROMPT, SHORT)
    assert vllm[0].asked[0]["prompt"] == PROMPT
    assert found.prompt_tokens == token_count(PROMPT)


def test_the_server_reads_adapters_where_it_sees_the_run_folders(tiny, tuned):
    runs = tuned.adapter.parents[2]
    with vllm_like(tiny) as (server, url):
        elsewhere = settings_for(url, openai_runs="/models/runs")
        with (
            closing(OpenAICompatible(elsewhere)) as runtime,
            pytest.raises(ReleaseError, match=r"found for /models/runs/2026.* openai_runs\)"),
        ):
            runtime.publish(tuned)
        with closing(OpenAICompatible(settings_for(url, openai_runs=str(runs)))) as runtime:
            runtime.publish(tuned)
        assert server.adapters == {tuned.name: str(tuned.adapter)}


def test_a_name_that_holds_another_adapter_is_refused(vllm, runtime, tuned, tmp_path):
    runtime.publish(tuned)
    other = replace(tuned, adapter=tmp_path)
    with pytest.raises(ReleaseError, match=r"holds the adapter .* as tip-generator:v2; names of"):
        runtime.publish(other)
    with pytest.raises(ReleaseError, match="is not published"):
        runtime.generate(other, PROMPT, SHORT)


def test_an_adapter_that_another_process_loads_at_the_same_time_is_fine(vllm, tuned):
    """Both see that it is absent, and the second is told that it is there already."""
    with closing(OpenAICompatible(settings_for(vllm[1]))) as runtime:
        runtime._load(tuned)
        runtime._load(tuned)
    assert vllm[0].adapters == {tuned.name: str(tuned.adapter)}


def test_a_restarted_server_forgets_adapters_and_publishing_loads_them_again(vllm, runtime, tuned):
    server, _ = vllm
    runtime.publish(tuned)
    server.adapters.clear()
    del server.models[tuned.name]
    with pytest.raises(ReleaseError, match=r"does not exist\. \(status 404\); publish the version"):
        runtime.generate(tuned, PROMPT, SHORT)
    runtime.publish(tuned)
    assert runtime.generate(tuned, PROMPT, SHORT).tokens > 0


def test_log_probabilities_of_a_given_text_are_those_of_the_trained_model(
    runtime, tiny, base, tuned
):
    prompt, completion = list(range(40, 60)), [70, 71, 72, 2]
    for model in (base, tuned):
        runtime.publish(model)
        with open_model(tiny, model.adapter, threads=1) as trained:
            (expected,) = score(trained, [(prompt, completion)])
        told = runtime.token_logprobs(model, prompt, completion)
        np.testing.assert_allclose(told, expected, atol=1e-4)


@pytest.mark.parametrize("is_applied", [True, False])
def test_parity_refuses_a_server_that_answers_without_the_adapter(
    vllm, runtime, tiny, tuned, is_applied
):
    server, _ = vllm
    chat = load_chat(tiny, PromptConfig())
    contexts = [{"free_text": f"task {number}"} for number in range(2)]
    runtime.publish(tuned)
    if not is_applied:
        server.models[tuned.name] = server.models[server.base]
    report = parity.check(
        base_model(ModelConfig(base=str(tiny))),
        tuned,
        chat=chat,
        prompts=[assemble(chat, "tip", context) for context in contexts],
        completions=[completion_ids(chat, tip) for tip in ("Take a walk.", "Go to bed.")],
        runtime=runtime,
        # Random weights write tokens that are read back as others.
        settings=ExportConfig(min_greedy_agreement=0),
        max_tokens=4,
        threads=1,
    )
    assert any("of what was learned is in" in each for each in report.failures) != is_applied
    assert report.learned_kept == pytest.approx(float(is_applied), abs=0.01)
    assert (report.failures == ()) == is_applied


def test_a_key_is_sent_with_every_request(tiny, base, monkeypatch):
    monkeypatch.setenv(KEY, "s3cret")

    async def write(runtime):
        try:
            return await runtime.write(base, PROMPT, SHORT)
        finally:
            await runtime.end_writing()

    with vllm_like(tiny, key="s3cret") as (_, url):
        with closing(OpenAICompatible(settings_for(url))) as runtime:
            runtime.check()
            runtime.publish(base)
            expected = runtime.generate(base, PROMPT, SHORT)
            assert asyncio.run(write(runtime))[0].text == expected.text
        monkeypatch.delenv(KEY)
        with (
            closing(OpenAICompatible(settings_for(url))) as runtime,
            pytest.raises(ReleaseError, match=rf"status 401\); put its key into .* {KEY}"),
        ):
            runtime.check()


@contextmanager
def answering(answer):
    """A server that answers each POST with the status, headers and JSON that `answer` gives.

    It is given headers and JSON of the request.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, reply = answer(dict(self.headers), body)
            body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


def ask_both_ways(runtime, model):
    """The answer to `generate` and to `write`, of a version that counts as published."""

    async def write():
        try:
            return await runtime.write(model, PROMPT, SHORT)
        finally:
            await runtime.end_writing()

    runtime.served[model.name] = "base"
    return runtime.generate(model, PROMPT, SHORT), *asyncio.run(write())


@pytest.mark.parametrize("most", [0, 1, 2, 4])
def test_a_server_that_writes_fewer_texts_than_it_is_asked_for_is_asked_for_the_rest(base, most):
    asked = []

    def answer(_, body):
        asked.append((body.get("n", 1), body["seed"]))
        if body.get("n", 1) > 1 and not most:
            return 400, {}, {"error": {"message": "n: at most 1"}}
        texts = [f"{body['seed']} and {place}" for place in range(min(most or 1, body.get("n", 1)))]
        choices = [{**ANSWER["choices"][0], "text": each} for each in texts]
        usage = {**ANSWER["usage"], "completion_tokens": 3 * len(choices)}
        return 200, {}, {**ANSWER, "choices": choices, "usage": usage}

    async def write(runtime):
        try:
            return [await runtime.write(base, PROMPT, SHORT, count=4) for _ in range(2)]
        finally:
            await runtime.end_writing()

    with answering(answer) as url, closing(OpenAICompatible(settings_for(url))) as runtime:
        runtime.served[base.name] = "base"
        first, second = asyncio.run(write(runtime))
    alone = [(1, SHORT.seed + place) for place in range(4)]
    assert asked[0] == (4, SHORT.seed)
    assert sorted(asked[1:]) == sorted([*alone[most:], *alone] if most < 4 else [asked[0]])
    for made in (first, second):
        assert len({each.text for each in made}) == 4
        assert {each.tokens for each in made} == {3}


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(base, status):
    asked = []

    def answer(*_):
        asked.append(time.monotonic())
        busy = len(asked) % 2
        return (status, {"Retry-After": "0.3"}, {}) if busy else (200, {}, ANSWER)

    with answering(answer) as url, closing(OpenAICompatible(settings_for(url))) as runtime:
        found = ask_both_ways(runtime, base)
    assert [replace(each, seconds=0) for each in found] == [
        Completion("Walk.", 12, 3, "stop", 0)
    ] * 2
    assert asked[1] - asked[0] > 0.3
    assert asked[3] - asked[2] > 0.3


def test_a_server_that_stays_busy_is_an_error_in_time(base):
    busy = {"error": {"message": "queue is full"}}
    with (
        answering(lambda *_: (429, {"Retry-After": "0.2"}, busy)) as url,
        closing(OpenAICompatible(settings_for(url, timeout_seconds=0.5))) as runtime,
    ):
        started = time.monotonic()
        with pytest.raises(ReleaseError, match=r"queue is full \(status 429\); it is busy: lower"):
            ask_both_ways(runtime, base)
        assert time.monotonic() - started < 5


def test_no_more_requests_are_in_flight_than_the_settings_allow(base):
    running, most, lock = set(), [], threading.Lock()

    def answer(*_):
        with lock:
            running.add(threading.get_ident())
            most.append(len(running))
        time.sleep(0.02)
        with lock:
            running.discard(threading.get_ident())
        return 200, {}, ANSWER

    async def write_many(runtime):
        try:
            await asyncio.gather(*(runtime.write(base, PROMPT, SHORT) for _ in range(12)))
        finally:
            await runtime.end_writing()

    with (
        answering(answer) as url,
        closing(OpenAICompatible(settings_for(url, openai_requests=3))) as runtime,
    ):
        runtime.served[base.name] = "base"
        asyncio.run(write_many(runtime))
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(lambda _: runtime.generate(base, PROMPT, SHORT), range(12)))
    assert len(most) == 24
    assert max(most) == 3


def without(part):
    return {name: value for name, value in ANSWER.items() if name != part}


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (200, b"<html>hello</html>", "makes no sense"),
        (200, [1, 2], "makes no sense"),
        (200, {"choices": []}, "makes no sense"),
        (200, without("usage"), "makes no sense .*usage"),
        (200, {**ANSWER, "choices": [{"text": "a", "finish_reason": "abort"}]}, "ended by 'abort'"),
        (400, {"error": {"message": "too long"}}, r"too long \(status 400\); publish the version"),
        (400, {"object": "error", "message": "too long"}, r"too long \(status 400\)"),
        (422, {"detail": [{"loc": ["prompt"]}]}, r"prompt.*\(status 422\)"),
        (500, {"error": "out of memory"}, r"out of memory.*\(status 500\)"),
        (502, b"Bad gateway", r"Bad gateway \(status 502\)"),
        (502, b"", r"no reason given \(status 502\)"),
    ],
)
def test_a_bad_answer_is_one_error_that_names_the_server(base, status, answer, message):
    with (
        answering(lambda *_: (status, {}, answer)) as url,
        closing(OpenAICompatible(settings_for(url))) as runtime,
        pytest.raises(ReleaseError, match=message) as raised,
    ):
        ask_both_ways(runtime, base)
    assert url in str(raised.value)


def test_a_key_that_a_server_repeats_is_not_shown(base):
    def answer(headers, _):
        return 403, {}, {"error": {"message": f"bad key {headers['Authorization'].split()[1]}"}}

    with (
        answering(answer) as url,
        closing(OpenAICompatible(settings_for(url), key="s3cret")) as runtime,
        pytest.raises(ReleaseError, match=r"bad key \*\*\* \(status 403\)") as raised,
    ):
        ask_both_ways(runtime, base)
    assert "s3cret" not in repr(raised.value)


def response(status, **headers):
    return httpx.Response(
        status, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


@pytest.mark.parametrize(
    ("answer", "left", "pause"),
    [
        (response(200), 10, None),
        (response(500, Retry_After="1"), 10, None),
        (response(429, Retry_After="2"), 10, 2),
        (response(503, Retry_After="2.5"), 10, 2.5),
        (response(429, Retry_After="12"), 10, None),
        (response(429), 10, 1),
        (response(429), 0.5, None),
        (response(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), 10, 1),
        (response(429, Retry_After="0"), 10, 0.05),
        (response(429, Retry_After="-3"), 10, 0.05),
        (response(429, Retry_After="nan"), 10, None),
        (response(429, Retry_After="inf"), 10, None),
    ],
)
def test_a_pause_is_what_a_busy_server_asks_for_and_fits_into_the_time(answer, left, pause):
    assert pause_of(answer, left=left) == pause


def test_log_probabilities_come_in_three_forms():
    told = {"token_logprobs": [-0.5, None, -0.25]}
    chat = {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}
    for logprobs, expected in ((told, -0.75), (chat, -0.75), (None, None), ({}, None)):
        choice = {**ANSWER["choices"][0], "logprobs": logprobs}
        (made,) = completions_of({**ANSWER, "choices": [choice]}, seconds=0)
        assert made.logprob == expected


@pytest.mark.parametrize("reason", ["eos_token", "stop_sequence", "stop"])
def test_an_answer_that_stopped_by_itself_is_whole(reason):
    choice = {**ANSWER["choices"][0], "finish_reason": reason}
    (made,) = completions_of({**ANSWER, "choices": [choice]}, seconds=0.5)
    assert made.stopped == "stop"


def test_an_echo_gives_log_probabilities_too_and_silence_none():
    ids = [5, 6, 7]
    echoed = {"logprobs": {"token_logprobs": [None, -1, -2, -3]}}
    assert logprobs_of(echoed, ids) == [0.0, -1.0, -2.0]
    place = {"6": {"logprob": -1}, "9": {"logprob": -0.1}}
    assert logprobs_of({"prompt_logprobs": [None, place, {"7": {"logprob": -2}}]}, ids) == [
        0,
        -1,
        -2,
    ]
    for silent in ({}, {"logprobs": None}, {"logprobs": {"content": [{"logprob": -3}]}}):
        assert logprobs_of(silent, ids) is None
    with pytest.raises(KeyError):
        logprobs_of({"prompt_logprobs": [None, place, place]}, ids)
    with pytest.raises(ValueError, match="zip"):
        logprobs_of({"prompt_logprobs": [None, place]}, ids)


@pytest.mark.parametrize(("status", "known"), [(400, True), (422, True), (500, False)])
def test_a_server_that_refuses_to_tell_log_probabilities_tells_none(base, status, known):
    with (
        answering(lambda *_: (status, {}, {"error": {"message": "unknown field"}})) as url,
        closing(OpenAICompatible(settings_for(url))) as runtime,
    ):
        runtime.served[base.name] = "base"
        if known:
            assert runtime.token_logprobs(base, [1, 2], [3]) is None
        else:
            with pytest.raises(ReleaseError, match="refused to score with tip-generator:v1"):
                runtime.token_logprobs(base, [1, 2], [3])


def test_greedy_requests_name_no_nucleus_and_no_stop_that_has_no_token():
    body = request_of("m", [1], SHORT, stop="END", stop_id=None)
    assert "top_p" not in body
    assert "stop_token_ids" not in body
    assert body["stop"] == ["END"]


def test_a_text_is_sent_without_the_start_token_that_the_server_adds():
    words = {"<s>": 0, "hello": 1, "there": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="hello"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    assert text_to_send(tokenizer, "<s>hello there") == "<s>hello there"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    assert text_to_send(tokenizer, "<s>hello there") == "hello there"
    assert tokenizer.encode("hello there").ids == [0, 1, 2]
    assert text_to_send(tokenizer, "hello there") == "hello there"
    assert text_to_send(tokenizer, "") == ""


def test_reasons_are_cut():
    assert len(reason_of(httpx.Response(500, text="x" * 1_000))) == 300


def test_paths_of_adapters_end_in_run_stage_and_folder(base):
    model = replace(base, adapter=Path("/data/runs/r1/train/adapter"))
    for runs, expected in (("", "/data/runs/r1/train/adapter"), ("/m", "/m/r1/train/adapter")):
        with closing(OpenAICompatible(settings_for("http://h", openai_runs=runs))) as runtime:
            assert runtime._adapter_path(model) == expected
            assert runtime._adapter_path(base) is None
