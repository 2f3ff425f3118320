"""What must not get worse while the difference is still undecided: each with its own alarm.

Arrays and rates in, evidence out; that an alarm takes the challenger back is for `compare.py`.
"""

from dataclasses import dataclass
from math import log

import numpy as np

from reactune.canary.outcomes import Booleans, Counts, Outcomes
from reactune.canary.sequential import (
    HARM,
    Floats,
    excess_evidence,
    foreseen_differences,
    harm_evidence,
    worsening,
)
from reactune.config.sections import CanaryConfig

# Of the guardrails' part of alpha; a tip that is dismissed at once is the harm that people feel.
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
    """Rates of what should not happen, per tip, and the largest log e-value for it so far.

    Where `evidence` reaches `alarm` it is shown. Of a `kind`, rates are positives per tip.
    """

    name: str
    champion_rate: float
    challenger_rate: float
    evidence: float
    alarm: float

    @property
    def is_broken(self) -> bool:
        """Whether harm is shown; once shown it stays shown."""
        return self.evidence >= self.alarm


def watch(drawn: Outcomes, *, settings: CanaryConfig, planned: float) -> tuple[Guardrail, ...]:
    """All guardrails over the units drawn by lot; together they alarm falsely with chance HARM.

    `planned` is the weight at the planned end. See `docs/statistics.md` for what each assumes.
    """
    found = [
        _allocated("quick dismissals", drawn, drawn.quick_dismissals, settings),
        _allocated("snoozes", drawn, drawn.snoozes, settings),
        _allocated("slow answers", drawn, drawn.slow, settings),
        _fallbacks(drawn, settings),
        _repeats(drawn, settings, planned),
    ]
    if len(drawn.kinds) > 1:
        found += [_kind(name, drawn, settings, planned) for name in drawn.kinds]
    return tuple(found)


def _allocated(name: str, drawn: Outcomes, events: Counts, settings: CanaryConfig) -> Guardrail:
    """Events that either arm has: do they fall on the challenger more often than its share?"""
    path = harm_evidence(events > 0, drawn.challenger, drawn.share, margin=settings.harm_margin)
    return _guardrail(name, drawn, events, path, _alarm(name, settings))


def _fallbacks(drawn: Outcomes, settings: CanaryConfig) -> Guardrail:
    """Only a challenger can fall back, so its first tips per unit are held against a limit."""
    path = excess_evidence(drawn.fell_back, drawn.challenger, limit=settings.max_fallbacks)
    return _guardrail("fallbacks", drawn, drawn.fallbacks, path, _alarm("fallbacks", settings))


def _repeats(drawn: Outcomes, settings: CanaryConfig, planned: float) -> Guardrail:
    """Diversity: does the challenger say the same twice in a row more often, by a margin?"""
    path = _shortfall(
        drawn.tips,
        drawn.tips - drawn.repeats,
        drawn.challenger,
        drawn.share,
        settings=settings,
        planned=planned,
        margin=settings.repeat_margin,
    )
    alarm = _alarm("repeated tips", settings)
    return _guardrail("repeated tips", drawn, drawn.repeats, path, alarm)


def _kind(name: str, drawn: Outcomes, settings: CanaryConfig, planned: float) -> Guardrail:
    """Is the challenger worse at tips of one kind? The app asks for the kind, before the lot."""
    of = drawn.kinds[name]
    challenger = drawn.challenger[of.unit]
    path = _shortfall(
        of.tips,
        of.positives,
        challenger,
        drawn.share[of.unit],
        settings=settings,
        planned=planned,
        margin=settings.kind_margin,
    )
    return Guardrail(
        name=f"kind {name}",
        champion_rate=rate(of.positives[~challenger], of.tips[~challenger]),
        challenger_rate=rate(of.positives[challenger], of.tips[challenger]),
        evidence=float(path[-1]) if len(path) else 0.0,
        alarm=_alarm("kinds", settings) + log(len(drawn.kinds)),
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
    nothing = np.zeros_like(tips)
    found, is_ready = foreseen_differences(
        tips,
        positives,
        challenger,
        share,
        earlier_tips=nothing,
        earlier_positives=nothing,
        settings=settings,
    )
    return worsening(found, is_ready, alpha=settings.alpha, planned=planned, margin=margin)


def _guardrail(name: str, drawn: Outcomes, events: Counts, path: Floats, alarm: float) -> Guardrail:
    arm = drawn.challenger
    return Guardrail(
        name=name,
        champion_rate=rate(events[~arm], drawn.tips[~arm]),
        challenger_rate=rate(events[arm], drawn.tips[arm]),
        evidence=float(path[-1]) if len(path) else 0.0,
        alarm=alarm,
    )


def _alarm(name: str, settings: CanaryConfig) -> float:
    return -log(HARM * PARTS[name] * settings.alpha)


def rate(part: Counts, whole: Counts) -> float:
    """Sum over sum; 0 of nothing."""
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0
