"""The section of the settings about rollouts: how far a challenger goes, and what decides.

A module of its own because it is the longest one.
"""

from typing import Literal

from pydantic import Field

from reactune.sections import Section, Share


class CanaryConfig(Section):
    """How far a challenger goes, and what decides."""

    shadow_answers: int = Field(0, ge=0)
    """Answers that a challenger writes silently beside the champion before anybody meets it;
    0: none."""
    shadow_faults: Share = 0.05
    """Share of silent answers that may fail, be slow or be refused by the guard."""
    share: Share = 0.05
    """First share of tips that the challenger writes."""
    ramp: tuple[Share, ...] = (0.10, 0.25, 0.50)
    """Shares that follow, one step per review that shows no harm."""
    min_units_per_step: int = Field(200, ge=1)
    """Units observed at a share before the next step."""
    min_days: float = Field(7, ge=0)
    """Days from the first tip on trial to a promotion: weekends are no weekdays. Harm is acted on
    at once."""
    decides: Literal["auto", "propose"] = "auto"
    """Who has the last word: `auto`, the review itself; `propose`, a person, who promotes or rolls
    back what the review proposes. Shown harm is taken back at once in either case."""
    unit: Literal["tip", "user_day", "user"] = "user_day"
    """What is routed as one: each tip, all tips of a user on one (UTC) day, or all of a user.
    Under `user_day` a user may meet both models on different days; `user` only with CUPED."""
    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of a false verdict, however often one looks; 60 % of it for a promotion."""
    planned_units: int = Field(20_000, ge=100)
    """Units at the first share after which the rollout has told what it can, and ends; a larger
    share tells as much with fewer. Fixed when the rollout opens; `reactune plan` says how many."""
    max_units: int = Field(50_000, ge=100)
    """Units after which an inconclusive rollout ends in any case."""
    min_positives: int = Field(20, ge=1)
    """Positives in the challenger's arm before any bound may decide."""
    min_negatives: int = Field(20, ge=1)
    """Non-positives in the challenger's arm before any bound may decide."""
    margin: Share = 0.0
    """Promotion needs the lower bound above minus this; 0: superiority."""
    own_weight: float = Field(10.0, gt=0)
    """How many tips of the average a person's own earlier tips are weighed against when it is
    foreseen how many of the next are positive; what is foreseen is no noise."""
    harm_margin: float = Field(0.25, ge=0)
    """Quick dismissals, snoozes and slow answers of the challenger may be this much more frequent
    (relative)."""
    slow_ms: int = Field(5_000, ge=1)
    """An answer that takes longer is slow."""
    max_fallbacks: Share = 0.1
    """Share of a challenger's answers that the champion may have to give in its place."""
    repeat_margin: Share = 0.05
    """By how much more often the challenger may say the same twice in a row (absolute)."""
    kind_margin: Share = 0.0
    """By how much fewer tips of one kind may be positive (absolute)."""
    srm_alpha: float = Field(0.001, gt=0, lt=0.5)
    """Alarm level of the sample-ratio check."""
    holdback: Share = 0.0
    """Share that keeps the former champion after a promotion, to see whether the gain lasts;
    0: nobody does."""
    window_seconds: int = Field(180, ge=1)
    """A tip counts this long after it was shown: two minutes to react and one of grace."""
