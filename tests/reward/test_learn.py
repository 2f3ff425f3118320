"""What a run learns of an audience, when it learns nothing, and how much it reads."""

import numpy as np
import pytest

from reactune.reward import learn as module
from reactune.reward.learn import learn
from reactune.reward.model import rewards
from reward_fixtures import audience


def learned_from(examples, features, *, held_out=0):
    """What is learned, and how many rows were read at a time; the last ones are held out."""
    place = {each.tip_id: number for number, each in enumerate(examples)}
    asked = []
    ends = len(examples) - held_out

    def read(some):
        asked.append(len(some))
        return features[[place[each.tip_id] for each in some]]

    found = learn(
        examples[:ends],
        read,
        (3, 5),
        held_out=examples[ends:],
        base_digest="abc",
        fingerprint="data",
    )
    return found, asked


def test_a_taste_is_learned():
    examples, features = audience()
    found, _ = learned_from(examples, features)
    assert found.reason == ""
    assert (found.model.layers, found.model.base_digest) == ((3, 5), "abc")
    assert found.model.facts["data"] == "data"
    truth = features[:, 0]
    assert np.corrcoef(rewards(found.model, features)[0], truth)[0, 1] > 0.9
    quality = found.quality
    assert list(quality.curve) == [80, 160, 320, 640]
    assert quality.accuracies["reward"].estimate.low > quality.accuracies["longer tip"].estimate.low
    assert "right on other users' pairs within one kind: reward 0." in found.line()
    assert found.features.shape == features.shape


def test_what_some_users_validated_is_fitted_on_the_held_out_too():
    examples, features = audience(1_200, users=120)
    found, asked = learned_from(examples, features, held_out=400)
    alone, _ = learned_from(examples[:800], features[:800])
    assert asked == [800, 400]
    assert found.quality == alone.quality
    for given in (features, features[800:]):
        assert np.array_equal(rewards(found.teacher, given), rewards(alone.model, given))
    assert found.line() == alone.line().replace("fitted on 800", "fitted on 1,200")
    assert [one.model.facts["reactions"] for one in (found, alone)] == [1_200, 800]
    assert [each.tip_id for each in found.examples[800:]] == [e.tip_id for e in examples[800:]]
    assert np.array_equal(found.features[800:], features[800:])
    errors = [np.subtract(*rewards(one.model, features)).mean() for one in (found, alone)]
    assert errors[0] < errors[1]  # as it learned from more people


def test_no_more_is_read_in_all_than_what_an_hour_allows(monkeypatch):
    monkeypatch.setattr(module, "MOST_REACTIONS", 1_000)
    examples, features = audience(1_001, users=120)
    found, asked = learned_from(examples, features, held_out=201)
    assert asked == [800]
    assert found.model is found.teacher
    found, asked = learned_from(examples[:-1], features[:-1], held_out=200)
    assert asked == [800, 200]


def test_a_coin_flipping_audience_teaches_nothing():
    found, asked = learned_from(*audience(taste=0.0), held_out=100)
    assert found.model is found.teacher is None
    assert asked == [700]
    assert "not certainly right more often than chance: 0." in found.reason
    assert "no reward: it is not certainly" in found.line()
    assert len(found.features) == 700  # kept for the next run


@pytest.mark.parametrize("users", [1, 4])
def test_few_users_are_too_few(users):
    found, asked = learned_from(*audience(40, users=users))
    assert found.model is None
    assert found.reason == f"{users} users with 40 reactions are too few to compare"
    assert asked == []


def test_more_is_read_while_it_helps(monkeypatch):
    monkeypatch.setattr(module, "FIRST_REACTIONS", 200)
    monkeypatch.setattr(module, "MOST_REACTIONS", 400)
    examples, features = audience(1_600, users=160, taste=1.0)
    found, asked = learned_from(examples, features)
    assert asked == [200, 400]
    assert (found.quality.reactions, found.quality.available) == (400, 1_600)
    assert found.line().startswith("400 of 1,600 reactions in")
    users = {each.user_key for each in found.examples}
    assert len(users) == 40  # whole users


def test_where_the_curve_is_flat_the_rest_is_left(monkeypatch):
    monkeypatch.setattr(module, "FIRST_REACTIONS", 400)
    examples, features = audience(1_600, users=160, taste=20.0)
    found, asked = learned_from(examples, features, held_out=300)
    assert asked == [400]
    assert found.model is found.teacher is not None
