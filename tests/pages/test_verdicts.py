"""Every state of a rollout in words that somebody understands who knows nothing of statistics."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import inf

import pytest

from canary_fixtures import comparison_of
from reactune.canary.compare import decide
from reactune.canary.guardrails import Guardrail
from reactune.canary.rollout import ShadowReport
from reactune.config.sections import CanaryConfig
from reactune.pages.facts import Decision, Progress, Trial
from reactune.pages.verdicts import words
from reactune.records import Rollout

NOW = datetime(2026, 3, 12, tzinfo=UTC)
SETTINGS = CanaryConfig()
PROGRESS = Progress(100, 90, 500, 500, (NOW + timedelta(days=4)).date())
ROLLOUT = Rollout(
    "r1", 1, 2, "canary", 0.05, "salt", "user_day", 20_000, NOW - timedelta(days=9),
    NOW - timedelta(days=9),
)  # fmt: skip
OLD_ENOUGH = 9.0


def trial_of(comparison=None, *, settings=SETTINGS, age_days=OLD_ENOUGH, **changes):
    rollout, taken = replace(ROLLOUT, **changes), ()
    if comparison is not None:
        decision = decide(comparison, settings=settings, phase=rollout.phase, age_days=age_days)
        taken = (Decision(NOW, "review", decision.verdict, decision.reason, decision.numbers),)
    return Trial(rollout, taken, None, None, {})


def said(trial, before=None, *, settings=SETTINGS, progress=PROGRESS):
    return words(trial, before, progress, settings=settings, now=NOW)


@pytest.mark.parametrize(
    ("low", "high", "tone", "answer"),
    [
        (-0.05, 0.05, "wait", "Not known yet"),
        (0.01, 0.05, "good", "Yes: the new model is better"),
        (-0.05, -0.01, "bad", "No: the new model is worse"),
    ],
)
def test_the_answer_follows_the_bounds(low, high, tone, answer):
    found = said(trial_of(comparison_of(low=low, high=high), age_days=2.0))
    assert found.tone == tone
    assert found.answer.startswith(answer)
    assert f"{100 * low:+.1f}".replace("-", "\N{MINUS SIGN}") in found.sure
    assert "at most 5 %" in found.sure


def test_without_enough_reactions_no_bounds_are_named():
    found = said(trial_of(comparison_of(low=-inf, high=inf, is_ready=False)))
    assert (found.tone, found.answer) == ("wait", "Not known yet: it may be better or worse.")
    assert "too few reactions" in found.sure
    assert "inf" not in found.sure


def test_shown_harm_is_a_no_that_names_the_harm():
    harm = Guardrail("quick dismissals", 0.1, 0.3, 9.0, 5.0)
    found = said(trial_of(comparison_of(guardrails=(harm,))))
    assert (found.tone, found.answer) == ("bad", "No: harm is shown (quick dismissals).")


def test_a_proposal_waits_for_a_person():
    asks = CanaryConfig(decides="propose")
    trial = trial_of(comparison_of(low=0.01, high=0.05), settings=asks)
    found = said(trial, settings=asks)
    assert found.proposal == "promote"
    assert "A person decides now: promote is proposed" in found.next
    assert "reactune promote" not in found.next


def test_data_that_cannot_be_trusted_are_no_answer():
    found = said(trial_of(comparison_of(mismatch=50.0)))
    assert found.answer == "Not known: the data cannot be trusted."
    assert "Sample-ratio mismatch" in found.sure


def test_a_forecast_says_what_is_next():
    found = said(trial_of(comparison_of(units_at_share={0.05: 2_000}, progress=0.1)))
    assert "a verdict likely by" in found.next


def test_before_the_first_review_the_command_is_named():
    found = said(trial_of())
    assert found.answer == "Not known yet."
    assert "`reactune review`" in found.next


def test_a_model_that_writes_unseen_is_not_known_yet():
    shadow = ShadowReport(answers=40, failed=1, refused=2, slow=0, misread=0)
    trial = replace(trial_of(phase="shadow", share=0.0), shadow=shadow)
    found = said(trial, settings=CanaryConfig(shadow_answers=100))
    assert "writes unseen" in found.answer
    assert "40 of 100" in found.sure
    assert "3 faults" in found.sure


@pytest.mark.parametrize(
    ("verdict", "tone", "answer"),
    [("promote", "good", "Yes: version 2 was better"), ("roll back", "bad", "No: version 2 was")],
)
def test_after_a_trial_its_end_is_the_answer(verdict, tone, answer):
    ended = (Decision(NOW, "review", verdict, "the challenger is so and so", {}),)
    before = Trial(ROLLOUT, ended, NOW, verdict, {})
    live = Trial(replace(ROLLOUT, challenger=None, phase="idle"), (), None, None, {})
    found = said(live, before)
    assert found.tone == tone
    assert found.answer.startswith(answer)
    assert found.sure == "The challenger is so and so."
    assert "2026-03-16" in found.next


def test_nothing_live_and_no_date_are_said_as_such():
    assert said(None).answer == "There is no model yet."
    live = Trial(replace(ROLLOUT, challenger=None, phase="idle"), (), None, None, {})
    never = said(live, progress=replace(PROGRESS, ready_on=None))
    assert "no date" in never.next


def test_a_holdback_measures_whether_the_gain_lasts():
    comparison = comparison_of(estimate=-0.04, low=-0.06, high=-0.02)
    found = said(trial_of(comparison, phase="holdback", champion=2, challenger=1))
    assert found.tone == "good"
    assert "now at +4.0 points" in found.answer
