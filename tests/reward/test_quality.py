"""Accuracy and its interval, against other sources and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from reactune.reward.comparisons import Reactions
from reactune.reward.quality import (
    accuracy,
    correlates,
    interval,
    resampled,
    share_won,
    tfidf,
)
from reward_fixtures import example


@pytest.mark.parametrize(("won", "count"), [(1, 1), (0, 1), (7, 7), (0, 12)])
def test_where_all_agree_the_interval_is_the_exact_one_and_never_of_width_zero(won, count):
    found = share_won(np.full(count, float(won > 0)), list(range(count)))
    exact = stats.binomtest(won, count).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert found.high - found.low > 0.2


def test_of_independent_pairs_it_is_the_exact_one_of_a_pair_less():
    wins = np.array([1.0] * 14 + [0.0] * 6)
    found = share_won(wins, list(range(20)))
    low, high = stats.beta.ppf([0.025, 0.975], [0.7 * 19, 0.7 * 19 + 1], [0.3 * 19 + 1, 0.3 * 19])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_repetition_makes_nothing_more_certain():
    wins = np.array([1, 1, 0, 1, 0.5, 1, 1, 0])
    once = share_won(wins, list("abcdefgh"))
    often = share_won(np.tile(wins, 5), list("abcdefgh") * 5)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("rate", [0.6, 0.9])
def test_the_interval_covers_the_truth_where_pairs_depend_on_each_other(rate):
    """Thirty contexts of one to eight pairs, alike within a context."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        sizes = rng.integers(1, 9, 30)
        own = rng.beta(2 * rate, 2 * (1 - rate), 30)
        wins = np.concatenate([rng.random(s) < p for s, p in zip(sizes, own, strict=True)])
        found = share_won(wins.astype(float), np.repeat(np.arange(30), sizes).tolist())
        covered += found.low <= rate <= found.high
    assert covered >= 0.93 * 300


def made_up(seed, count=60, users=9):
    rng = np.random.default_rng(seed)
    liked = rng.random(count) < 0.5
    scores = np.round(rng.normal(size=count) + liked, 1)  # with ties
    return (
        scores,
        liked,
        [f"g{n}" for n in rng.integers(0, 3, count)],
        [f"u{n}" for n in rng.integers(0, users, count)],
    )


def pairs_of(scores, liked, groups, users, *, without=None):
    """Every comparison, one by one: whether it is won."""
    places = [n for n in range(len(scores)) if users[n] != without]
    return [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i, j in itertools.product(places, places)
        if liked[i] and not liked[j] and groups[i] == groups[j]
    ]


def resamples(values, rng, count=2_000):
    """The mean of all, then of as many drawn with replacement."""
    return np.concatenate([[values.mean()], rng.choice(values, (count, len(values))).mean(1)])


@pytest.mark.parametrize("clusters", [2, 3, 5, 20])
@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_an_interval_of_resamples_covers_the_truth_however_few_they_are_drawn_from(
    clusters, bounds
):
    rng, worlds, missed, by_quantiles = np.random.default_rng(4), 300, 0, 0
    for _ in range(worlds):
        values = resamples(rng.uniform(-0.4, 0.4, clusters), rng)
        found = resampled(values, clusters=clusters, alpha=0.1, bounds=bounds)
        assert found.low <= found.value <= found.high
        missed += not found.low <= 0 <= found.high
        low, high = np.quantile(values[1:], [0.05, 0.95])
        by_quantiles += not low <= 0 <= high
    assert stats.binomtest(missed, worlds, 0.1, alternative="greater").pvalue > 0.001
    if clusters < 5:
        assert by_quantiles > 0.15 * worlds  # what it is for


def test_an_interval_of_resamples_that_agree_is_the_exact_one_of_their_clusters():
    found = resampled(np.ones(50), clusters=5, alpha=0.05, bounds=(0.0, 1.0))
    assert found.low == pytest.approx(0.025 ** (1 / 5))
    none = resampled(np.zeros(50), clusters=5, alpha=0.05, bounds=(-1.0, 1.0))
    assert none.low == pytest.approx(-none.high)
    assert none.high > 0.5


def test_an_interval_of_resamples_counts_no_resample_without_a_case():
    values = np.array([0.5, 0.4, np.nan, 0.6])
    known = np.array([0.5, 0.4, 0.6])
    for bounds in (None, (0.0, 1.0)):
        found = resampled(values, clusters=9, bounds=bounds)
        assert found == resampled(known, clusters=9, bounds=bounds)


def test_accuracy_is_the_share_of_all_pairs_that_are_won():
    data = made_up(1)
    found = accuracy(*data)
    wins = pairs_of(*data)
    assert found.pairs == len(wins)
    assert found.estimate.value == pytest.approx(np.mean(wins))


def test_its_variance_is_that_of_leaving_out_each_user():
    data = made_up(2, count=400, users=25)
    found = accuracy(*data)
    names = sorted(set(data[3]))
    without = [np.mean(pairs_of(*data, without=name)) for name in names]
    jackknife = (len(names) - 1) / len(names) * np.square(without - np.mean(without)).sum()
    expected = interval(found.estimate.value, float(jackknife), clusters=len(names), independent=1)
    assert found.estimate.low == pytest.approx(expected.low, abs=0.006)
    assert found.estimate.high == pytest.approx(expected.high, abs=0.006)


def test_pairs_of_one_user_count_once():
    scores, liked = np.array([2.0, 1, 2, 1, 1, 2]), np.array([True, False] * 3)
    users, groups = list("aabbcc"), list("xxyyzz")
    found = accuracy(scores, liked, groups, users)
    whole = share_won(np.array([1.0, 1, 0]), list("abc"))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((whole.low, whole.high))


def test_without_both_labels_there_is_no_accuracy():
    assert accuracy(np.ones(3), np.array([True] * 3), list("xxx"), list("abc")) is None


def test_a_vocabulary_holds_only_what_five_users_share():
    tips = [example(n, user=f"u{n}", tip=f"Drink water, secret{n}") for n in range(5)]
    tips += [example(9, user="u0", tip="mine mine mine mine"), example(10, user="u0", tip="mine")]
    matrix = tfidf(Reactions(tips))
    assert matrix.shape == (7, 3)  # drink, water, drink water
    assert np.sqrt((matrix.toarray() ** 2).sum(1))[:5] == pytest.approx(1)
    assert matrix.toarray()[5:].sum() == 0
    assert tfidf(Reactions(tips[:4])) is None


def test_correlates_name_what_people_can_see():
    tips = ["Drink 3 glasses of water now", "The sea", "Is it late?", "Walk for 10 minutes today"]
    reactions = Reactions([example(n, tip=tip) for n, tip in enumerate(tips)])
    found = correlates(reactions, np.array([4.0, 1.0, 2.0, 3.0]))
    assert found["holds a number"] == pytest.approx(0.894, abs=1e-3)
    assert found["opens with an imperative"] == pytest.approx(0.894, abs=1e-3)
    assert found["length in words"] == pytest.approx(1.0)
    assert found["asks a question"] < 0
