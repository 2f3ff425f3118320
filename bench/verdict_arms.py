"""Arms that are the same, from five tips to thousands: how often is a difference stated?

`compare` on totals and on units of several tips, read once and again and again; then the bounds
and guardrails of `review` on the same arms. A cell fails where false verdicts are more frequent
than its chance allows, at p < 0.001 (exact binomial).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.stats import binomtest

from reactune.analysis.compare import Arm, Looks, clustered, contrast, independent
from reactune.canary.guardrails import PARTS
from reactune.canary.sequential import (
    HARM,
    PROMOTION,
    WORSE,
    adjusted_differences,
    effect,
    excess_log_e_values,
    harm_log_e_values,
    shortfall_log_e_values,
)
from reactune.config.sections import CanaryConfig

TIPS = (5, 20, 100, 500, 2_000, 5_000)  # of the smaller arm
RATES = (0.005, 0.02, 0.1, 0.3, 0.6)
SHARES = (0.01, 0.1, 0.5)
PER_UNIT = (1, 5, 50)
CORRELATION = 2.0  # units' rates are Beta(2 r, 2 (1 - r))
READINGS = 8
SETTINGS = CanaryConfig()
ALPHA = SETTINGS.alpha
PLANNED = 5_000
LEAST_P = 0.001


@dataclass(frozen=True)
class Cell:
    """One kind of arms: the smaller one's tips, its share, the rate, and the tips of a unit."""

    rule: str
    tips: int
    share: float
    rate: float
    per_unit: int


@dataclass(frozen=True)
class Result:
    """How many worlds of a cell had a verdict, and how many chance allows."""

    cell: Cell
    verdicts: int
    worlds: int
    chance: float

    @property
    def fails(self) -> bool:
        """Whether there are more than chance explains."""
        if self.verdicts <= self.chance * self.worlds:
            return False
        test = binomtest(self.verdicts, self.worlds, self.chance, alternative="greater")
        return bool(test.pvalue < LEAST_P)


def compare_cells(worlds: int, rng: np.random.Generator) -> Iterator[Result]:
    """`compare` on arms of one rate."""
    for tips, share, rate, per_unit in product(TIPS, SHARES, RATES, PER_UNIT):
        if per_unit > 1 and (tips < per_unit or share < 0.1):
            continue  # as few units as in other cells, or millions of them
        for looks in ("once", "many"):
            cell = Cell(f"compare --looks {looks}", tips, share, rate, per_unit)
            draw = _totals if per_unit == 1 else _units
            verdicts = sum(draw(cell, looks, rate, rng) for _ in range(worlds))
            yield Result(cell, verdicts, worlds, ALPHA)


def power(worlds: int, rng: np.random.Generator) -> dict[str, float]:
    """How often 500 tips a side at 20 % and 30 % are decided."""
    cell = Cell("power", 500, 0.5, 0.2, 1)
    return {
        looks: sum(_totals(cell, looks, 0.3, rng) for _ in range(worlds)) / worlds
        for looks in ("once", "many")
    }


def review_cells(worlds: int, rng: np.random.Generator) -> Iterator[Result]:
    """The bounds of `review`, and its guardrails, on arms of one rate; read after every unit."""
    rules: dict[str, tuple[Callable[..., np.ndarray], float]] = {
        "review: bounds": (_bounds, (PROMOTION + WORSE) * ALPHA),
        "review: kinds": (_kinds, HARM * PARTS["kinds"] * ALPHA),
        "review: repeated tips": (_repeats, HARM * PARTS["repeated tips"] * ALPHA),
        "review: quick dismissals": (_dismissals, HARM * PARTS["quick dismissals"] * ALPHA),
        "review: fallbacks": (_fallbacks, HARM * PARTS["fallbacks"] * ALPHA),
    }
    for tips, share, rate in product(TIPS, SHARES, RATES):
        if tips / share > 50_000:
            continue
        for name, (alarms, chance) in rules.items():
            found, units = 0, round(tips / share)
            chunk = max(1, 2_000_000 // units)
            for start in range(0, worlds, chunk):
                size = min(chunk, worlds - start), units
                found += int(alarms(rng.random(size) < share, share, rate, chance, rng).sum())
            yield Result(Cell(name, tips, share, rate, 1), found, worlds, chance)


def run(worlds: int, seed: int) -> dict[str, object]:
    """All cells; those that fail are printed, and the largest part of each rule."""
    rng = np.random.default_rng(seed)
    results = [*compare_cells(worlds, rng), *review_cells(worlds, rng)]
    for rule in dict.fromkeys(each.cell.rule for each in results):
        own = [each for each in results if each.cell.rule == rule]
        most = max(own, key=lambda each: each.verdicts)
        failed = [each for each in own if each.fails]
        print(
            f"{rule}: {len(own)} cells of {worlds:,} worlds, at most {most.verdicts / worlds:.2%} "
            f"false (chance {most.chance:.2%}), {len(failed)} cells above it", flush=True,
        )  # fmt: skip
        for each in failed:
            print(f"  {each.verdicts / worlds:.2%} in {each.cell}", flush=True)
    decided = power(worlds, rng)
    for looks, part in decided.items():
        print(f"500 tips a side, 20 % and 30 %, --looks {looks}: decided in {part:.1%}")
    cells = [{**asdict(each.cell), "verdicts": each.verdicts} for each in results]
    return {"cells": cells, "power": decided, "failed": sum(each.fails for each in results)}


@lru_cache(2**16)
def _decides(tips: int, positives: int, others: int, other_positives: int, looks: Looks) -> bool:
    arms = independent("champion", others, other_positives), independent("new", tips, positives)
    return _is_decided(*arms, looks)


def _is_decided(champion: Arm, arm: Arm, looks: Looks) -> bool:
    found = contrast(champion, arm, alpha=ALPHA, looks=looks, planned_units=PLANNED)
    return found.finding != "undecided"


def _sizes(cell: Cell, looks: Looks) -> list[tuple[int, int]]:
    """Units of the smaller and of the other arm at each reading."""
    units = cell.tips // cell.per_unit
    others = round(units * (1 - cell.share) / cell.share)
    parts = np.geomspace(0.05, 1, READINGS) if looks == "many" else np.ones(1)
    return [(max(1, int(units * part)), max(1, int(others * part))) for part in parts]


def _totals(cell: Cell, looks: Looks, rate: float, rng: np.random.Generator) -> bool:
    """Whether one world of independent tips is decided at any reading."""
    done = positives = others_done = other_positives = 0
    for tips, others in _sizes(cell, looks):
        positives += int(rng.binomial(tips - done, rate))
        other_positives += int(rng.binomial(others - others_done, cell.rate))
        done, others_done = tips, others
        if _decides(tips, positives, others, other_positives, looks):
            return True
    return False


def _units(cell: Cell, looks: Looks, rate: float, rng: np.random.Generator) -> bool:
    """Whether one world of units with 1 to twice as many tips is decided at any reading."""
    sizes = _sizes(cell, looks)
    drawn = []
    for units in sizes[-1]:
        tips = rng.integers(1, 2 * cell.per_unit, units)
        rates = rng.beta(CORRELATION * rate, CORRELATION * (1 - rate), units)
        drawn.append((tips.astype(np.float64), rng.binomial(tips, rates).astype(np.float64)))
    for counts in sizes:
        arm, champion = (
            clustered("arm", tips[:count], positives[:count])
            for count, (tips, positives) in zip(counts, drawn, strict=True)
        )
        if _is_decided(champion, arm, looks):
            return True
    return False


def _difference(arm: np.ndarray, share: float, rate: float, rng: np.random.Generator):
    tips, nothing = np.ones(arm.shape, np.int64), np.zeros(arm.shape, np.int64)
    return adjusted_differences(
        tips, rng.binomial(1, rate, arm.shape), arm, np.full(arm.shape, share),
        earlier_tips=nothing, earlier_positives=nothing, settings=SETTINGS,
    )  # fmt: skip


def _bounds(arm, share, rate, chance, rng) -> np.ndarray:
    difference, ready = _difference(arm, share, rate, rng)
    found = effect(difference, ready, alpha=ALPHA, planned=PLANNED * share * (1 - share))
    return (found.low[:, -1] > 0) | (found.high[:, -1] < 0)


def _short(arm, share, rate, margin, chance, rng) -> np.ndarray:
    # Without the margin: with it, equal arms would be far from an alarm.
    difference, ready = _difference(arm, share, rate, rng)
    planned = PLANNED * share * (1 - share)
    log_e = shortfall_log_e_values(difference, ready, alpha=ALPHA, planned=planned, margin=margin)
    return log_e[:, -1] >= -np.log(chance)


def _kinds(arm, share, rate, chance, rng) -> np.ndarray:
    return _short(arm, share, rate, 0.0, chance, rng)


def _repeats(arm, share, rate, chance, rng) -> np.ndarray:
    return _short(arm, share, 1 - rate, 0.0, chance, rng)


def _dismissals(arm, share, rate, chance, rng) -> np.ndarray:
    shares, events = np.full(arm.shape[1], share), rng.random(arm.shape) < rate
    log_e = [
        harm_log_e_values(event, one, shares, margin=0.0)[-1]
        for event, one in zip(events, arm, strict=True)
    ]
    return np.array(log_e) >= -np.log(chance)


def _fallbacks(arm, share, rate, chance, rng) -> np.ndarray:
    events = rng.random(arm.shape) < rate
    log_e = [
        excess_log_e_values(event, one, limit=rate)[-1]
        for event, one in zip(events, arm, strict=True)
    ]
    return np.array(log_e) >= -np.log(chance)
