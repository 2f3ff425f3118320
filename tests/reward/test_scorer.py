"""Rewards of candidates without torch, and what is refused."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reactune.errors import DataError, ReleaseError
from reactune.reward.features import open_layers, tip_features
from reactune.reward.graph import GRAPH, GRAPH_WEIGHTS, graph_of
from reactune.reward.model import RewardModel, rewards, save
from reactune.reward.parity import TOLERANCE, check
from reactune.reward.scorer import Scorer

PROMPT, TIPS = tuple(range(40, 70)), [(11, 12), (13,), (14, 15, 16, 17), (18, 19, 20)]


@pytest.fixture(scope="module")
def folder(tiny_graphs, tmp_path_factory):
    """A reward model of random weights, with the graph of its layers."""
    base, cache = tiny_graphs
    out = tmp_path_factory.mktemp("served") / "reward"
    shutil.copytree(graph_of(base, (1,), cache=cache), out)
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(5, 32)).astype(np.float32)
    save(RewardModel(weights, np.zeros(5, np.float32), (1,), "abc"), out)
    return out


@pytest.fixture(scope="module")
def scorer(folder):
    return Scorer(folder, threads=1)


def test_features_rewards_and_bounds_are_those_of_training(scorer, tiny):
    with open_layers(tiny, 1, dtype="float32") as model:
        features = tip_features(model, [(PROMPT, tip) for tip in TIPS], [1])
    # Weights are stored as float16, which has 11 significant bits.
    near = pytest.approx(features, abs=0.02 * float(features.std()))
    assert scorer.features(PROMPT, TIPS) == near
    mean, low = scorer.score(PROMPT, TIPS)
    for found, expected in zip((mean, low), rewards(scorer.model, features), strict=True):
        assert found == pytest.approx(expected, abs=0.02 * float(expected.std()))
    assert (low < mean).all()


def test_other_candidates_do_not_change_a_reward(scorer):
    together, _ = scorer.score(PROMPT, TIPS)
    alone = [scorer.score(PROMPT, [tip])[0][0] for tip in TIPS]
    backwards, _ = scorer.score(PROMPT, TIPS[::-1])
    assert together == pytest.approx(alone, abs=1e-3)
    assert together == pytest.approx(backwards[::-1], abs=1e-3)


def test_several_threads_may_ask_at_once(scorer):
    prompts = [tuple(range(start, start + 5 + start % 9)) for start in range(5, 45)]
    one_by_one = [scorer.score(prompt, TIPS)[0].tolist() for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda prompt: scorer.score(prompt, TIPS)[0].tolist(), prompts))
    assert at_once == one_by_one


def test_no_candidates_have_no_rewards(scorer):
    assert [found.tolist() for found in scorer.score(PROMPT, [])] == [[], []]


def test_what_has_no_reward_is_refused(scorer):
    with pytest.raises(DataError, match="a tip without tokens"):
        scorer.score(PROMPT, [(1, 2), ()])
    with pytest.raises(DataError, match=r"no reward of 1 tips .*idx=99999"):
        scorer.score((1, 99_999), [(1, 2)])


def test_a_folder_without_its_files_is_refused_by_name(folder, tmp_path):
    for name in ("reward.json", "reward.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ReleaseError, match=rf"{GRAPH} cannot be opened .*; fetch or export"):
        Scorer(tmp_path)
    (tmp_path / GRAPH).write_bytes((folder / GRAPH).read_bytes())
    with pytest.raises(ReleaseError, match=rf"{GRAPH} cannot be opened"):
        Scorer(tmp_path)
    (tmp_path / GRAPH_WEIGHTS).write_bytes((folder / GRAPH_WEIGHTS).read_bytes())
    assert Scorer(tmp_path).score(PROMPT, TIPS)[0].shape == (4,)
    (tmp_path / "reward.json").unlink()
    with pytest.raises(DataError, match="holds no readable reward model"):
        Scorer(tmp_path)


@pytest.mark.parametrize("package", ["onnxruntime", "safetensors"])
def test_a_machine_without_the_packages_is_told_what_to_install(folder, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ReleaseError, match=rf"needs {package}.*; run `pip install 'reactune\[rew"):
        Scorer(folder)


def test_a_reward_is_computed_without_torch(folder):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx'), None))\n"
        "from pathlib import Path; from reactune.reward.scorer import Scorer\n"
        f"print(Scorer(Path({str(folder)!r})).score({PROMPT!r}, {TIPS!r})[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(4,)\n", "")


def test_a_graph_agrees_with_the_layer_that_it_is_of_and_with_no_other(scorer, folder, tiny):
    prompts = [PROMPT[start:] for start in range(12)]
    found = check(scorer, tiny, prompts, TIPS)
    assert found.is_close
    assert found.tips == 48
    assert f"allowed: {TOLERANCE:g}" in str(found)
    other = RewardModel(scorer.model.weights, scorer.model.biases, (2,), "abc")
    save(other, folder)
    try:
        assert not check(Scorer(folder), tiny, prompts, TIPS).is_close
        save(RewardModel(0 * other.weights, other.biases, (1,), "abc"), folder)
        assert not check(Scorer(folder), tiny, prompts, TIPS).is_close
    finally:
        save(scorer.model, folder)
