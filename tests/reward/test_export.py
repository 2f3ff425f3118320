"""A reward beside a release: its files, its proof, and when a version goes without it."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from reactune.errors import DataError
from reactune.reward import export, parity
from reactune.reward.export import export_reward
from reactune.reward.graph import GRAPH_FILES, graph_of
from reactune.reward.model import FILES, RewardModel, load, save
from reactune.reward.scorer import Scorer

ROWS = [((5, 6, *range(20, 20 + n)), tuple(range(40 + n, 45 + n))) for n in range(6)]


@pytest.fixture
def base(tiny_graphs):
    return tiny_graphs[0]


@pytest.fixture
def cache(tiny_graphs, tmp_path):
    return shutil.copytree(tiny_graphs[1], tmp_path / "cache")


@pytest.fixture
def learned(base, tmp_path):
    weights = np.random.default_rng(4).normal(size=(5, 32)).astype(np.float32)
    model = RewardModel(weights, np.zeros(5, np.float32), (1,), base.digest)
    save(model, tmp_path / "learned")
    return tmp_path / "learned"


def test_a_served_reward_has_its_model_its_graph_and_its_proof(base, cache, learned, tmp_path):
    found = export_reward(learned, base, ROWS, tmp_path / "out", cache=cache)
    assert found.folder == tmp_path / "out"
    assert {path.name for path in found.folder.iterdir()} == {*FILES, *GRAPH_FILES}
    assert found.agreement.tips == len(ROWS) * parity.TIPS
    assert found.agreement.largest < 0.05
    assert found.line().startswith("rewards of 24 tips as served are within 0.0")
    assert len(Scorer(found.folder).score((1, 2, 3), [(4, 5)])[0]) == 1


def test_a_graph_is_written_once_for_a_base_and_a_layer(
    base, cache, learned, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # so that none can be written
    assert graph_of(base, (1,), cache=cache) == graph_of(base, (1,), cache=cache)
    assert [path.name for path in (cache / "graphs").iterdir()] == [f"{base.digest[:16]}-1-g1"]
    assert export_reward(learned, base, ROWS, tmp_path / "out", cache=cache).folder
    found = export_reward(learned, base, ROWS, tmp_path / "none", cache=tmp_path / "empty")
    assert found.folder is None
    assert "no reward: writing a reward's features needs onnxscript" in found.line()
    assert not (tmp_path / "none").exists()
    assert not any((tmp_path / "empty" / "graphs").iterdir())


def test_a_reward_that_differs_as_served_is_left_out(base, cache, learned, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export, "graph_of", lambda base, layers, cache: graph_of(base, (1,), cache=cache)
    )
    save(replace(load(learned), layers=(2,)), learned)
    found = export_reward(learned, base, ROWS, tmp_path / "out", cache=cache)
    assert found.folder is None
    assert found.agreement.largest > parity.TOLERANCE
    assert "standard deviations of those learned (allowed: 0.2)" in found.line()
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_readable_reward_is_an_error(base, cache, tmp_path):
    with pytest.raises(DataError, match="holds no readable reward model"):
        export_reward(tmp_path, base, ROWS, tmp_path / "out", cache=cache)
