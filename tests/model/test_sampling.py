"""Texts drawn from the tiny model, beside what transformers writes for each prompt alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from reactune.model.logprobs import open_model, score
from reactune.model.sampling import draw
from reactune.records import Sampling

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=12, seed=1)
STOP = 2


@pytest.fixture(scope="module")
def model(tiny):
    with open_model(tiny, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def prompts():
    """Of different lengths, with a start that all share."""
    random = np.random.default_rng(3)
    return [[1, 5, 9, *random.integers(10, 40_000, size).tolist()] for size in (4, 11, 7, 1)]


def test_at_temperature_0_each_prompt_gets_what_transformers_writes_for_it_alone(model, prompts):
    drawn = draw(model, prompts, stop=STOP, sampling=GREEDY)
    for prompt, (text,) in zip(prompts, drawn, strict=True):
        ids = torch.tensor([prompt])
        alone = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert list(text.ids) == (alone[:-1] if alone[-1] == STOP else alone)


@pytest.mark.parametrize("some", [slice(0, 1), slice(0, 4)])
def test_prompts_that_share_no_start_are_drawn_too(model, prompts, some):
    own = [prompt[3:] for prompt in prompts][some]
    together = draw(model, own, stop=STOP, sampling=GREEDY)
    alone = [draw(model, [each], stop=STOP, sampling=GREEDY)[0] for each in own]
    assert [text.ids for (text,) in together] == [text.ids for (text,) in alone]


def test_a_text_ends_before_its_stop_token_and_the_others_go_on(model, prompts):
    whole = [text.ids for (text,) in draw(model, prompts, stop=-1, sampling=GREEDY)]
    stop = whole[0][5]
    for (text,), ids in zip(draw(model, prompts, stop=stop, sampling=GREEDY), whole, strict=True):
        end = ids.index(stop) if stop in ids else len(ids)
        assert (text.ids, text.is_whole) == (ids[:end], stop in ids)


def test_the_logprob_is_that_of_scoring_the_text(model, prompts):
    sampling = replace(GREEDY, temperature=0.7, top_p=0.9)
    drawn = draw(model, prompts, stop=-1, sampling=sampling, count=3)
    rows = [
        (prompt, text.ids) for prompt, texts in zip(prompts, drawn, strict=True) for text in texts
    ]
    expected = [values.mean() for values in score(model, rows)]
    found = [text.logprob for texts in drawn for text in texts]
    assert found == pytest.approx(expected, abs=1e-4)


def test_texts_are_drawn_from_the_nucleus_at_the_temperature(model, prompts):
    sampling = Sampling(temperature=0.5, top_p=0.02, max_tokens=1, seed=4)
    (texts,) = draw(model, prompts[:1], stop=STOP, sampling=sampling, count=1_000)
    logits = model(torch.tensor([prompts[0]])).logits[0, -1].double()
    chances, order = logits.softmax(-1).sort(descending=True)
    size = int((chances.cumsum(-1) < 0.02).sum()) + 1
    wanted = (chances[:size].log() / 0.5).softmax(-1).tolist()
    counts = Counter(text.ids[0] if text.ids else STOP for text in texts)
    assert set(counts) <= set(order[:size].tolist())
    shares = [counts[token] / 1_000 for token in order[:size].tolist()]
    assert shares == pytest.approx(wanted, abs=0.06)


def test_a_seed_gives_the_same_texts_again_and_another_seed_others(model, prompts):
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=6, seed=8)
    first = draw(model, prompts, stop=STOP, sampling=sampling, count=2)
    assert draw(model, prompts, stop=STOP, sampling=sampling, count=2) == first
    assert draw(model, prompts, stop=STOP, sampling=replace(sampling, seed=9), count=2) != first
    assert all(one.ids != other.ids for one, other in first)


def test_progress_counts_prompts_and_nothing_is_drawn_for_none(model, prompts):
    seen = []
    draw(model, prompts, stop=STOP, sampling=GREEDY, count=40, progress=seen.append)
    assert sum(seen) == 4
    assert draw(model, [], stop=STOP, sampling=GREEDY) == []
