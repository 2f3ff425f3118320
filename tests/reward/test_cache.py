"""Features in files: computed once, gone on with after a kill, and each with its user."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from reactune.config.sections import PromptConfig
from reactune.model.files import BaseModel
from reactune.model.prompt import load_chat
from reactune.reward import cache
from reactune.reward.cache import CHUNKS, FEATURES, cached_features, keep_features
from reactune.reward.learn import Learned, Quality
from reward_fixtures import example

TIPS = [
    example(n, user=f"u{n % 3}", tip=f"Tip {n}.", context=f'{{"time_of_day": "{n % 4} am"}}')
    for n in range(14)
]


@pytest.fixture(scope="module")
def model(tiny):
    return BaseModel("tiny", tiny, None, "digest", ""), load_chat(tiny, PromptConfig())


@pytest.fixture
def count(monkeypatch):
    """How many rows were computed, at each call; small chunks."""
    monkeypatch.setattr(cache, "CHUNK_ROWS", 5)
    computed = []
    plain = cache.tip_features

    def counted(layers, rows, *arguments, **options):
        computed.append(len(rows))
        return plain(layers, rows, *arguments, **options)

    monkeypatch.setattr(cache, "tip_features", counted)
    return computed


def test_a_killed_computation_goes_on_at_its_last_chunk(model, tmp_path, count):
    class Killed(Exception):
        pass

    def die(done):
        if len(count) == 3:
            raise Killed

    whole = cached_features(*model, TIPS, [1], folder=tmp_path / "whole")
    assert count == [5, 5, 4]
    count.clear()
    with pytest.raises(Killed):
        cached_features(*model, TIPS, [1], folder=tmp_path, progress=lambda total: die)
    count.clear()
    found = cached_features(*model, TIPS, [1], folder=tmp_path)
    assert count == [4]
    assert found == pytest.approx(whole, abs=1e-3)
    assert whole.shape == (14, 32)


def test_an_earlier_run_has_texts_in_the_same_prompt(model, tmp_path, count):
    first = cached_features(*model, TIPS[:9], [1], folder=tmp_path / "first")
    learned = Learned(None, "", Quality(9, 9, 3), TIPS[:9], first)
    keep_features(*model, learned, [1], folder=tmp_path / "first")
    assert not (tmp_path / "first" / CHUNKS).exists()
    count.clear()
    earlier = [tmp_path / "first" / FEATURES]
    found = cached_features(*model, TIPS, [1], folder=tmp_path / "second", earlier=earlier)
    assert count == [5]
    assert found[:9].tolist() == first.tolist()
    elsewhere = [example(0, tip=TIPS[0].tip, context='{"time_of_day": "noon"}')]
    cached_features(*model, elsewhere, [1], folder=tmp_path / "third", earlier=earlier)
    assert count == [5, 1]


def test_a_text_in_a_prompt_is_computed_once_for_all_its_readers(model, tmp_path, count):
    again = [replace(each, tip_id=f"again-{each.tip_id}", user_key="other") for each in TIPS[:7]]
    found = cached_features(*model, [*TIPS, *again, *again], [1], folder=tmp_path)
    assert count == [5, 5, 4]
    assert found[14:21].tolist() == found[21:].tolist() == found[:7].tolist()


def test_every_row_has_its_user(model, tmp_path):
    features = cached_features(*model, TIPS, [1], folder=tmp_path)
    (chunk,) = (tmp_path / CHUNKS).iterdir()
    learned = Learned(None, "", Quality(14, 14, 3), TIPS, features)
    keep_features(*model, learned, [1], folder=tmp_path)
    rows = pq.read_table(tmp_path / FEATURES).to_pylist()
    assert [(row["tip_id"], row["user_key"], row["created_at"]) for row in rows] == [
        (each.tip_id, each.user_key, each.created_at) for each in TIPS
    ]
    assert np.frombuffer(rows[3]["features"], np.float16) == pytest.approx(features[3])
    assert not chunk.exists()


def test_a_run_that_read_nothing_keeps_an_empty_file(model, tmp_path):
    keep_features(*model, Learned(None, "too few", Quality(0, 0, 0)), [1], folder=tmp_path)
    assert pq.read_table(tmp_path / FEATURES).num_rows == 0
