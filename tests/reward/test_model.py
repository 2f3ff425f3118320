"""A reward model as files, and the numbers it gives."""

import json

import numpy as np
import pytest

from reactune.errors import DataError
from reactune.reward.comparisons import Reactions
from reactune.reward.fit import (
    GROUPS,
    dense_candidates,
    fit_with_error,
    standardised,
    validate,
)
from reactune.reward.model import (
    DEVIATIONS,
    FILES,
    RewardModel,
    assemble_model,
    load,
    rewards,
    save,
)
from reward_fixtures import audience


@pytest.fixture(scope="module")
def learned():
    examples, features = audience()
    found, mean, deviation = standardised(features)
    validated = validate(Reactions(examples), dense_candidates(found))
    fitted = fit_with_error(validated.reactions, validated.chosen, start=validated.whole)
    model = assemble_model(
        fitted, 0.7, mean, deviation, layers=(4, 7), base_digest="abc", facts={"data": "d"}
    )
    return model, fitted, features, found


def test_rewards_are_those_of_all_users_on_plain_features_with_the_jackknifes_error(learned):
    model, fitted, features, standard = learned
    whole, *each = 0.7 * np.array([standard @ one.weights for one in fitted])
    reward, low = rewards(model, features)
    assert reward == pytest.approx(whole, abs=1e-4)
    assert len(each) == GROUPS
    error = (GROUPS - 1) ** 0.5 * np.std(each, axis=0)
    assert reward - low == pytest.approx(DEVIATIONS * error, abs=1e-4)
    assert reward.mean() == pytest.approx(0, abs=1e-4)


def test_the_two_files_hold_all_of_it(learned, tmp_path):
    model, _, features, _ = learned
    assert save(model, tmp_path) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    again = load(tmp_path)
    assert (again.layers, again.base_digest, again.facts) == ((4, 7), "abc", {"data": "d"})
    assert rewards(again, features)[1].tolist() == rewards(model, features)[1].tolist()


def test_files_that_are_no_reward_model_are_refused_by_name(learned, tmp_path):
    with pytest.raises(DataError, match="holds no readable reward model"):
        load(tmp_path)
    save(learned[0], tmp_path)
    (tmp_path / "reward.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="holds no readable reward model"):
        load(tmp_path)
    facts = tmp_path / "reward.json"
    facts.write_text(facts.read_text().replace('"schema":2', '"schema":3'))
    with pytest.raises(DataError, match="schema 3, this release reads 2"):
        load(tmp_path)


def test_members_that_agree_have_their_mean_as_bound():
    model = RewardModel(np.ones((5, 2), np.float32), np.zeros(5, np.float32), (1,), "abc")
    mean, low = rewards(model, np.array([[1.0, 2.0]], np.float32))
    assert mean.tolist() == low.tolist() == [3.0]


def test_a_model_of_one_layer_and_its_folds_is_read_as_its_mean(tmp_path):
    """What the first release with rewards wrote."""
    from safetensors.numpy import save_file

    weights = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    biases = np.arange(5, dtype=np.float32)
    save_file({"weights": weights, "biases": biases}, tmp_path / "reward.safetensors")
    facts = {"schema": 1, "layer": 12, "base_digest": "abc", "facts": {}}
    (tmp_path / "reward.json").write_text(json.dumps(facts))
    model = load(tmp_path)
    assert model.layers == (12,)
    features = np.ones((1, 3), np.float32)
    each = weights.sum(1) + biases
    reward, low = rewards(model, features)
    assert reward[0] == pytest.approx(each.mean())
    assert reward[0] - low[0] == pytest.approx(DEVIATIONS * 2 * each.std())
