"""A reward model as files, and the numbers it gives."""

import numpy as np
import pytest

from reactune.errors import DataError
from reactune.reward.comparisons import Reactions
from reactune.reward.fit import dense_candidates, standardised, validate
from reactune.reward.model import FILES, RewardModel, assemble_model, load, rewards, save
from reward_fixtures import audience


@pytest.fixture(scope="module")
def learned():
    examples, features = audience()
    found, mean, deviation = standardised(features)
    validated = validate(Reactions(examples), dense_candidates({"7": found}))
    model = assemble_model(
        validated, mean, deviation, layer=7, base_digest="abc", facts={"data": "d"}
    )
    return model, validated, features, found


def test_rewards_are_those_of_the_members_on_plain_features(learned):
    model, validated, features, standard = learned
    each = np.array([standard @ one.weights for one in validated.members]) * validated.scale
    mean, low = rewards(model, features)
    assert mean == pytest.approx(each.mean(0), abs=1e-4)
    # The jackknife's standard error of five leave-one-out values.
    assert mean - low == pytest.approx(2 * each.std(0), abs=1e-4)
    assert mean.mean() == pytest.approx(0, abs=1e-4)


def test_the_two_files_hold_all_of_it(learned, tmp_path):
    model, _, features, _ = learned
    assert save(model, tmp_path) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    again = load(tmp_path)
    assert (again.layer, again.base_digest, again.facts) == (7, "abc", {"data": "d"})
    assert rewards(again, features)[1].tolist() == rewards(model, features)[1].tolist()


def test_files_that_are_no_reward_model_are_refused_by_name(learned, tmp_path):
    with pytest.raises(DataError, match="holds no readable reward model"):
        load(tmp_path)
    save(learned[0], tmp_path)
    (tmp_path / "reward.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="holds no readable reward model"):
        load(tmp_path)
    facts = tmp_path / "reward.json"
    facts.write_text(facts.read_text().replace('"schema":1', '"schema":2'))
    with pytest.raises(DataError, match="schema 2, this release reads 1"):
        load(tmp_path)


def test_members_that_agree_have_their_mean_as_bound():
    model = RewardModel(np.ones((5, 2), np.float32), np.zeros(5, np.float32), 1, "abc")
    mean, low = rewards(model, np.array([[1.0, 2.0]], np.float32))
    assert mean.tolist() == low.tolist() == [3.0]
