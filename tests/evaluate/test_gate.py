import numpy as np
import pytest
from scipy import stats

from reactune.config.sections import GateConfig
from reactune.evaluate.gate import HeldOut, best_method, count_pairs, examine

SETTINGS = GateConfig()


def world(rng, *, users=60, quality=0.0, level=0.0):
    """Held-out tips of many users, and scores of a base and of a tuned model of some quality."""
    examples, base, tuned = [], [], []
    for user in range(users):
        for _ in range(3):
            liked = bool(rng.random() < 0.5)
            examples.append(HeldOut(f"u{user}", rng.choice(["a", "b"]), liked))
            tokens = rng.integers(4, 12)
            plain = -3 + rng.normal(0, 0.5, tokens)
            base.append(plain)
            tuned.append(plain + level + quality * (1 if liked else -1))
    return examples, {"base": base, "few-shot": base, "tuned": tuned}


def row_of(report, model):
    return next(row for row in report.rows if row.model == model)


def test_a_clearly_better_model_passes():
    examples, scores = world(np.random.default_rng(1), quality=0.5, level=0.1)
    report = examine(examples, scores, settings=SETTINGS)
    assert report.refusals == ()
    assert row_of(report, "tuned").accuracy.value > row_of(report, "base").accuracy.value + 0.2


def test_the_base_itself_is_refused():
    examples, scores = world(np.random.default_rng(2))
    report = examine(examples, scores, settings=SETTINGS)
    assert len(report.refusals) == 2
    assert "not certainly better than base" in report.refusals[0]


def test_a_lower_loss_does_not_excuse_a_worse_ranking():
    examples, scores = world(np.random.default_rng(3), quality=-0.4, level=1.0)
    report = examine(examples, scores, settings=SETTINGS)
    assert row_of(report, "base").loss_difference.high < 0
    assert any("base" in refusal for refusal in report.refusals)


@pytest.mark.parametrize(("rise", "passes"), [(0.19, False), (0.21, True)])
def test_a_better_ranking_excuses_a_loss_that_rises_no_more_than_the_settings_allow(rise, passes):
    examples, scores = world(np.random.default_rng(5), quality=0.8, level=-1.0)
    # Of liked tips every token lost 1.0 - 0.8 = 0.2.
    report = examine(examples, scores, settings=GateConfig(max_loss_rise=rise))
    assert row_of(report, "base").loss_difference.value == pytest.approx(0.2)
    assert (report.refusals == ()) is passes


def test_a_better_champion_stands_in_the_way():
    examples, scores = world(np.random.default_rng(4), quality=0.3, level=0.3)
    _, better = world(np.random.default_rng(4), quality=0.9, level=0.9)
    report = examine(examples, {**scores, "champion": better["tuned"]}, settings=SETTINGS)
    assert len(report.refusals) == 1
    assert "champion" in report.refusals[0]


@pytest.mark.parametrize(
    ("worlds", "best"),
    [
        # (how much liked and disliked tips are told apart, how much likelier all tips are)
        ({"sft": (0.01, 1.0), "kto": (0.5, 0.0), "dpo": (0.9, -0.2)}, "dpo"),
        ({"sft": (0.0, 1.0), "kto": (0.0, 0.3), "dpo": (0.0, -0.2)}, "sft"),
        ({"sft": (-0.9, 1.0), "kto": (-0.02, 0.0), "dpo": (0.02, -0.1)}, "dpo"),
    ],
)
def test_the_method_that_is_kept_is_certainly_better_where_one_is(worlds, best):
    reports = {}
    for method, (quality, level) in worlds.items():
        examples, scores = world(np.random.default_rng(7), quality=quality, level=level)
        reports[method] = examine(examples, scores, settings=SETTINGS)
    assert best_method(reports, SETTINGS) == best


def test_accuracy_is_the_area_under_the_roc_curve_of_one_group():
    rng = np.random.default_rng(5)
    examples, scores = world(rng, quality=0.2)
    examples = [HeldOut(e.user, "one", e.liked) for e in examples]
    report = examine(examples, scores, settings=SETTINGS)
    means = np.array([s.mean() for s in scores["tuned"]])
    liked = np.array([e.liked for e in examples])
    area = stats.mannwhitneyu(means[liked], means[~liked]).statistic / (
        liked.sum() * (~liked).sum()
    )
    assert row_of(report, "tuned").accuracy.value == pytest.approx(area)
    assert report.pairs == liked.sum() * (~liked).sum()


def test_loss_is_the_mean_over_all_tokens_of_liked_tips():
    examples, scores = world(np.random.default_rng(6), quality=0.3)
    report = examine(examples, scores, settings=SETTINGS)
    tokens = np.concatenate([s for e, s in zip(examples, scores["tuned"], strict=True) if e.liked])
    assert row_of(report, "tuned").loss.value == pytest.approx(-tokens.mean())


def test_pairs_are_only_formed_within_a_group():
    examples = [HeldOut("u", "a", True), HeldOut("u", "b", False), HeldOut("v", "a", False)]
    assert count_pairs(examples) == 1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(60):
        examples, scores = world(rng, users=40)
        noise = [s + rng.normal(0, 0.3) for s in scores["base"]]
        report = examine(
            examples,
            {"base": scores["base"], "few-shot": scores["base"], "tuned": noise},
            settings=SETTINGS,
        )
        difference = row_of(report, "base").accuracy_difference
        hits += difference.low <= 0 <= difference.high
    assert stats.binomtest(hits, 60, 0.95).pvalue > 0.001
