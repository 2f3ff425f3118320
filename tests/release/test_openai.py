"""OpenAI's completions API as llama.cpp's real server speaks it, with SmolLM2 and a tiny model."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.prompt import assemble, completion_ids, load_chat
from reactune.records import Sampling
from reactune.release import parity
from reactune.release.llamacpp import LlamaCpp
from reactune.release.openai import KEY, OpenAICompatible
from reactune.release.runtimes import connect
from release_fixtures import (
    GREEDY,
    adding_a_start_token,
    chatml,
    smollm_version,
    tiny_version,
    token_count,
)

PATIENT = ServeConfig(timeout_seconds=120.0, parallel=2, threads=1)
DRAWN = Sampling(temperature=0.8, top_p=0.95, max_tokens=12, seed=11)


@contextmanager
def llamacpp_server(model):
    """llama.cpp's server of one version: its address, the key that it wants, and our own client."""
    with closing(LlamaCpp(PATIENT)) as host:
        host.publish(model)
        yield host.servers[model.name].url, host.servers[model.name].key, host


def settings_for(url, **changes):
    return ServeConfig(runtime="openai", openai_url=url, **{"timeout_seconds": 120.0, **changes})


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    return smollm_version(tmp_path_factory.mktemp("smollm"))


@pytest.fixture(scope="module")
def place(smollm):
    with llamacpp_server(smollm) as place:
        yield place


@pytest.fixture(scope="module")
def server(place, smollm):
    url, key, _ = place
    with closing(OpenAICompatible(settings_for(url), key=key)) as runtime:
        runtime.publish(smollm)
        yield runtime


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_version(tmp_path_factory.mktemp("tiny"))


def test_the_settings_name_the_server_and_the_environment_its_key(place, monkeypatch):
    url, key, _ = place
    monkeypatch.setenv(KEY, f"{key}\n")
    with closing(connect(settings_for(f"{url}/v1/"))) as runtime:
        assert isinstance(runtime, OpenAICompatible)
        assert key not in repr(runtime)
        said = runtime.check()
    assert said.endswith(f"at {url}, which answers for one version: it loads no adapters")
    assert "SmolLM2-135M-Instruct" in said


def test_a_server_of_one_model_is_refused_before_a_second_version_is_trained(server):
    with pytest.raises(ReleaseError, match=r"answers for one version, and 2 are needed; start vLL"):
        server.check(versions=2)


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
    answer = server.generate(smollm, chatml("Tell me a long story."), replace(GREEDY, max_tokens=6))
    assert (answer.stopped, answer.tokens) == ("length", 6)


def test_all_tokens_of_a_prompt_are_counted_however_many_were_kept(server, smollm):
    prompt = chatml("Give me one tip for a tidy desk.")
    short = replace(GREEDY, max_tokens=2)
    counts = {server.generate(smollm, prompt, short).prompt_tokens for _ in range(3)}
    assert counts == {token_count(prompt)}


def test_the_answer_and_its_log_probability_are_those_of_llama_cpps_own_api(server, place, smollm):
    prompt = chatml("Answer with one word: what is the capital of France?")
    expected = place[2].generate(smollm, prompt, GREEDY)
    found = server.generate(smollm, prompt, GREEDY)
    assert (found.text, found.tokens) == (expected.text, expected.tokens)
    assert found.logprob == pytest.approx(expected.logprob, abs=0.05 * found.tokens)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(server, smollm):
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


def test_awaited_answers_are_those_of_generate_in_any_event_loop(server, smollm):
    async def write():
        try:
            return await server.write(smollm, chatml("Say hi."), replace(GREEDY, max_tokens=4))
        finally:
            await server.end_writing()
            await server.end_writing()

    expected = server.generate(smollm, chatml("Say hi."), replace(GREEDY, max_tokens=4))
    for (found,) in (asyncio.run(write()), asyncio.run(write())):
        assert (found.text, found.prompt_tokens) == (expected.text, expected.prompt_tokens)
    assert server.async_client is None


def test_several_texts_of_one_request_differ(server, smollm):
    async def write():
        try:
            return await server.write(
                smollm, chatml("Name a fruit."), replace(DRAWN, max_tokens=6), count=3
            )
        finally:
            await server.end_writing()

    made = asyncio.run(write())
    assert len(made) == 3
    assert len({each.text for each in made}) > 1
    assert {each.prompt_tokens for each in made} == {token_count(chatml("Name a fruit."))}
    assert all(0 < each.tokens <= 6 for each in made)


@pytest.mark.parametrize(("kind", "counted"), [("tokens", 1), ("text", 2)])
def test_a_server_adds_its_start_token_to_text_but_not_to_token_ids(
    tmp_path, monkeypatch, kind, counted
):
    adding_a_start_token(monkeypatch)
    model = tiny_version(tmp_path)
    with llamacpp_server(model) as (url, key, _):
        settings = settings_for(url, openai_prompt=kind)
        with closing(OpenAICompatible(settings, key=key)) as runtime:
            runtime.publish(model)
            found = runtime.generate(model, "<|im_start|>", replace(GREEDY, max_tokens=1))
    assert found.prompt_tokens == counted


def test_a_version_that_the_server_cannot_hold_is_refused_in_plain_words(server, smollm, tmp_path):
    tuned = replace(smollm, name="tip-generator:v4", adapter=tmp_path / "run" / "train" / "adapter")
    with pytest.raises(ReleaseError, match=r"cannot hold tip-generator:v4 beside its own model, "):
        server.publish(tuned)
    with pytest.raises(ReleaseError, match=r"tip-generator:v4 is not published .* publish it firs"):
        server.generate(tuned, "hello", GREEDY)
    server.retire(tuned)


def test_a_name_of_the_base_model_that_is_not_listed_is_refused(place):
    url, key, _ = place
    settings = settings_for(url, openai_model="meta/other")
    with (
        closing(OpenAICompatible(settings, key=key)) as runtime,
        pytest.raises(ReleaseError, match=r"openai_model = 'meta/other', but .* lists .*SmolL"),
    ):
        runtime.check()


def test_a_wrong_key_is_refused_and_never_shown(place, smollm):
    url, _, _ = place
    with closing(OpenAICompatible(settings_for(url), key="not-the-key")) as runtime:
        calls = [
            runtime.check,
            lambda: runtime.publish(smollm),
            lambda: runtime.generate(smollm, "hello", GREEDY),
        ]
        for call in calls:
            runtime.served[smollm.name] = "base"
            with pytest.raises(ReleaseError, match=rf"\(status 401\).* variable {KEY}") as raised:
                call()
            assert "not-the-key" not in str(raised.value)


def test_a_prompt_that_is_too_long_is_refused_with_its_size(server, smollm):
    with pytest.raises(ReleaseError, match=r"tokens\) exceeds .* \(status 400\)"):
        server.generate(smollm, " walk" * 2_000, GREEDY)


def test_token_ids_of_another_model_are_refused(tiny):
    with (
        llamacpp_server(tiny) as (url, key, _),
        closing(OpenAICompatible(settings_for(url), key=key)) as runtime,
    ):
        runtime.publish(tiny)  # a vocabulary of single bytes, and SmolLM2's tokenizer
        with pytest.raises(ReleaseError, match=r"invalid tokens \(status 400\)"):
            runtime.generate(tiny, "Take a walk.", GREEDY)


def test_a_slow_answer_is_an_error_that_names_the_limit(place, smollm):
    url, key, _ = place
    with closing(OpenAICompatible(settings_for(url, timeout_seconds=0.02), key=key)) as hasty:
        hasty.served[smollm.name] = "any"
        with pytest.raises(ReleaseError, match=r"within 0\.02 s; see \[serve\] timeout_seconds"):
            hasty.generate(smollm, chatml("Tell me a long story."), GREEDY)


def test_a_server_that_is_away_is_one_error_with_advice(smollm):
    with closing(OpenAICompatible(settings_for("http://me:hush@127.0.0.1:9"))) as away:
        away.served[smollm.name] = "base"
        calls = {
            "list its models": away.check,
            "publish": lambda: away.publish(smollm),
            "generate": lambda: away.generate(smollm, "hello", GREEDY),
            "unload": lambda: away.retire(replace(smollm, adapter=smollm.prompt_folder)),
        }
        for action, call in calls.items():
            away.served[smollm.name] = "base"
            with pytest.raises(ReleaseError, match=rf"cannot {action} .*127\.0\.0\.1:9") as raised:
                call()
            assert "hush" not in str(raised.value)


@pytest.mark.parametrize("key", ["s\u00e9cret", "s3\ncret", "s3cret\udcff"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_quoted(key):
    with pytest.raises(ReleaseError, match="REACTUNE_OPENAI_KEY: no key of a server") as refused:
        OpenAICompatible(settings_for("http://127.0.0.1:9"), key=key)
    assert "cret" not in str(refused.value)


@pytest.mark.slow
def test_parity_goes_by_greedy_answers_where_the_server_tells_nothing_of_given_texts(
    server, smollm
):
    base = base_model(ModelConfig())
    chat = load_chat(base.folder, PromptConfig())
    contexts = [{"time_of_day": "evening"}, {"free_text": "I slept badly"}]
    prompts = [assemble(chat, "tip", context) for context in contexts]
    completions = [completion_ids(chat, "Go to bed early.")] * 2
    assert server.token_logprobs(smollm, prompts[0].token_ids, completions[0]) is None
    checked = {"prompts": prompts, "completions": completions, "settings": ExportConfig()}
    report = parity.check(
        base, smollm, chat=chat, runtime=server, max_tokens=12, threads=1, **checked
    )
    assert report.failures == ()
    assert report.greedy_agreement > 0.9
