"""The fit: its optimum, what it learns, and what it says of people it has not seen."""

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import minimize

from reactune.reward import comparisons, fit
from reactune.reward.comparisons import Reactions, compare
from reactune.reward.fit import CIRCUMSTANCE_VARIANCE, Candidate, dense_candidates, standardised
from reactune.reward.quality import accuracy_of_folds
from reward_fixtures import audience


def validated(examples, features):
    reactions = Reactions(examples)
    found = fit.validate(reactions, dense_candidates(standardised(features)[0]))
    return found, accuracy_of_folds(reactions, found.scores, found.folds)


def test_the_weights_are_the_optimum_of_the_stated_loss():
    examples, features = audience(150, contexts=20)
    reactions, values = Reactions(examples), standardised(features)[0].astype(np.float64)
    candidate = Candidate(values, 0.3)
    pairs = compare(reactions, np.arange(150))
    found = fit.fit(reactions, candidate, pairs)
    design, beside = pairs.differences(values), pairs.differences(reactions.circumstances)

    def loss(both):
        weights, others = both[: values.shape[1]], both[values.shape[1] :]
        sign = np.where(pairs.outcome == 1, 1, -1)
        losses = np.log1p(np.exp(-sign * (design @ weights + beside @ others)))
        penalty = values.shape[1] / 0.3 * weights @ weights  # 12 columns of variance 1
        return pairs.weight @ losses + (penalty + others @ others / CIRCUMSTANCE_VARIANCE) / 2

    best = minimize(loss, np.zeros(design.shape[1] + beside.shape[1]), method="BFGS").x
    assert found.weights == pytest.approx(best[: values.shape[1]], abs=2e-3)
    sparse_values = Candidate(sparse.csr_array(values), 0.3)
    assert fit.fit(reactions, sparse_values, pairs).weights == pytest.approx(found.weights)


def test_it_finds_what_people_like_and_says_how_sure_it_is():
    found, accuracy = validated(*audience())
    weights = found.whole.weights
    assert np.argmax(np.abs(weights)) == 0
    assert accuracy.estimate.low > 0.6
    # A reward is a log-odds: the taste is 2 for one deviation.
    assert found.scale * weights[0] == pytest.approx(2, abs=0.5)


def test_it_learns_the_tip_and_not_the_person():
    examples, features = audience(1_600, users=40, person=2.0)
    found, _ = validated(examples, features)
    weights = found.whole.weights
    reactions = Reactions(examples)
    bare = replace(reactions)
    bare.__dict__["circumstances"] = np.ones((len(examples), 1))
    naive = fit.validate(bare, dense_candidates(standardised(features)[0]))
    by_person = naive.whole.weights
    assert abs(weights[1] / weights[0]) < 0.6 * abs(by_person[1] / by_person[0])


def test_fewer_people_than_groups_are_left_out_one_by_one():
    examples, features = audience(120, users=8)
    found, _ = validated(examples, features)
    whole, *members = fit.fit_with_error(found.reactions, found.chosen, start=found.whole)
    assert np.array_equal(whole.weights, found.whole.weights)
    assert len(members) == 8
    for one in members:
        assert not np.array_equal(one.weights, whole.weights)


def test_shuffled_labels_and_coin_flips_give_a_half():
    values = []
    for seed in range(12):
        examples, features = audience(300, users=60, taste=0.0, seed=seed)
        values.append(validated(examples, features)[1].estimate)
        labels = [each.label for each in examples]
        random.Random(seed).shuffle(labels)
        shuffled = [replace(e, label=k) for e, k in zip(examples, labels, strict=True)]
        values.append(validated(shuffled, features)[1].estimate)
    assert np.mean([each.value for each in values]) == pytest.approx(0.5, abs=0.03)
    assert sum(each.low > 0.5 for each in values) <= 2  # of 24, at 2.5 % each


def test_a_split_by_row_used_by_mistake_is_noticed(monkeypatch):
    """People and their texts must not be on both sides of a fold, or a memory looks like taste."""
    examples, features = audience(100)

    def by_row(reactions, count):
        return np.arange(len(reactions)) // 7 % count

    monkeypatch.setattr(fit, "folds_by_user", by_row)
    with pytest.raises(ValueError, match="users are in both sides of a split"):
        validated(examples, features)
    assert comparisons.folds_by_user is not by_row


def test_too_few_users_or_no_new_text_are_no_validation():
    examples, features = audience(40, users=4)
    values = dense_candidates(features)
    assert fit.validate(Reactions(examples), values) is None
    same = [replace(each, tip="always the same") for each in audience(40, users=20)[0]]
    assert fit.validate(Reactions(same), values) is None


def test_the_curve_has_an_eighth_a_quarter_and_half_of_the_reactions():
    examples, features = audience(800, users=80)
    reactions = Reactions(examples)
    found = fit.validate(reactions, dense_candidates(standardised(features)[0]))
    curve = fit.curve(reactions, found.chosen, found.folds)
    assert list(curve) == [80, 160, 320]
    values = [accuracy_of_folds(reactions, each, found.folds).estimate.value
              for each in curve.values()]  # fmt: skip
    assert values[0] < values[-1]
