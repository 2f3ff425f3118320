"""The state of a rollout in plain words: is it better, how sure is that, what is next?"""

from datetime import datetime
from math import isfinite

from reactune.analysis import plan
from reactune.canary.compare import Comparison
from reactune.canary.rollout import ShadowReport
from reactune.config.sections import CanaryConfig
from reactune.pages.facts import Progress, Trial
from reactune.pages.tables import Tone, Words, percent, plural, points

BOUNDS = (
    "Of 100 tips, users like {low} to {high} more of {new} than of {old} (negative: fewer). These "
    "bounds are wrong with a chance of at most {alpha}, however often they are read."
)
PROPOSED = " is proposed: "


def words(
    trial: Trial | None,
    before: Trial | None,
    progress: Progress,
    *,
    settings: CanaryConfig,
    now: datetime,
) -> Words:
    """The state of what is live; `before` is the rollout that ended last."""
    if trial is None:
        return Words(
            "none",
            "There is no model yet.",
            "Nothing is live, so nothing can be compared.",
            "`reactune deploy --base` makes the base model answer; `reactune run` trains a new one "
            "from reactions.",
        )
    rollout = trial.rollout
    if rollout.challenger is None:
        return _idle(trial, before, progress)
    if rollout.phase == "shadow" and trial.shadow is not None:
        return _shadow(trial, trial.shadow, settings)
    comparison = trial.comparison
    if comparison is None:
        return Words(
            "wait",
            "Not known yet.",
            "No review has compared the two models so far.",
            f"Version {rollout.challenger} answers {percent(rollout.share, 0)} of the tips. "
            "`reactune review` compares it with the champion.",
        )
    if rollout.phase == "holdback":
        return _holdback(trial, comparison, settings)
    return _compared(trial, comparison, settings=settings, now=now)


def bounds_text(
    comparison: Comparison,
    settings: CanaryConfig,
    *,
    new: str = "the new model's",
    old: str = "the old one's",
) -> str:
    """The bounds of a comparison in one sentence."""
    if not (isfinite(comparison.low) and isfinite(comparison.high)):
        return (
            f"{plural(comparison.units, 'unit')} observed: too few reactions for any bound. "
            f"So far {percent(comparison.challenger_rate)} of the challenger's tips were liked, "
            f"and {percent(comparison.champion_rate)} of the champion's."
        )
    return BOUNDS.format(
        low=points(comparison.low, 1),
        high=points(comparison.high, 1),
        new=new,
        old=old,
        alpha=percent(settings.alpha, 0),
    )


def _idle(trial: Trial, before: Trial | None, progress: Progress) -> Words:
    champion = trial.rollout.champion
    if progress.ready_on is None:
        when = "No liked or dismissed tips came in lately, so there is no date for the next model."
    else:
        when = (
            f"The next model can be trained about {progress.ready_on:%Y-%m-%d}, at the rate of the "
            "last two weeks; `reactune run` trains it."
        )
    if before is None:
        return Words(
            "none",
            "There is no new model on trial.",
            f"Version {champion} answers everybody; it has not been compared with another one.",
            when,
        )
    last = before.decisions[-1] if before.decisions else None
    was = before.rollout.challenger
    reason = last.reason if last else ""
    if before.verdict == "promote":
        return Words(
            "good",
            f"Yes: version {was} was better, and answers everybody now.",
            _sentence(reason),
            when,
        )
    return Words(
        "bad",
        f"No: version {was} was not better, and was withdrawn.",
        _sentence(reason),
        f"Version {champion} answers everybody. {when}",
    )


def _shadow(trial: Trial, shadow: ShadowReport, settings: CanaryConfig) -> Words:
    faults = shadow.failed + shadow.refused + shadow.slow
    return Words(
        "wait",
        "Not known yet: the new model writes unseen.",
        f"{shadow.answers:,} of {settings.shadow_answers:,} answers that no user sees are written; "
        f"{plural(faults, 'fault')}, {percent(settings.shadow_faults, 0)} are allowed.",
        f"If it passes, the next review gives version {trial.rollout.challenger} "
        f"{percent(settings.share, 0)} of the tips.",
    )


def _holdback(trial: Trial, comparison: Comparison, settings: CanaryConfig) -> Words:
    gain = -comparison.estimate
    return Words(
        "good" if comparison.high < 0 else "wait",
        f"Version {trial.rollout.champion} was promoted; it is now at {points(gain, 1)} points.",
        f"The former champion, version {trial.rollout.challenger}, keeps "
        f"{percent(trial.rollout.share, 0)} of the tips to measure whether the gain lasts. "
        + bounds_text(comparison, settings, new="the former champion's", old="the new one's"),
        "The holdback ends when the next model goes on trial, or with a rollback.",
    )


def _compared(
    trial: Trial, comparison: Comparison, *, settings: CanaryConfig, now: datetime
) -> Words:
    rollout, last = trial.rollout, trial.last
    reason = last.reason if last else ""
    sure = bounds_text(comparison, settings)
    forecast = plan.forecast(
        settings,
        rollout,
        comparison,
        age_days=float(last.numbers.get("age_days", 0.0)) if last else 0.0,
        now=last.at if last else now,
    )
    by = "promotes it or withdraws it" if settings.decides == "auto" else "proposes what to do"
    next_ = f"The trial goes on; a review {by} once it is decided. {_sentence(forecast)}"
    proposal, is_proposed, why = reason.partition(PROPOSED)
    if is_proposed:
        tone: Tone = "good" if proposal == "promote" else "bad"
        next_ = f"A person decides now: {proposal} is proposed, because {why.partition('; `')[0]}."
        return Words(tone, _answer(comparison, settings), sure, next_, proposal)
    if reason.startswith("hold: "):
        return Words(
            "bad",
            "Not known: the data cannot be trusted.",
            _sentence(reason.removeprefix("hold: ")),
            "The share stays until this is repaired.",
        )
    if broken := [each.name for each in comparison.guardrails if each.is_broken]:
        answer = f"No: harm is shown ({', '.join(broken)})."
        return Words("bad", answer, sure, "The next review withdraws the new model.")
    return Words(_tone(comparison, settings), _answer(comparison, settings), sure, next_)


def _tone(comparison: Comparison, settings: CanaryConfig) -> Tone:
    if comparison.is_ready and comparison.low > -settings.margin:
        return "good"
    return "bad" if comparison.is_ready and comparison.high < 0 else "wait"


def _answer(comparison: Comparison, settings: CanaryConfig) -> str:
    return {
        "good": "Yes: the new model is better.",
        "bad": "No: the new model is worse.",
        "wait": "Not known yet: it may be better or worse.",
        "none": "",
    }[_tone(comparison, settings)]


def _sentence(text: str) -> str:
    """A stored reason as a sentence."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else "No reason is recorded."
