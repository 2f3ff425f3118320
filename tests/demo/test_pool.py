"""The pool of tips: what it holds, when it answers, how it is written."""

import asyncio
import gzip
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from reactune.config.sections import ModelConfig
from reactune.config.settings import load
from reactune.demo.pool import (
    FILE,
    SEED,
    SIZE,
    PooledRuntime,
    digest_of,
    is_showable,
    read_pool,
    write_pool,
)
from reactune.demo.pool import main as write_anew
from reactune.demo.situations import demo_settings, situations
from reactune.errors import DataError
from reactune.model.files import base_model
from reactune.model.prompt import assemble, load_chat
from reactune.records import ModelVersion, Sampling
from serving_fixtures import ModelServer, version


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The settings of a demo folder."""
    file = tmp_path_factory.mktemp("demo") / "reactune.toml"
    file.write_text(demo_settings(), encoding="utf-8")
    return load(file)


@pytest.fixture(scope="module")
def chat(config):
    """The base model's chat template under the demo's settings."""
    return load_chat(base_model(ModelConfig()).folder, config.prompt)


def test_the_pool_holds_the_tips_that_these_settings_ask_for(config, chat):
    pool = read_pool()
    assert len({tip.digest for tip in pool.tips}) == len(pool.tips) > 3_500
    assert FILE.stat().st_size < 600_000
    assert (pool.temperature, pool.top_p, pool.max_tokens, pool.quantisation) == (
        config.serve.temperature,
        config.serve.top_p,
        config.serve.max_tokens,
        config.export.quantisation,
    )
    for tip in pool.tips[::25]:
        prompt = assemble(chat, tip.situation.kind, tip.situation.context)
        assert tip.digest == digest_of(prompt.text)
        assert tip.prompt_tokens == len(prompt.token_ids)
        assert is_showable(tip, prompt)


def test_the_situations_of_the_pool_are_those_of_its_seed():
    made = {repr(each) for each in situations(SIZE, seed=SEED)}
    assert {repr(each) for each in read_pool().situations} <= made


def test_only_the_base_model_sampled_as_in_the_pool_answers_from_it(chat, tmp_path):
    pool = read_pool()
    live = ModelServer({1: "live", 2: "live"})
    live.published += [1, 2]
    runtime = PooledRuntime(live, pool)
    tip = pool.tips[7]
    prompt = assemble(chat, tip.situation.kind, tip.situation.context).text
    model = ModelVersion(
        1, "tip:1", "base", tmp_path, "0", tmp_path, pool.base, pool.quantisation, None
    )
    sampling = Sampling(pool.temperature, pool.top_p, pool.max_tokens, seed=1)
    assert runtime.generate(model, prompt, sampling).text == tip.text
    assert runtime.answered == 1
    for other in (
        (replace(model, version=2, adapter=tmp_path), prompt, sampling),
        (replace(model, quantisation="f16"), prompt, sampling),
        (model, prompt + "!", sampling),
        (model, prompt, replace(sampling, temperature=0.1)),
    ):
        assert runtime.generate(*other).text == "live"
    assert runtime.answered == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1_000))
def test_a_pool_is_read_as_it_was_written(tmp_path_factory, start):
    pool = replace(read_pool(), tips=read_pool().tips[start : start + 5])
    file = tmp_path_factory.mktemp("pool") / "pool.jsonl.gz"
    write_pool(pool, file)
    first = file.read_bytes()
    assert read_pool(file) == pool
    write_pool(pool, file)
    assert file.read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b'{"v": 99}\n', mtime=0)])
def test_a_broken_pool_is_refused(tmp_path, content):
    file = tmp_path / "pool.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"python -m reactune\.demo\.pool"):
        read_pool(file)


@pytest.mark.slow
def test_the_pool_is_written_anew_and_continued_after_an_interruption(tmp_path):
    folder = tmp_path / "drafts"
    made = []
    for count in (3, 4):
        out = tmp_path / f"{count}.jsonl.gz"
        arguments = ["--count", str(count), "--folder", str(folder), "--out", str(out)]
        result = CliRunner().invoke(write_anew, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        made.append(read_pool(out))
    fewer, more = made
    assert len((folder / "drafts.jsonl").read_text().splitlines()) == 4
    assert more.tips[: len(fewer.tips)] == fewer.tips
    kept = {tip.digest: tip.situation for tip in read_pool().tips}
    assert all(kept.get(tip.digest, tip.situation) == tip.situation for tip in more.tips)
    assert {tip.digest for tip in more.tips} <= kept.keys()


def test_a_tip_is_showable_when_it_has_text_and_only_known_placeholders(chat):
    tip = read_pool().tips[0]
    prompt = assemble(chat, "focus", {"open_tasks": ["write to anna.berg@example.org"]})
    assert is_showable(replace(tip, text="Write to <EMAIL_1>."), prompt)
    assert not is_showable(replace(tip, text="Write to <EMAIL_2>."), prompt)
    assert not is_showable(replace(tip, text=""), prompt)


def test_a_digest_is_the_start_of_the_sha_256_of_the_prompt():
    assert digest_of("abc") == "ba7816bf8f01cfea"


def test_several_texts_are_asked_for_in_one_event_loop_whoever_asks():
    loops = set()

    class Several(ModelServer):
        async def write(self, model, prompt, sampling, *, count=1):
            loops.add(asyncio.get_running_loop())
            await asyncio.sleep(0.01)
            return (prompt,) * count

        async def end_writing(self):
            assert {asyncio.get_running_loop()} == loops

    pooled = PooledRuntime(Several({}), read_pool())

    def ask(number):
        draw = Sampling(0.7, 0.95, 8, number)
        return asyncio.run(pooled.write(version(2), f"prompt {number}", draw, count=4))

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(ask, range(24)))
    assert answers == [(f"prompt {number}",) * 4 for number in range(24)]
    pooled.close()
    assert len(loops) == 1


def test_the_server_behind_is_checked_for_the_same_base_and_versions():
    class Checked(ModelServer):
        def check(self, *, versions=1, base=""):
            return f"{versions} of {base}"

    assert PooledRuntime(Checked({}), read_pool()).check(versions=2, base="tiny") == "2 of tiny"
