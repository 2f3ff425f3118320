"""Arms that are the same, from five tips to thousands: how often is a difference stated?

`compare` on totals and on units of several tips, read once and again and again; then the bounds
and guardrails of `review` on the same arms. A cell fails where false verdicts are more frequent
than its chance allows, at p < 0.001 (exact binomial).

All cells at 4,000 worlds take some three hours of one core and half a gigabyte. Every cell has
its own random numbers and is kept when it is done, so a run that was ended goes on from there;
cells of other code are simulated again.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from reactune.analysis import compare
from reactune.analysis.compare import Arm, Looks, clustered, contrast, independent
from reactune.canary import guardrails, sequential
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
LOOKS: tuple[Looks, ...] = ("once", "many")
MOST_UNITS = 50_000  # of both arms, in a world of `review`
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


def compare_cells() -> Iterator[Cell]:
    """`compare` on arms of one rate."""
    for tips, share, rate, per_unit in product(TIPS, SHARES, RATES, PER_UNIT):
        if per_unit > 1 and (tips < per_unit or share < 0.1):
            continue  # as few units as in other cells, or millions of them
        for looks in LOOKS:
            yield Cell(f"compare --looks {looks}", tips, share, rate, per_unit)


def review_cells() -> Iterator[Cell]:
    """The bounds of `review`, and its guardrails, on arms of one rate, small ones first."""
    for tips, share, rate in sorted(product(TIPS, SHARES, RATES), key=lambda c: c[0] / c[1]):
        if tips / share <= MOST_UNITS:
            for rule in GUARDS:
                yield Cell(rule, tips, share, rate, 1)


def simulated(cell: Cell, worlds: int, seed: int) -> Result:
    """One cell; its random numbers are those of the seed and the cell."""
    digest = sha256(repr(cell).encode()).digest()[:8]
    rng = np.random.default_rng([seed, int.from_bytes(digest, "big")])
    if cell.rule in GUARDS:
        alarms, chance = GUARDS[cell.rule]
        found, units = 0, round(cell.tips / cell.share)
        chunk = max(1, 50_000 // units)
        for start in range(0, worlds, chunk):
            size = min(chunk, worlds - start), units
            arm = rng.random(size) < cell.share
            found += int(alarms(arm, cell.share, cell.rate, chance, rng).sum())
        return Result(cell, found, worlds, chance)
    (looks,) = (each for each in LOOKS if cell.rule.endswith(each))
    draw = _totals if cell.per_unit == 1 else _units
    verdicts = sum(draw(cell, looks, cell.rate, rng, PLANNED) for _ in range(worlds))
    return Result(cell, verdicts, worlds, ALPHA)


def power(worlds: int, rng: np.random.Generator) -> dict[str, float]:
    """How often 500 tips a side at 20 % and 30 % are decided, by how they are read."""
    cell = Cell("power", 500, 0.5, 0.2, 1)
    ways: tuple[tuple[str, Looks, int], ...] = (
        ("once", "once", PLANNED),
        ("many, 1,000 planned", "many", 1_000),
        ("many, 5,000 planned", "many", PLANNED),
    )
    return {
        name: sum(_totals(cell, looks, 0.3, rng, planned) for _ in range(worlds)) / worlds
        for name, looks, planned in ways
    }


def run(worlds: int, seed: int, kept: Path) -> dict[str, object]:
    """All cells, of which those in `kept` are done; those that fail are printed by rule."""
    results = list(_each(worlds, seed, kept))
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
    decided = power(worlds, np.random.default_rng(seed))
    for looks, part in decided.items():
        print(f"500 tips a side, 20 % and 30 %, --looks {looks}: decided in {part:.1%}")
    cells = [{**asdict(each.cell), "verdicts": each.verdicts} for each in results]
    return {"cells": cells, "power": decided, "failed": sum(each.fails for each in results)}


def _each(worlds: int, seed: int, kept: Path) -> Iterator[Result]:
    """Every cell, from the file if it is there, else simulated and appended to the file."""
    same = {"worlds": worlds, "seed": seed, "code": _code()}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.touch()
    done = {}
    for line in kept.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["same"] == same:
            done[Cell(**row["cell"])] = row["verdicts"], row["chance"]
    cells = [*compare_cells(), *review_cells()]
    for number, cell in enumerate(cells, 1):
        if cell in done:
            verdicts, chance = done[cell]
            yield Result(cell, verdicts, worlds, chance)
            continue
        result = simulated(cell, worlds, seed)
        row = {"same": same, **asdict(result)}
        row.pop("worlds")
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        mark = ": ABOVE ITS CHANCE" if result.fails else ""
        print(f"{number} of {len(cells)}: {result.verdicts} in {cell}{mark}", flush=True)
        yield result


def _code() -> str:
    """A digest of the code that decides and simulates."""
    files = (compare.__file__, guardrails.__file__, sequential.__file__, __file__)
    return sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:16]


@lru_cache(2**16)
def _decides(
    tips: int, positives: int, others: int, other_positives: int, looks: Looks, planned: int
) -> bool:
    arms = independent("champion", others, other_positives), independent("new", tips, positives)
    return _is_decided(*arms, looks, planned)


def _is_decided(champion: Arm, arm: Arm, looks: Looks, planned: int) -> bool:
    found = contrast(champion, arm, alpha=ALPHA, looks=looks, planned_units=planned)
    return found.finding != "undecided"


def _sizes(cell: Cell, looks: Looks) -> list[tuple[int, int]]:
    """Units of the smaller and of the other arm at each reading."""
    units = cell.tips // cell.per_unit
    others = round(units * (1 - cell.share) / cell.share)
    parts = np.geomspace(0.05, 1, READINGS) if looks == "many" else np.ones(1)
    return [(max(1, int(units * part)), max(1, int(others * part))) for part in parts]


def _totals(cell: Cell, looks: Looks, rate: float, rng: np.random.Generator, planned: int) -> bool:
    """Whether one world of independent tips is decided at any reading."""
    done = positives = others_done = other_positives = 0
    for tips, others in _sizes(cell, looks):
        positives += int(rng.binomial(tips - done, rate))
        other_positives += int(rng.binomial(others - others_done, cell.rate))
        done, others_done = tips, others
        if _decides(tips, positives, others, other_positives, looks, planned):
            return True
    return False


def _units(cell: Cell, looks: Looks, rate: float, rng: np.random.Generator, planned: int) -> bool:
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
        if _is_decided(champion, arm, looks, planned):
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


Alarms = Callable[[np.ndarray, float, float, float, np.random.Generator], np.ndarray]
GUARDS: dict[str, tuple[Alarms, float]] = {
    "review: bounds": (_bounds, (PROMOTION + WORSE) * ALPHA),
    "review: kinds": (_kinds, HARM * PARTS["kinds"] * ALPHA),
    "review: repeated tips": (_repeats, HARM * PARTS["repeated tips"] * ALPHA),
    "review: quick dismissals": (_dismissals, HARM * PARTS["quick dismissals"] * ALPHA),
    "review: fallbacks": (_fallbacks, HARM * PARTS["fallbacks"] * ALPHA),
}
