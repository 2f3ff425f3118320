"""Outcomes from plain numbers, comparisons, and simulated worlds for the canary's tests."""

from dataclasses import fields
from datetime import datetime

import numpy as np

from reactune.canary.compare import Comparison
from reactune.canary.outcomes import Outcomes
from reactune.canary.sequential import adjusted_differences, effect
from reactune.config.sections import CanaryConfig

COUNTS = (
    "tips", "positives", "quick_dismissals", "snoozes", "slow", "repeats", "fallbacks",
    "earlier_tips", "earlier_positives",
)  # fmt: skip


def outcomes_of(*, challenger, share=0.5, both_arms=False, fell_back=False, kinds=None, **counts):
    """Outcomes of as many units as `challenger` has entries; other values are broadcast."""
    challenger = np.asarray(challenger, bool)
    units = len(challenger)

    def spread(values, kind):
        return np.array(np.broadcast_to(np.asarray(values, kind), units))

    filled = {"tips": 1, **counts}
    return Outcomes(
        unit_key=np.array([f"u{n}" for n in range(units)], np.str_),
        challenger=challenger,
        share=spread(share, float),
        fell_back=spread(fell_back, bool),
        both_arms=spread(both_arms, bool),
        first_shown_at=np.datetime64(datetime(2026, 3, 1)) + np.arange(units).astype("m8[m]"),
        kinds=kinds or {},
        **{name: spread(filled.get(name, 0), np.int64) for name in COUNTS},
    )


def some_of(outcomes, chosen):
    """The outcomes of the units chosen by a slice or a mask, without their kinds."""
    columns = {each.name: getattr(outcomes, each.name) for each in fields(Outcomes)}
    return Outcomes(**{n: v if n == "kinds" else v[chosen] for n, v in columns.items()})


def effect_of(
    tips, positives, challenger, share, *, alpha=0.05, planned_units, margin=0.0, earlier=(0, 0)
):
    """The effect after each unit, of one world or of many; all units are ready after burn-in."""
    tips, positives = np.asarray(tips), np.asarray(positives)
    share = np.broadcast_to(share, tips.shape)
    earlier_tips, earlier_positives = (np.broadcast_to(each, tips.shape) for each in earlier)
    difference, is_ready = adjusted_differences(
        tips,
        positives,
        challenger,
        share,
        earlier_tips=earlier_tips,
        earlier_positives=earlier_positives,
        settings=CanaryConfig(own_weight=10.0, min_positives=20, min_negatives=20),
    )
    first = float(share.flat[0])
    return effect(
        difference,
        is_ready,
        alpha=alpha,
        planned=planned_units * first * (1 - first),
        margin=margin,
    )


def draw_worlds(rng, worlds, units, *, share, rate, effect=0.0, tips=1, icc=0.0):
    """Simulated (challenger, tips, positives), each worlds x units.

    `share` and `rate` may change from unit to unit; users differ by the intra-unit correlation
    `icc`, and see one tip or on average `tips` of them.
    """
    shape = (worlds, units)
    challenger = rng.random(shape) < share
    seen = np.ones(shape, np.int64) if tips == 1 else 1 + rng.poisson(tips - 1, shape)
    user_rate = np.broadcast_to(rate, shape)
    if icc:
        strength = (1 - icc) / icc
        user_rate = rng.beta(user_rate * strength, (1 - user_rate) * strength)
    liked = rng.binomial(seen, np.clip(user_rate + effect * challenger, 0, 1))
    return challenger, seen, liked


def one_world(seed, units, **users):
    rng = np.random.default_rng(seed)
    challenger, tips, positives = (each[0] for each in draw_worlds(rng, 1, units, **users))
    return outcomes_of(challenger=challenger, tips=tips, positives=positives, share=users["share"])


def comparison_of(**changes):
    """A comparison of 1,000 units per arm that shows nothing yet, with some values changed."""
    values = {
        "units": 2_000, "tips": 2_000, "challenger_units": 1_000, "challenger_tips": 1_000,
        "champion_rate": 0.3, "challenger_rate": 0.3, "estimate": 0.0, "low": -0.05, "high": 0.05,
        "progress": 0.5, "is_ready": True, "is_futile": False, "guardrails": (), "mismatch": 0.0,
        "moved_away": 0, "moved_in": 0, "fallback_share": 0.0, "units_at_share": {0.5: 2_000},
    }  # fmt: skip
    return Comparison(**values | changes)
