"""The rule of the gate, its figures against second sources, and which rows it scores."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dataset_fixtures import example
from reactune.config.sections import GateConfig, PromptConfig
from reactune.evaluate.gate import (
    BOOTSTRAPS,
    FEW_SHOT,
    MIN_SHARED_CONTEXTS,
    Estimate,
    GateRow,
    HeldOut,
    best_method,
    cluster_weights,
    count_pairs,
    examine,
    few_shot_rows,
    fits_better,
    groups_of,
    held_out,
    places_with_one_prefix,
    preference_accuracy,
    ranks_better,
    refusal,
    rows_of,
    sample,
    with_judge,
)
from reactune.model.prompt import load_chat

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


def test_a_model_worse_than_the_champion_is_refused():
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
        # What is trained on its own tips leaves the way in which others wrote.
        ({"kto": (0.5, 0.0), "on-policy": (0.4, -2.0)}, "on-policy"),
        ({"kto": (0.5, 0.0), "on-policy": (-0.9, -2.0)}, "kto"),
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


def compared(*, loss=(0.0, 0.0), by_mean=(0.0, 0.0), by_gain=(-0.1, -0.1), preferred=(0.51, 0.6)):
    """A row of the gate's table: (lower end, value) of each difference, and of `preferred`."""

    def about(low, value):
        return Estimate(value, low, 2 * value - low)

    any_figure = Estimate(0.5, 0.4, 0.6)
    return GateRow(
        "base", any_figure, any_figure,
        loss_difference=about(*loss), accuracy_difference=about(*by_mean),
        gain_difference=about(*by_gain), preferred=about(*preferred),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rise", "limit", "passes"),
    [(0.4, 0.5, True), (0.5, 0.5, True), (0.6, 0.5, False), (0.6, 1, True)],
)
def test_a_certain_ranking_passes_while_the_loss_rises_by_no_more_than_the_limit(
    rise, limit, passes
):
    settings = GateConfig(max_loss_rise=limit)
    row = compared(loss=(rise - 0.1, rise), by_mean=(0.01, 0.1))
    assert ranks_better(row, settings) is passes
    assert (refusal(row, settings) == "") is passes


def test_a_ranking_that_is_certain_by_gain_alone_passes():
    row = compared(by_mean=(-0.2, 0.0), by_gain=(0.01, 0.1))
    assert ranks_better(row, SETTINGS)
    assert not ranks_better(compared(by_mean=(0.0, 0.1), by_gain=(-0.1, 0.1)), SETTINGS)


@pytest.mark.parametrize(
    ("accuracy", "tolerance", "passes"),
    [(-0.02, 0.02, True), (-0.03, 0.02, False), (-0.03, 0.1, True)],
)
def test_a_certainly_lower_loss_passes_within_the_tolerance_of_the_ranking(
    accuracy, tolerance, passes
):
    settings = GateConfig(tolerance=tolerance)
    row = compared(loss=(-0.3, -0.2), by_mean=(accuracy - 0.1, accuracy))
    assert fits_better(row, settings) is passes
    assert (refusal(row, settings) == "") is passes


@pytest.mark.parametrize(
    ("low", "needs_gain", "passes"), [(0.5, True, False), (0.51, True, True), (0.4, False, True)]
)
def test_a_lower_loss_passes_only_if_it_certainly_went_to_liked_tips(low, needs_gain, passes):
    settings = GateConfig(lower_loss_needs_gain=needs_gain)
    row = compared(loss=(-0.3, -0.2), preferred=(low, 0.6))
    assert (refusal(row, settings) == "") is passes


def test_a_model_that_writes_liked_and_disliked_tips_more_often_alike_is_no_better():
    """As one does that learned from reactions that say nothing of the tips."""
    by_loss_alone, seeds, passed = GateConfig(lower_loss_needs_gain=False), 20, [0, 0]
    for seed in range(seeds):
        examples, scores = world(np.random.default_rng(seed), quality=0.0, level=0.3)
        noise = np.random.default_rng(100 + seed)
        tuned = [each + noise.normal(0, 0.05) for each in scores["tuned"]]
        models = {"base": scores["base"], "champion": scores["base"], "tuned": tuned}
        report = examine(examples, models, settings=SETTINGS)
        rows = [row_of(report, rival) for rival in ("base", "champion")]
        for place, settings in enumerate((SETTINGS, by_loss_alone)):
            verdicts = {bool(refusal(row, settings)) for row in rows}
            assert len(verdicts) == 1  # both rivals are the same model
            passed[place] += not verdicts.pop()
    assert stats.binomtest(passed[0], seeds, SETTINGS.alpha, alternative="greater").pvalue > 0.01
    assert passed[1] > seeds / 2


def test_a_loss_that_may_be_as_high_is_no_certain_fit():
    assert not fits_better(compared(loss=(-0.4, -0.2)), SETTINGS)  # up to 0.0


def test_a_refusal_names_the_model_and_all_three_differences():
    text = refusal(compared(loss=(0.1, 0.2), by_mean=(-0.2, -0.1)), SETTINGS)
    assert text.startswith(
        "not certainly better than base: preference accuracy -0.100 [-0.200, 0.000]"
    )
    assert "by gain; loss 0.200 [0.100, 0.300]; liked tips gained more in 0.600" in text
    assert refusal(GateRow("tuned", Estimate(0, 0, 0), Estimate(0, 0, 0)), SETTINGS) == ""


def test_a_wider_chance_of_error_narrows_every_interval():
    examples, scores = world(np.random.default_rng(8), quality=0.2)
    strict, loose = (examine(examples, scores, settings=GateConfig(alpha=a)) for a in (0.01, 0.4))
    for narrow, wide in zip(loose.rows, strict.rows, strict=True):
        assert narrow.loss.value == wide.loss.value
        assert narrow.loss.high - narrow.loss.low < wide.loss.high - wide.loss.low


def test_the_same_examples_give_the_same_report():
    examples, scores = world(np.random.default_rng(9), quality=0.2)
    reports = [examine(examples, scores, settings=SETTINGS) for _ in range(2)]
    assert reports[0] == reports[1]


def test_a_single_user_decides_nothing_by_an_interval_without_width():
    rng = np.random.default_rng(10)
    examples, scores = world(rng, users=30, quality=0.1)
    alone = [HeldOut("one", e.group, e.liked) for e in examples]
    accuracy = row_of(examine(alone, scores, settings=SETTINGS), "base").accuracy
    assert accuracy.low < accuracy.value < accuracy.high


@pytest.mark.parametrize("users", [2, 3, 5])
def test_few_users_who_agree_by_chance_pass_no_model(users):
    """Each user has a taste of their own for how the tuned model differs, so all may agree."""
    passed, seeds = 0, 60
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        examples, scores = world(rng, users=users)
        liking = {f"u{user}": rng.normal(0, 0.2) for user in range(users)}
        scores["tuned"] = [
            each + (1 if example.liked else -1) * liking[example.user]
            for each, example in zip(scores["base"], examples, strict=True)
        ]
        if count_pairs(examples):
            passed += not examine(examples, scores, settings=SETTINGS).refusals
    assert stats.binomtest(passed, seeds, SETTINGS.alpha, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize(("users", "is_few"), [(4, True), (19, True), (20, False), (60, False)])
def test_a_refusal_with_few_users_says_how_to_get_more(users, is_few):
    examples, scores = world(np.random.default_rng(13), users=users)
    report = examine(examples, scores, settings=SETTINGS)
    assert report.users == users
    advice = f"{users} held-out users are few to be certain of anything"
    assert report.refusals[-1].startswith(advice) is is_few
    assert "split_by = 'time'" in report.refusals[-1] or not is_few
    again = with_judge(report, None, SETTINGS)
    assert again.refusals == report.refusals


def test_a_better_model_has_no_advice_however_few_the_users():
    examples, scores = world(np.random.default_rng(14), users=12, quality=1.0, level=0.1)
    assert examine(examples, scores, settings=SETTINGS).refusals == ()


def test_where_every_user_agrees_each_interval_has_a_width():
    examples, scores = world(np.random.default_rng(12), users=4, quality=3.0)
    report = examine(examples, scores, settings=SETTINGS)
    row = row_of(report, "base")
    assert row.gain_difference.value > 0.2
    for found in (row.preferred, row_of(report, "tuned").gain_accuracy):
        assert (found.value, found.high) == (1.0, 1.0)
        assert found.low < 0.7


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=30))
def test_items_of_one_cluster_always_weigh_the_same(clusters):
    weights = cluster_weights(clusters)
    assert weights.shape == (1 + BOOTSTRAPS, len(clusters))
    assert (weights[0] == 1).all()
    for name in set(clusters):
        columns = weights[:, [i for i, each in enumerate(clusters) if each == name]]
        assert (columns == columns[:, :1]).all()


def test_resampled_means_spread_as_the_standard_error_of_the_clusters():
    rng = np.random.default_rng(11)
    clusters = np.repeat([f"u{n}" for n in range(80)], 5)
    values = np.repeat(rng.normal(size=80), 5)
    weights = cluster_weights(list(clusters))
    means = weights @ values / weights.sum(1)
    error = values[::5].std() / np.sqrt(80)
    assert means[1:].std() == pytest.approx(error, rel=0.1)


def test_a_tie_counts_half_in_the_preference_accuracy():
    table = preference_accuracy(np.array([1.0, 2.0]), np.array([1.0, 1.5, 3.0]))
    assert table.tolist() == [[0.5, 0.0, 0.0], [1.0, 1.0, 0.0]]


def test_groups_without_a_liked_or_a_disliked_tip_are_left_out():
    examples = [
        HeldOut("u", "a", True), HeldOut("u", "b", True), HeldOut("v", "a", False),
        HeldOut("w", "c", False), HeldOut("w", "a", True),
    ]  # fmt: skip
    assert groups_of(examples) == [([0, 4], [2])]


def labelled(liked, disliked):
    rows = [example(f"l{n:03}", label=True) for n in range(liked)]
    return rows + [example(f"d{n:03}", label=False) for n in range(disliked)]


@pytest.mark.parametrize(
    ("liked", "disliked", "limit", "taken"),
    [
        (50, 50, 20, (10, 10)),
        (50, 4, 20, (16, 4)),
        (4, 50, 20, (4, 16)),
        (5, 5, 20, (5, 5)),
        (50, 50, 21, (10, 11)),
    ],
)
def test_a_sample_takes_as_many_of_each_label_as_there_are(liked, disliked, limit, taken):
    chosen = sample(labelled(liked, disliked), limit=limit)
    counts = Counter(each.label for each in chosen)
    assert (counts[True], counts[False]) == taken
    assert [each.tip_id for each in chosen] == sorted(each.tip_id for each in chosen)


def test_a_sample_does_not_depend_on_the_order_of_the_examples():
    rows = labelled(60, 60)
    assert sample(rows, limit=20) == sample(rows[::-1], limit=20)


@pytest.mark.parametrize(("more", "grouped"), [(0, "focus c"), (-1, "focus")])
def test_tips_are_compared_within_a_context_only_where_that_gives_enough_pairs(more, grouped):
    count = MIN_SHARED_CONTEXTS + more
    rows = [
        example(f"{n}-{label}", label=label, context=f"c{n}", user=f"u{n}")
        for n in range(count)
        for label in (True, False)
    ]
    found = held_out(rows)
    assert all(each.group.startswith(grouped) for each in found)
    assert len({each.group for each in found}) == (count if grouped == "focus c" else 1)
    assert [(each.user, each.liked) for each in found] == [(r.user_key, r.label) for r in rows]


prompts = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("xy")), min_size=1, max_size=20)


@given(prompts)
def test_every_row_is_scored_in_one_group_of_one_prompt_or_one_kind(drawn):
    rows, kinds = [((number,), (9,)) for number, _ in drawn], [kind for _, kind in drawn]
    groups = places_with_one_prefix(rows, kinds)
    assert sorted(place for group in groups for place in group) == list(range(len(rows)))
    by_prompt = 2 * len({number for number, _ in drawn}) <= len(rows)
    for group in groups:
        assert len({drawn[place][0 if by_prompt else 1] for place in group}) == 1


@pytest.fixture
def brief(tiny):
    return load_chat(tiny, PromptConfig(system="Be brief.", context_keys=("free_text",)))


def test_a_row_is_the_prompt_and_the_tip_with_the_stop_token(brief):
    (row,) = rows_of(brief, [example("t", "Walk.", context='{"free_text": "tired"}')])
    prompt, completion = (
        brief.tokenizer.decode(list(ids), skip_special_tokens=False) for ids in row
    )
    assert prompt.endswith("Free text: tired<|im_end|>\n<|im_start|>assistant\n")
    assert completion == "Walk.<|im_end|>"


def test_few_shot_rows_show_liked_tips_of_the_same_kind_before_the_question(brief):
    train = [
        example(f"t{n}", f"Liked {n}.", context='{"v":1,"context":{"free_text":"busy"}}')
        for n in range(5)
    ]
    train += [
        example("bad", "Disliked.", label=False, context='{"v":1,"context":{}}'),
        example("other", "Elsewhere.", kind="sleep", context='{"v":1,"context":{}}'),
    ]
    asked = [example("q", "Asked.", context='{"v":1,"context":{"free_text":"tired"}}')]
    (row,), (again,) = (few_shot_rows(brief, asked, train) for _ in range(2))
    assert row == again
    text = brief.tokenizer.decode(list(row[0]), skip_special_tokens=False)
    assert text.count("Liked ") == FEW_SHOT
    assert "Disliked." not in text
    assert "Elsewhere." not in text
    assert text.endswith("Free text: tired<|im_end|>\n<|im_start|>assistant\n")
    (plain,) = few_shot_rows(brief, asked, [])
    assert plain == rows_of(brief, asked)[0]
