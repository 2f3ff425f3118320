"""What a run learns of an audience, when it learns nothing, and how much it reads."""

import numpy as np
import pytest

from reactune.reward import learn as module
from reactune.reward.learn import learn
from reactune.reward.model import rewards
from reward_fixtures import audience


def learned_from(examples, features, layers=(3, 5)):
    """Layer 5 has the features, the others have noise; and how many rows were read at a time."""
    place = {each.tip_id: number for number, each in enumerate(examples)}
    noise = np.random.default_rng(9).normal(size=features.shape).astype(np.float32)
    asked = []

    def read(some, wanted):
        asked.append((len(some), tuple(wanted)))
        rows = [place[each.tip_id] for each in some]
        return np.stack([(features if layer == 5 else noise)[rows] for layer in wanted], axis=1)

    return learn(examples, read, layers, base_digest="abc", fingerprint="data"), asked


def test_a_taste_is_learned_at_the_layer_that_shows_it():
    examples, features = audience()
    found, _ = learned_from(examples, features)
    assert found.reason == ""
    assert (found.model.layer, found.model.base_digest) == (5, "abc")
    assert found.model.facts["data"] == "data"
    truth = features[:, 0]
    assert np.corrcoef(rewards(found.model, features)[0], truth)[0, 1] > 0.9
    quality = found.quality
    assert list(quality.curve) == [80, 160, 320, 640]
    assert quality.accuracies["reward"].estimate.low > quality.accuracies["longer tip"].estimate.low
    assert "right on other users' pairs within one kind: reward 0." in found.line()
    assert found.features.shape == features.shape


def test_a_coin_flipping_audience_teaches_nothing():
    found, _ = learned_from(*audience(taste=0.0))
    assert found.model is None
    assert "not certainly right more often than chance: 0." in found.reason
    assert "no reward: it is not certainly" in found.line()
    assert len(found.features) == 800  # kept for the next run


@pytest.mark.parametrize("users", [1, 4])
def test_few_users_are_too_few(users):
    found, asked = learned_from(*audience(40, users=users))
    assert found.model is None
    assert found.reason == f"{users} users with 40 reactions are too few to compare"
    assert asked == []


def test_more_is_read_while_it_helps_and_only_the_chosen_layer(monkeypatch):
    monkeypatch.setattr(module, "FIRST_REACTIONS", 200)
    monkeypatch.setattr(module, "MOST_REACTIONS", 400)
    examples, features = audience(1_600, users=160, taste=1.0)
    found, asked = learned_from(examples, features)
    assert asked == [(200, (3, 5)), (400, (5,))]
    assert (found.quality.reactions, found.quality.available) == (400, 1_600)
    assert found.line().startswith("400 of 1,600 reactions in")
    users = {each.user_key for each in found.examples}
    assert len(users) == 40  # whole users


def test_where_the_curve_is_flat_the_rest_is_left(monkeypatch):
    monkeypatch.setattr(module, "FIRST_REACTIONS", 400)
    examples, features = audience(1_600, users=160, taste=20.0)
    found, asked = learned_from(examples, features)
    assert asked == [(400, (3, 5))]
    assert found.model is not None
