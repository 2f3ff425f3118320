"""The graph that serving computes gives the features that training computed."""

import sys

import numpy as np
import pytest

from family_fixtures import FAMILIES, write_family
from reactune.errors import ReleaseError
from reactune.reward.features import open_layers, pass_of, tip_features
from reactune.reward.graph import GRAPH_FILES, write_graph
from reactune.reward.model import RewardModel, save
from reactune.reward.scorer import Scorer

PROMPTS = [(5, 6, 7, 8, 9), tuple(range(20, 80)), (9,)]
TIPS = [[(11, 12, 13)], [(11, 12), (13,), (14, 15, 16, 17, 18, 19, 20), (11, 12)], [(21,), (22, 7)]]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_graph_with_the_features_of_its_layers(family, tmp_path):
    """One family's quick test is `test_scorer`'s."""
    pytest.importorskip("sentencepiece")
    folder, out = write_family(tmp_path / "base", family), tmp_path / "reward"
    assert write_graph(folder, (1, 2), out) == GRAPH_FILES
    assert sorted(path.name for path in out.iterdir()) == sorted(GRAPH_FILES)
    rows = [(prompt, tip) for prompt, tips in zip(PROMPTS, TIPS, strict=True) for tip in tips]
    with open_layers(folder, 2, dtype="float32") as model:
        expected = tip_features(model, rows, (1, 2))
    weights, biases = np.ones((2, expected.shape[1]), np.float32), np.zeros(2, np.float32)
    save(RewardModel(weights, biases, (1, 2), "abc"), out)
    scorer = Scorer(out, threads=1)
    found = np.concatenate([scorer.features(*each) for each in zip(PROMPTS, TIPS, strict=True)])
    # Weights are stored as float16, which has 11 significant bits.
    assert found == pytest.approx(expected, abs=0.02 * float(expected.std()))


def test_a_pass_keeps_candidates_apart():
    found = pass_of((1, 2), [(3, 4), (5,)])
    assert found["ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert found["positions"].tolist() == [[0, 1, 2, 3, 2]]
    assert found["pooling"].tolist() == [[0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1]]
    assert (found["mask"][0, 0] == 0).astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_machine_without_the_exporter_is_told_what_to_install(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ReleaseError, match=r"needs onnxscript; run `pip install 'reactune\[train"):
        write_graph(tiny, (1,), tmp_path)
