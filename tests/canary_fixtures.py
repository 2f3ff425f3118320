"""Units and worlds for the canary's tests: outcomes from plain numbers, and simulated people."""

from datetime import datetime

import numpy as np

from reactune.canary.outcomes import Outcomes


def outcomes_of(*, challenger, tips=1, positives=0, share=0.5, quick=0, fallbacks=0, both=False):
    """Outcomes of as many units as `challenger` has entries; other values are broadcast."""
    challenger = np.asarray(challenger, bool)
    units = len(challenger)

    def spread(values, kind):
        return np.array(np.broadcast_to(np.asarray(values, kind), units))

    return Outcomes(
        unit_key=np.array([f"u{n}" for n in range(units)], np.str_),
        challenger=challenger,
        share=spread(share, float),
        tips=spread(tips, np.int64),
        positives=spread(positives, np.int64),
        quick_dismissals=spread(quick, np.int64),
        snoozes=spread(0, np.int64),
        fallbacks=spread(fallbacks, np.int64),
        both_arms=spread(both, bool),
        first_shown_at=np.datetime64(datetime(2026, 3, 1)) + np.arange(units).astype("m8[m]"),
    )


def draw_worlds(rng, worlds, units, *, share, rate, effect=0.0, tips=1, icc=0.0):
    """Simulated (challenger, tips, positives), each worlds x units.

    `share` and `rate` may change from unit to unit; people differ by the intra-unit correlation
    `icc`, and see one tip or on average `tips` of them.
    """
    shape = (worlds, units)
    challenger = rng.random(shape) < share
    seen = np.ones(shape, np.int64) if tips == 1 else 1 + rng.poisson(tips - 1, shape)
    person = np.broadcast_to(rate, shape)
    if icc:
        strength = (1 - icc) / icc
        person = rng.beta(person * strength, (1 - person) * strength)
    liked = rng.binomial(seen, np.clip(person + effect * challenger, 0, 1))
    return challenger, seen, liked
