"""The gate with a judge: who may pass, and who is refused, whatever the likelihoods say."""

from dataclasses import replace

import pytest

from reactune.config.sections import GateConfig
from reactune.evaluate.gate import GateReport, GateRow, judge_line, with_judge
from reactune.generation.judge import Beside, JudgeReport, JudgeRow
from reactune.records import Estimate
from reactune.reward.quality import Accuracy

SETTINGS = GateConfig()
BETTER, SAME, WORSE = (Estimate(v, v - 0.05, v + 0.05) for v in (0.6, 0.5, 0.4))


def row(model, *, passes):
    """A row of likelihoods by which the tuned model certainly fits better, or does not."""
    loss = Estimate(-0.2, -0.3, -0.1) if passes else Estimate(0.0, -0.1, 0.1)
    none = Estimate(0.0, -0.1, 0.1)
    figures = (Estimate(2.0, 1.9, 2.1), Estimate(0.5, 0.4, 0.6), loss, none, none)
    return GateRow(model, *figures, preferred=Estimate(0.6, 0.55, 0.65))


def report(*, passes):
    tuned = GateRow("tuned", Estimate(1.8, 1.7, 1.9), Estimate(0.5, 0.4, 0.6))
    rows = (row("base", passes=passes), row("few-shot", passes=passes), tuned)
    refusals = () if passes else ("by likelihood: base", "by likelihood: few-shot")
    return GateReport(rows, 100, 50, refusals)


def judged(win, *, gain=None, teacher=0.3, models=("base", "few-shot")):
    middle = gain if gain is not None else 4 * (win.value - 0.5)
    beside = Beside(win, Estimate(middle, middle - 0.2, middle + 0.2))
    accuracy = Accuracy(Estimate(0.65, 0.6, 0.7), 400)
    rows = tuple(JudgeRow(model, beside, teacher) for model in models)
    return JudgeReport(accuracy, 300, 120, rows, ())


@pytest.mark.parametrize("passes", [True, False])
def test_without_a_judge_likelihoods_decide(passes):
    assert with_judge(report(passes=passes), None, SETTINGS) == report(passes=passes)


def test_a_model_passes_whose_tips_the_judge_certainly_finds_better():
    found = with_judge(report(passes=False), judged(BETTER), SETTINGS)
    assert found.refusals == ()
    assert found.judged == judged(BETTER)


def test_the_judge_must_find_it_better_than_each_of_the_others():
    found = with_judge(report(passes=False), judged(BETTER, models=("base",)), SETTINGS)
    assert [each.partition(":")[0] for each in found.refusals] == [
        "not certainly better than few-shot"
    ]


def test_a_judge_who_is_not_sure_leaves_it_to_the_likelihoods():
    assert with_judge(report(passes=True), judged(SAME), SETTINGS).refusals == ()
    assert len(with_judge(report(passes=False), judged(SAME), SETTINGS).refusals) == 2


def test_a_model_whose_tips_are_certainly_worse_is_refused_by_the_judge():
    found = with_judge(report(passes=True), judged(WORSE, teacher=-0.5), SETTINGS)
    assert [each.partition(" base's")[0] for each in found.refusals][:1] == [
        "people who trained neither find its tips worse than"
    ]
    assert len(found.refusals) == 2


def test_a_gain_that_only_the_served_reward_sees_is_over_optimisation():
    slight = judged(BETTER, gain=0.1, teacher=0.7)  # at most 0.3 by the judge
    found = with_judge(report(passes=True), slight, SETTINGS)
    assert "over-optimised: beside base the reward model sees a gain of 0.700" in found.refusals[0]
    assert with_judge(report(passes=True), judged(BETTER, teacher=0.5), SETTINGS).refusals == ()


def test_the_line_for_the_terminal_names_each_win_rate():
    assert judge_line(report(passes=True)) == "no judge"
    told = judge_line(replace(report(passes=True), judged=judged(BETTER)))
    assert told.endswith(f"base {BETTER}, few-shot {BETTER}")
