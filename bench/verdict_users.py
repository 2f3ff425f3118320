"""False verdicts under `unit = "user"`, read every day while users keep returning.

A user stays in one arm, and each look reads all their reactions so far: a unit is never whole. Both
arms are the same model in one half of the worlds; in the other the challenger has the planned lift.
Ours is `reactune.canary`, once with the covariate (as `unit = "user"` needs) and once without; a
t test and GrowthBook's sequential test read the same estimate with the covariate.
"""

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np

import verdict_peers as peers
from reactune.canary.sequential import adjusted_differences, effect
from reactune.config.sections import CanaryConfig
from record import record
from verdict import clopper_pearson

SETTINGS = CanaryConfig(unit="user")
CORRELATION, PAST = 0.2, 20.0


@dataclass(frozen=True)
class Scene:
    """A number of users with lasting preferences over some days; each returns at random."""

    name: str
    share: float
    persons: int
    rate: float = 0.25
    lift: float = 0.025
    days: int = 28
    active: float = 0.4
    tips: float = 3.0


@dataclass(frozen=True)
class World:
    """Sums of each user after each day, in the order of arrival.

    `tips` and `positives` have the shape (days, persons), the rest one entry a person.
    """

    came: np.ndarray
    challenger: np.ndarray
    tips: np.ndarray
    positives: np.ndarray
    past_tips: np.ndarray
    past_positives: np.ndarray


SCENES = (
    Scene("half to each", share=0.5, persons=2_000),
    Scene("5 % throughout", share=0.05, persons=8_000, lift=0.035),
)


def draw(scene: Scene, lift: float, rng: np.random.Generator) -> World:
    """A world: users arrive on any day, and return at random on later ones."""
    strength = (1 - CORRELATION) / CORRELATION
    persons, days = scene.persons, scene.days
    preference = rng.beta(scene.rate * strength, (1 - scene.rate) * strength, size=persons)
    came = np.sort(rng.integers(0, days, size=persons))
    challenger = rng.random(persons) < scene.share
    day = np.arange(days)[:, np.newaxis]
    is_there = (day == came) | ((day > came) & (rng.random((days, persons)) < scene.active))
    tips = is_there * (1 + rng.poisson(scene.tips - 1, (days, persons)))
    positives = rng.binomial(tips, np.clip(preference + lift * challenger, 0, 1))
    past_tips = rng.poisson(PAST, size=persons)
    return World(
        came=came,
        challenger=challenger,
        tips=tips.cumsum(axis=0),
        positives=positives.cumsum(axis=0),
        past_tips=past_tips,
        past_positives=rng.binomial(past_tips, preference),
    )


PEERS = {
    "GrowthBook sequential, default": lambda z, n: bool(peers.growthbook(z, n, tuned_at=5_000)),
    "t test, read every day": lambda z, n: bool(peers.naive(z)),
}


def read_day(scene: Scene, world: World, day: int) -> tuple[int, float, int]:
    """Our verdict after a day (1 better, -1 worse, 0 none), z after the burn-in, and units."""
    there = world.came <= day
    difference, ready = adjusted_differences(
        world.tips[day, there],
        world.positives[day, there],
        world.challenger[there],
        np.full(int(there.sum()), scene.share),
        earlier_tips=world.past_tips[there],
        earlier_positives=world.past_positives[there],
        settings=SETTINGS,
    )
    planned = scene.persons * scene.share * (1 - scene.share)
    ours = effect(difference, ready, alpha=SETTINGS.alpha, planned=planned)
    side = int(ours.low[-1] > 0) - int(ours.high[-1] < 0)
    z = float(difference.estimate[-1] / difference.error[-1]) if ready[-1] else 0.0
    return side, z, int(there.sum())


def read(scene: Scene, world: World) -> dict[str, int]:
    """By rule the day of the first verdict, negative for a worse challenger; 0 for none."""
    nothing = np.zeros_like(world.past_tips)
    without = replace(world, past_tips=nothing, past_positives=nothing)
    verdicts: dict[str, int] = {}
    for day in range(scene.days):
        side, z, units = read_day(scene, world, day)
        sides = {"reactune": side, "reactune, without the past": read_day(scene, without, day)[0]}
        sides |= {name: int(np.sign(z)) * rule(z, units) for name, rule in PEERS.items()}
        for name, verdict in sides.items():
            verdicts[name] = verdicts.get(name) or verdict * (day + 1)
    return verdicts


def main() -> None:
    """Run both scenes, print their tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1_000, help="of each sort")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    kept: dict[str, object] = {"worlds": options.worlds, "seed": options.seed}
    for number, scene in enumerate(SCENES):
        started, rng = time.perf_counter(), np.random.default_rng([options.seed, number])
        days = {}
        for sort, lift in (("same", 0.0), ("lifted", scene.lift)):
            worlds = [read(scene, draw(scene, lift, rng)) for _ in range(options.worlds)]
            days[sort] = {name: np.array([each[name] for each in worlds]) for name in worlds[0]}
        seconds = time.perf_counter() - started
        print(f"{scene.name}: {options.worlds:,} worlds of each sort, {scene.persons:,} users, "
              f"{scene.days} looks, {seconds:.0f} s", flush=True)  # fmt: skip
        figures = {}
        for name, same in days["same"].items():
            false, power = int((same != 0).sum()), float((days["lifted"][name] > 0).mean())
            low, high = clopper_pearson(false, options.worlds)
            print(f"  {name:<32} false verdicts {false / options.worlds:6.1%} "
                  f"({low:.1%} to {high:.1%}), promoted with the lift {power:.0%}")  # fmt: skip
            figures[name] = {
                "false": false / options.worlds, "false_low": low, "false_high": high,
                "power": power,
            }  # fmt: skip
        kept[scene.name] = figures
    print(f"kept in {record('verdict_users', kept, packages=('numpy', 'scipy')).name}")


if __name__ == "__main__":
    main()
