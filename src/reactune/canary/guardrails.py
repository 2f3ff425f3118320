"""Guardrails: harms of a challenger, each with an alarm and its own part of the error rate."""

from dataclasses import dataclass
from math import log
from typing import Annotated

import numpy as np
from pydantic import Field

from reactune.canary.outcomes import Booleans, Counts, Outcomes
from reactune.canary.sequential import (
    HARM,
    Floats,
    adjusted_differences,
    excess_log_e_values,
    harm_log_e_values,
    shortfall_log_e_values,
)
from reactune.config.sections import CanaryConfig

# Parts of the guardrails' part of alpha. Users feel a tip that they dismiss at once the most.
PARTS = {
    "quick dismissals": 0.5,
    "snoozes": 0.1,
    "slow answers": 0.1,
    "fallbacks": 0.1,
    "repeated tips": 0.1,
    "kinds": 0.1,
}


@dataclass(frozen=True)
class Guardrail:
    """Rates of a harm per tip, and the largest log e-value so far that the challenger has more.

    Harm is shown where `log_e_value` reaches `alarm`. Of a `kind`, rates are positives per tip.
    """

    name: str
    champion_rate: float
    challenger_rate: float
    log_e_value: Annotated[float, Field(alias="evidence")]  # its name in stored numbers
    alarm: float

    @property
    def is_broken(self) -> bool:
        """Whether harm is shown; once shown it stays shown."""
        return self.log_e_value >= self.alarm


def check_guardrails(
    outcomes: Outcomes, *, settings: CanaryConfig, planned: float
) -> tuple[Guardrail, ...]:
    """All guardrails over randomised units; together they alarm falsely with chance HARM * alpha.

    `planned` is the weight at the planned end. `docs/statistics.md` says what each assumes.
    """
    guardrails = [
        _frequency("quick dismissals", outcomes, outcomes.quick_dismissals, settings),
        _frequency("snoozes", outcomes, outcomes.snoozes, settings),
        _frequency("slow answers", outcomes, outcomes.slow, settings),
        _fallbacks(outcomes, settings),
        _repeats(outcomes, settings, planned),
    ]
    if len(outcomes.kinds) > 1:
        guardrails += [_kind(name, outcomes, settings, planned) for name in outcomes.kinds]
    return tuple(guardrails)


def rate(part: Counts, whole: Counts) -> float:
    """Sum over sum; 0 of nothing."""
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0


def _frequency(name: str, outcomes: Outcomes, events: Counts, settings: CanaryConfig) -> Guardrail:
    """Events of either arm: do they fall on the challenger more often than its share allows?"""
    log_e = harm_log_e_values(
        events > 0, outcomes.challenger, outcomes.share, margin=settings.harm_margin
    )
    return _guardrail(name, outcomes, events, log_e, settings)


def _fallbacks(outcomes: Outcomes, settings: CanaryConfig) -> Guardrail:
    """Only a challenger can fall back, so its units' first tips are compared with a limit."""
    log_e = excess_log_e_values(
        outcomes.fell_back, outcomes.challenger, limit=settings.max_fallbacks
    )
    return _guardrail("fallbacks", outcomes, outcomes.fallbacks, log_e, settings)


def _repeats(outcomes: Outcomes, settings: CanaryConfig, planned: float) -> Guardrail:
    """Diversity: does the challenger repeat its last tip more often, by a margin?"""
    log_e = _shortfall(
        outcomes.tips,
        outcomes.tips - outcomes.repeats,
        outcomes.challenger,
        outcomes.share,
        settings=settings,
        planned=planned,
        margin=settings.repeat_margin,
    )
    return _guardrail("repeated tips", outcomes, outcomes.repeats, log_e, settings)


def _kind(name: str, outcomes: Outcomes, settings: CanaryConfig, planned: float) -> Guardrail:
    """Is the challenger worse at tips of one kind? The app asks for the kind before routing."""
    counts = outcomes.kinds[name]
    challenger = outcomes.challenger[counts.unit]
    log_e = _shortfall(
        counts.tips,
        counts.positives,
        challenger,
        outcomes.share[counts.unit],
        settings=settings,
        planned=planned,
        margin=settings.kind_margin,
    )
    return Guardrail(
        name=f"kind {name}",
        champion_rate=rate(counts.positives[~challenger], counts.tips[~challenger]),
        challenger_rate=rate(counts.positives[challenger], counts.tips[challenger]),
        log_e_value=float(log_e[-1]) if len(log_e) else 0.0,
        alarm=_alarm("kinds", settings) + log(len(outcomes.kinds)),
    )


def _shortfall(
    tips: Counts,
    positives: Counts,
    challenger: Booleans,
    share: Floats,
    *,
    settings: CanaryConfig,
    planned: float,
    margin: float,
) -> Floats:
    no_past = np.zeros_like(tips)
    difference, is_ready = adjusted_differences(
        tips,
        positives,
        challenger,
        share,
        earlier_tips=no_past,
        earlier_positives=no_past,
        settings=settings,
    )
    return shortfall_log_e_values(
        difference, is_ready, alpha=settings.alpha, planned=planned, margin=margin
    )


def _guardrail(
    name: str, outcomes: Outcomes, events: Counts, log_e: Floats, settings: CanaryConfig
) -> Guardrail:
    arm = outcomes.challenger
    return Guardrail(
        name=name,
        champion_rate=rate(events[~arm], outcomes.tips[~arm]),
        challenger_rate=rate(events[arm], outcomes.tips[arm]),
        log_e_value=float(log_e[-1]) if len(log_e) else 0.0,
        alarm=_alarm(name, settings),
    )


def _alarm(name: str, settings: CanaryConfig) -> float:
    return -log(HARM * PARTS[name] * settings.alpha)
