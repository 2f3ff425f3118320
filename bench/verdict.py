"""False verdicts, power and length of our stopping rule and its peers, in simulated worlds.

For every scene of `verdict_worlds.py` there are worlds in which both arms are the same model, and
worlds in which the challenger has the planned lift. All rules read the same estimate and standard
error (ours, with the covariate) after every batch; each runs as long as it needs for our power.
Ours is `reactune.canary`, from burn-in to the planned end, unchanged.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import beta

import verdict_arms
import verdict_peers as peers
from reactune.canary.guardrails import PARTS
from reactune.canary.power import needed_drift
from reactune.canary.sequential import (
    HARM,
    Difference,
    adjusted_differences,
    effect,
    harm_log_e_values,
    mismatch_log_e_values,
)
from reactune.config.sections import CanaryConfig
from record import record
from verdict_worlds import SCENES, Scene, Worlds, draw

SETTINGS = CanaryConfig()
BATCH = 50
CHUNK = 50
NEVER = np.iinfo(np.int64).max
ARMS = Path(__file__).parent.parent / "build/verdict-arms.jsonl"


@dataclass(frozen=True)
class Readings:
    """What rules read, world by look: z, standard error, units, tips, part of our plan.

    `promoted`, `worse` and `futile` are where ours would stop, as look numbers; `own` and
    `own_z` are GrowthBook's own estimate.
    """

    z: np.ndarray
    error: np.ndarray
    units: np.ndarray
    tips: np.ndarray
    own: np.ndarray
    own_z: np.ndarray
    weight: np.ndarray
    promoted: np.ndarray
    worse: np.ndarray
    futile: np.ndarray


@dataclass(frozen=True)
class Ends:
    """For every world the look of a promotion, of a verdict that it is worse, and of the end."""

    promoted: np.ndarray
    worse: np.ndarray
    end: np.ndarray

    @property
    def stop(self) -> np.ndarray:
        """The look of the verdict, whichever it is."""
        return np.minimum(np.minimum(self.promoted, self.worse), self.end)

    @property
    def is_promoted(self) -> np.ndarray:
        """Whether a promotion came first."""
        return self.promoted <= np.minimum(self.worse, self.end)

    @property
    def is_false(self) -> np.ndarray:
        """Whether a difference was stated, in a world that has none."""
        return np.minimum(self.promoted, self.worse) <= self.end


def differ(worlds: Worlds, share: np.ndarray) -> tuple[Difference, np.ndarray]:
    """Our estimate and burn-in after each unit."""
    return adjusted_differences(
        worlds.tips,
        worlds.positives,
        worlds.challenger,
        np.broadcast_to(share, worlds.tips.shape),
        earlier_tips=worlds.earlier_tips,
        earlier_positives=worlds.earlier_positives,
        settings=SETTINGS,
    )


def planned_weight(scene: Scene, rng: np.random.Generator) -> float:
    """The sum of p (1 - p) with which the scene's lift is found with the usual chance."""
    difference, _ = differ(draw(scene, scene.lift / 2, 40, rng), scene.share)
    weight = difference.weight[0]
    drift = scene.lift / np.sqrt(np.mean(difference.error[:, BATCH:] ** 2, axis=0))
    end = np.searchsorted(np.maximum.accumulate(drift), needed_drift(SETTINGS.alpha, 0.8))
    return float(weight[BATCH + end])


def simulate(
    scene: Scene, lift: float, worlds: int, planned: float, rng: np.random.Generator
) -> Readings:
    """Draw worlds in chunks and keep what the rules read at the looks."""
    looks = np.arange(BATCH - 1, len(scene.share), BATCH)
    parts = []
    for start in range(0, worlds, CHUNK):
        drawn = draw(scene, lift, min(CHUNK, worlds - start), rng)
        parts.append(_read(drawn, scene, planned, looks))
    names = Readings.__dataclass_fields__
    return Readings(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _read(drawn: Worlds, scene: Scene, planned: float, looks: np.ndarray) -> Readings:
    difference, ready = differ(drawn, scene.share)
    ours = effect(difference, ready, alpha=SETTINGS.alpha, planned=planned)
    is_ready = np.logical_or.accumulate(ready, axis=1)[:, looks]
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.nan_to_num(difference.estimate[:, looks] / difference.error[:, looks])
        own, own_error = peers.ratio_with_cuped(drawn, looks)
        own_z = own / own_error
    tips = np.cumsum(drawn.tips, axis=1)
    late = np.minimum(looks + scene.lag, tips.shape[1] - 1)
    return Readings(
        z=np.where(is_ready, z, 0),
        error=difference.error[:, looks],
        units=np.broadcast_to(looks + 1.0, z.shape),
        tips=tips[:, late],
        own=own,
        own_z=np.where(is_ready, own_z, 0),
        weight=difference.weight[:, looks],
        promoted=first(ours.low[:, looks] > 0),
        worse=first(ours.high[:, looks] < 0),
        futile=first(ours.is_futile[:, looks] | (ours.progress[:, looks] >= 1)),
    )


def first(reached: np.ndarray) -> np.ndarray:
    """The first look at which it is reached."""
    return np.where(reached.any(axis=1), np.argmax(reached, axis=1), NEVER)


def until(stops: np.ndarray, z: np.ndarray, end: int) -> Ends:
    """Where a rule that says stop has its verdict, if nothing is read after look `end`."""
    first_stop = first(stops)
    at = np.minimum(first_stop, z.shape[1] - 1)
    is_up = z[np.arange(len(z)), at] > 0
    return Ends(
        promoted=np.where(is_up, first_stop, NEVER),
        worse=np.where(is_up, NEVER, first_stop),
        end=np.full(len(z), end),
    )


Rule = Callable[[Readings, int], np.ndarray]


def rules(scene: Scene, looks: int) -> dict[str, tuple[Rule, ...]]:
    """Every peer by name; where it can be tuned, several of it, of which the quickest counts."""
    part_of = [looks * BATCH * part for part in (0.15, 0.3, 0.6)]
    return {
        "GrowthBook sequential, default": (
            lambda s, end: peers.growthbook(s.z, s.units, tuned_at=5_000),
        ),
        "GrowthBook sequential, tuned": tuple(
            lambda s, end, n=n: peers.growthbook(s.z, s.units, tuned_at=n) for n in part_of
        ),
        "mSPRT, tuned": tuple(
            lambda s, end, n=n: peers.msprt(s.z, s.error, spread=scene.lift * n)
            for n in (0.5, 1.0, 2.0)
        ),
        "TensorZero track-and-stop": (lambda s, end: peers.track_and_stop(s.z, s.tips),),
        "group-sequential, 5 looks": (
            lambda s, end: peers.group_sequential(s.z, s.weight / s.weight[:, [end]]),
        ),
        "t test, read all the time": (lambda s, end: peers.naive(s.z),),
        "GrowthBook, own estimate": (
            lambda s, end: peers.growthbook(s.own_z, s.units, tuned_at=part_of[1]),
        ),
    }


def long_enough(rule: Rule, lifted: Readings, power: float) -> int:
    """The first look by which the rule, if it ends there, has promoted as often as ours does."""
    for end in range(4, lifted.z.shape[1]):
        if until(rule(lifted, end), lifted.z, end).is_promoted.mean() >= power:
            return end
    return lifted.z.shape[1] - 1


def figures(
    same: Ends, lifted: Ends, same_seen: Readings, lifted_seen: Readings
) -> dict[str, float]:
    """What is printed and kept of one rule in one scene."""
    false = int(same.is_false.sum())
    worlds = len(same.end)
    low, high = clopper_pearson(false, worlds)
    promoted = np.where(lifted.is_promoted, tips_at(lifted_seen, lifted.stop), np.inf)
    middle = float(np.median(promoted))
    return {
        "false": false / worlds,
        "false_low": low,
        "false_high": high,
        "falsely_promoted": float(same.is_promoted.mean()),
        "power": float(lifted.is_promoted.mean()),
        "tips": float(np.median(tips_at(lifted_seen, lifted.stop))),
        "tips_to_promotion": middle if np.isfinite(middle) else -1.0,
        "tips_same": float(np.median(tips_at(same_seen, same.stop))),
    }


def tips_at(seen: Readings, look: np.ndarray) -> np.ndarray:
    """Tips shown by a look, of each world."""
    at = np.minimum(look, seen.tips.shape[1] - 1)
    return seen.tips[np.arange(len(at)), at]


def compare_rules(scene: Scene, same: Readings, lifted: Readings) -> dict[str, dict[str, float]]:
    """Figures of ours and of every peer."""
    ours = [
        Ends(promoted=each.promoted, worse=each.worse, end=each.futile) for each in (same, lifted)
    ]
    found = {"reactune": figures(ours[0], ours[1], same, lifted)}
    power = found["reactune"]["power"]
    for name, variants in rules(scene, lifted.z.shape[1]).items():
        rows = []
        for rule in variants:
            end = long_enough(rule, lifted, power)
            ends = [until(rule(each, end), _z_of(name, each), end) for each in (same, lifted)]
            rows.append(figures(ends[0], ends[1], same, lifted))
        found[name] = min(rows, key=lambda row: row["tips"])
    return found


def _z_of(name: str, seen: Readings) -> np.ndarray:
    return seen.own_z if name.endswith("own estimate") else seen.z


def false_alarms(scene: Scene, worlds: int, rng: np.random.Generator) -> dict[str, float]:
    """How often the guardrail of quick dismissals and the sample ratio alarm without a cause."""
    hits = {"quick dismissals": 0, "sample ratio": 0}
    for _ in range(worlds):
        one = draw(scene, 0.0, 1, rng)
        arm = one.challenger[0]
        quick = rng.binomial(one.tips[0] - one.positives[0], 0.1) > 0
        harm = harm_log_e_values(quick, arm, scene.share, margin=SETTINGS.harm_margin)
        alarm = -math.log(HARM * PARTS["quick dismissals"] * SETTINGS.alpha)
        hits["quick dismissals"] += bool(harm[-1] >= alarm)
        mismatch = mismatch_log_e_values(arm, scene.share)
        hits["sample ratio"] += bool(mismatch[-1] >= -math.log(SETTINGS.srm_alpha))
    return {name: count / worlds for name, count in hits.items()}


def clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """Exact 95 % interval of a rate."""
    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def show(found: dict[str, dict[str, float]]) -> None:
    """Print one scene's table."""
    ours = found["reactune"]
    head = "false verdicts (95 %)", "power", "tips", "ours/its", "to promotion", "if the same"
    print(f"  {'':<32}{head[0]:>24}{head[1]:>7}{head[2]:>9}{head[3]:>9}{head[4]:>14}{head[5]:>13}")
    for name, row in found.items():
        false = f"{row['false']:.1%} ({row['false_low']:.1%} to {row['false_high']:.1%})"
        to_promotion = f"{row['tips_to_promotion']:,.0f}" if row["tips_to_promotion"] > 0 else "-"
        print(
            f"  {name:<32}{false:>24}{row['power']:>7.0%}{row['tips']:>9,.0f}"
            f"{ours['tips'] / row['tips']:>9.2f}{to_promotion:>14}{row['tips_same']:>13,.0f}"
        )


def main() -> None:
    """Run all scenes, print their tables, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1_000, help="of each sort")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scene", type=int, choices=range(len(SCENES)), help="only this one")
    parser.add_argument(
        "--arms", action="store_true", help="instead: arms of all sizes, see verdict_arms.py"
    )
    parser.add_argument(
        "--cells", type=Path, default=ARMS, help="with --arms: where cells that are done are kept"
    )
    options = parser.parse_args()
    if options.arms:
        figures = verdict_arms.run(options.worlds, options.seed, options.cells)
        named = {"worlds": options.worlds, "seed": options.seed, **figures}
        print(f"kept in {record('verdict-arms', named, packages=('numpy', 'scipy')).name}")
        return
    kept = {"worlds": options.worlds, "seed": options.seed, "alpha": SETTINGS.alpha}
    for number, scene in enumerate(SCENES):
        if options.scene not in (None, number):
            continue
        started = time.perf_counter()
        rng = np.random.default_rng([options.seed, number])
        planned = planned_weight(scene, rng)
        same = simulate(scene, 0.0, options.worlds, planned, rng)
        lifted = simulate(scene, scene.lift, options.worlds, planned, rng)
        found = compare_rules(scene, same, lifted)
        alarms = false_alarms(scene, options.worlds, rng)
        bias = {
            "reactune": float((same.z * same.error)[:, -1].mean()),
            "GrowthBook, own estimate": float(same.own[:, -1].mean()),
        }
        seconds = time.perf_counter() - started
        print(f"{scene.name}: {options.worlds:,} worlds of each sort, {seconds:.0f} s", flush=True)
        show(found)
        for name, rate in alarms.items():
            print(f"  false alarms of {name}: {rate:.1%}")
        for name, points in bias.items():
            print(f"  mean difference of the same, {name}: {100 * points:+.2f} points")
        kept[scene.name] = {"rules": found, "alarms": alarms, "bias": bias}
    print(f"kept in {record('verdict', kept, packages=('numpy', 'scipy')).name}")


if __name__ == "__main__":
    main()
