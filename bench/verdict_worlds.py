"""Simulated worlds for `verdict.py`: users with lasting preferences react to both arms.

Run it to see what one world of each scene looks like.
"""

from dataclasses import dataclass

import numpy as np

Floats = np.ndarray


@dataclass(frozen=True)
class Scene:
    """Traffic and users. `share` and `trend` have one entry per unit, up to the longest rollout.

    `correlation` is that of one user's reactions, `trend` a factor on every user's rate, `persons`
    the number of users, each with `past` tips on average before the rollout. A tip counts when
    `lag` more units have been shown: its reaction comes late.
    """

    name: str
    share: Floats
    trend: Floats
    rate: float
    lift: float
    tips: float
    correlation: float
    persons: int
    past: float
    lag: int


@dataclass(frozen=True)
class Worlds:
    """Units of several worlds, one world per row; `past_...` is from before the rollout."""

    challenger: Floats
    tips: Floats
    positives: Floats
    past_tips: Floats
    past_positives: Floats
    earlier_tips: Floats
    earlier_positives: Floats


def ramp(steps: dict[float, int], length: int) -> Floats:
    """Shares that grow: so many units at each, the last for the rest."""
    shares = np.repeat(list(steps), list(steps.values()))
    return np.concatenate([shares, np.full(length - len(shares), shares[-1])])


SCENES = (
    Scene(
        name="single tips, half to each",
        share=np.full(5_400, 0.5),
        trend=np.ones(5_400),
        rate=0.3,
        lift=0.05,
        tips=1.0,
        correlation=0.1,
        persons=600,
        past=20.0,
        lag=5,
    ),
    Scene(
        name="person-days, ramp 5-10-25-50 %, rising taste",
        share=ramp({0.05: 200, 0.10: 200, 0.25: 200, 0.50: 1}, 10_000),
        trend=np.linspace(0.7, 1.3, 10_000),
        rate=0.25,
        lift=0.025,
        tips=3.0,
        correlation=0.2,
        persons=400,
        past=20.0,
        lag=5,
    ),
    Scene(
        name="person-days, 5 % throughout",
        share=np.full(12_000, 0.05),
        trend=1 + 0.2 * np.sin(np.arange(12_000) / 400),
        rate=0.25,
        lift=0.06,
        tips=3.0,
        correlation=0.2,
        persons=1_200,
        past=20.0,
        lag=5,
    ),
)


def draw(scene: Scene, effect: float, worlds: int, rng: np.random.Generator) -> Worlds:
    """Worlds in which the challenger adds `effect` to every user's rate."""
    shape = (worlds, len(scene.share))
    strength = (1 - scene.correlation) / scene.correlation
    preference = rng.beta(
        scene.rate * strength, (1 - scene.rate) * strength, size=(worlds, scene.persons)
    )
    past_tips = rng.poisson(scene.past, size=preference.shape)
    past_positives = rng.binomial(past_tips, preference)
    person = rng.integers(0, scene.persons, size=shape)
    challenger = rng.random(shape) < scene.share
    tips = np.ones(shape, np.int64) if scene.tips == 1 else 1 + rng.poisson(scene.tips - 1, shape)
    rate = np.take_along_axis(preference, person, axis=1) * scene.trend + effect * challenger
    positives = rng.binomial(tips, np.clip(rate, 0, 1))
    before = [np.take_along_axis(each, person, axis=1) for each in (past_tips, past_positives)]
    return Worlds(
        challenger=challenger,
        tips=tips,
        positives=positives,
        past_tips=before[0],
        past_positives=before[1],
        earlier_tips=before[0] + sums_before(person, tips),
        earlier_positives=before[1] + sums_before(person, positives),
    )


def sums_before(person: Floats, values: Floats) -> Floats:
    """For each unit the sum of the values of its user's earlier units."""
    order = np.argsort(person, axis=1, kind="stable")
    sorted_values = np.take_along_axis(values, order, axis=1)
    running = np.cumsum(sorted_values, axis=1) - sorted_values
    sorted_person = np.take_along_axis(person, order, axis=1)
    is_first = np.diff(sorted_person, axis=1, prepend=-1) != 0
    at_first = np.maximum.accumulate(np.where(is_first, running, 0), axis=1)
    before = np.empty_like(values)
    np.put_along_axis(before, order, running - at_first, axis=1)
    return before


if __name__ == "__main__":
    for scene in SCENES:
        one = draw(scene, scene.lift, 1, np.random.default_rng(1))
        print(f"{scene.name}: {one.tips.sum():,} tips, {one.positives.sum():,} positives")
