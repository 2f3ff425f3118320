"""How often identical models get a verdict when somebody looks all the time.

Every world is an A/A test: both arms are the same model. The verdicts are those of
`reactune.canary.compare`, read after every unit; beside them stands a plain z test per tip on
the same worlds, read every 200 tips.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import log

import numpy as np
from scipy.stats import beta

from reactune.canary.compare import follow
from reactune.canary.outcomes import Outcomes
from reactune.config import CanaryConfig
from record import record

SETTINGS = CanaryConfig()
LOOK_EVERY = 200
FIRST_LOOK = 400


@dataclass(frozen=True)
class Scene:
    """People and traffic: share and rate of each unit, tips per unit, likeness within a unit."""

    name: str
    share: np.ndarray
    rate: np.ndarray
    tips: float
    icc: float


SCENES = (
    Scene("single tips at 5 %", np.full(6_000, 0.05), np.full(6_000, 0.3), 1, 0.0),
    Scene(
        "days of 4 tips, ramp 5-10-25-50 %, rising taste",
        np.repeat([0.05, 0.10, 0.25, 0.50], [400, 400, 400, 2_800]),
        np.linspace(0.2, 0.5, 4_000),
        4,
        0.33,
    ),
)


def worlds(scene: Scene, count: int, seed: int) -> Iterator[Outcomes]:
    """Worlds in which the arm makes no difference."""
    units = len(scene.share)
    for world in range(count):
        rng = np.random.default_rng([seed, world])
        tips = np.ones(units, np.int64)
        if scene.tips > 1:
            tips += rng.poisson(scene.tips - 1, units)
        person = scene.rate
        if scene.icc:
            strength = (1 - scene.icc) / scene.icc
            person = rng.beta(person * strength, (1 - person) * strength)
        positives = rng.binomial(tips, person)
        none = np.zeros(units, np.int64)
        yield Outcomes(
            unit_key=np.arange(units).astype(np.str_),
            challenger=rng.random(units) < scene.share,
            share=scene.share,
            tips=tips,
            positives=positives,
            quick_dismissals=rng.binomial(tips - positives, 0.25),
            snoozes=none,
            fallbacks=none,
            both_arms=none.astype(bool),
            first_shown_at=np.datetime64("2026-01-01") + np.arange(units).astype("m8[m]"),
        )


def false_verdicts(world: Outcomes) -> dict[str, bool]:
    """What our bounds and guardrails ever say, and what a z test ever says."""
    path = follow(world, settings=SETTINGS, planned_units=SETTINGS.planned_units)
    return {
        "promoted": bool((path.low > -SETTINGS.margin).any()),
        "rolled back by the bounds": bool((path.high < 0).any()),
        "rolled back by the guardrail": bool(path.harm[-1] >= log(2 / SETTINGS.alpha)),
        "held by the sample ratio": bool(path.mismatch[-1] >= log(1 / SETTINGS.srm_alpha)),
        "plain z test": _ever_significant(world),
    }


def _ever_significant(world: Outcomes) -> bool:
    tips = np.cumsum(world.tips)
    looks = np.unique(np.searchsorted(tips, np.arange(FIRST_LOOK, tips[-1], LOOK_EVERY)))
    arms = (world.challenger, ~world.challenger)
    n1, n0 = (np.maximum(np.cumsum(world.tips * arm)[looks], 1) for arm in arms)
    s1, s0 = (np.cumsum(world.positives * arm)[looks] for arm in arms)
    pooled = (s1 + s0) / (n1 + n0)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n0))
    return bool((np.abs(s1 / n1 - s0 / n0) > 1.96 * error).any())


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a rate."""
    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def main() -> None:
    """Run all scenes, print the table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures = {"worlds": options.worlds, "seed": options.seed, "alpha": SETTINGS.alpha}
    for scene in SCENES:
        started = time.perf_counter()
        rows = [false_verdicts(world) for world in worlds(scene, options.worlds, options.seed)]
        print(f"{scene.name}: {options.worlds:,} A/A worlds of {len(scene.share):,} units")
        figures[scene.name] = {}
        for name in rows[0]:
            hits = sum(row[name] for row in rows)
            low, high = clopper_pearson(hits, len(rows))
            print(f"  {name:<30} {hits / len(rows):6.1%}   95 % interval {low:.1%} to {high:.1%}")
            figures[scene.name][name] = {"rate": hits / len(rows), "low": low, "high": high}
        figures[scene.name]["seconds"] = round(time.perf_counter() - started, 1)
    print(f"kept in {record('verdict_fpr', figures, packages=('numpy', 'scipy')).name}")


if __name__ == "__main__":
    main()
