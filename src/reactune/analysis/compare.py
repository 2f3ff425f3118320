"""`reactune compare`: reactions under several arms, compared as the canary compares.

What the file says is read by `arm_files.py`; what the sums say is for `canary/arms.py`.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import exp, inf, log, sqrt
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from reactune.analysis.tables import Columns, read_rows
from reactune.canary.sequential import SRM_PRIOR, Floats, kappa, multiplier, ratio_evidence
from reactune.config.sections import LabelConfig
from reactune.errors import CanaryError, DataError

Looks = Literal["once", "many"]
Finding = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Arm:
    """What people did under one arm. `variance` is that of `rate`, over units that are drawn."""

    name: str
    units: int
    tips: int
    positives: int
    variance: float

    @property
    def rate(self) -> float:
        """Positives per tip; 0 without tips."""
        return self.positives / self.tips if self.tips else 0.0


@dataclass(frozen=True)
class Contrast:
    """One arm against the champion: the difference in positives per tip, and its bounds."""

    champion: Arm
    arm: Arm
    estimate: float
    error: float
    low: float
    high: float

    @property
    def finding(self) -> Finding:
        """What the bounds allow to say."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


@dataclass(frozen=True)
class RatioCheck:
    """Units per arm against the shares they were drawn by.

    `surprise` is the chance of so uneven arms: a chi-square's p, or 1 / E of the sequential test.
    """

    counts: Mapping[str, int]
    shares: Mapping[str, float]
    surprise: float
    is_passed: bool


def clustered(name: str, tips: Floats, positives: Floats) -> Arm:
    """An arm from the sums of its units: the variance of a ratio of sums (delta method).

    Deng, Knoblich and Lu, arXiv:1803.06336; a regression with clustered errors gives the same.
    """
    units, shown = len(tips), float(tips.sum())
    if not shown:
        return Arm(name, units, 0, 0, 0.0)
    residual = positives - tips * (positives.sum() / shown)
    correction = units / (units - 1) if units > 1 else 1.0
    variance = float((residual**2).sum()) / shown**2 * correction
    return Arm(name, units, int(shown), int(positives.sum()), variance)


def independent(name: str, tips: int, positives: int) -> Arm:
    """An arm of which only the totals are known: every tip is taken for a draw of its own."""
    rate = positives / tips if tips else 0.0
    return Arm(name, tips, tips, positives, rate * (1 - rate) / max(tips - 1, 1))


def contrast(
    champion: Arm, arm: Arm, *, alpha: float, looks: Looks, planned_units: int
) -> Contrast:
    """The difference with bounds that fail with chance alpha, at this look or at any.

    `once`: Welch's t interval, for a file that is looked at once. `many`: a confidence sequence
    (Waudby-Smith et al., arXiv:2103.06476), tightest at `planned_units` of both arms.
    """
    estimate, error = arm.rate - champion.rate, sqrt(arm.variance + champion.variance)
    if not error:
        return Contrast(champion, arm, estimate, error, -1.0, 1.0)
    if looks == "once":
        parts = [(each.variance, max(each.units - 1, 1)) for each in (arm, champion)]
        freedom = error**4 / sum(variance**2 / units for variance, units in parts)
        width = float(student.ppf(1 - alpha / 2, freedom))
    else:
        information = (arm.units + champion.units) / planned_units
        width = float(multiplier(kappa(alpha) * information, alpha))
    low, high = estimate - width * error, estimate + width * error
    return Contrast(champion, arm, estimate, error, low, high)


def check_ratio(
    counts: Mapping[str, int], shares: Mapping[str, float], *, alpha: float, looks: Looks
) -> RatioCheck:
    """Do the arms have as many units as their shares let expect?

    `once`: Pearson's chi-square. `many`: the sequential Dirichlet-multinomial test (Lindon and
    Malek, arXiv:2011.03567), which may be read whenever the file has grown.

    Raises:
        CanaryError: the shares are not of these arms, or not above 0.
    """
    if counts.keys() != shares.keys() or min(shares.values()) <= 0:
        raise CanaryError(
            f"shares {dict(shares)}: give one above 0 for each of the arms {sorted(counts)}"
        )
    whole = sum(shares.values())
    parts = {name: share / whole for name, share in shares.items()}
    seen = np.array([counts[name] for name in parts], np.float64)
    wanted = np.array(list(parts.values()))
    surprise = _chi_square(seen, wanted) if looks == "once" else _sequential(seen[None], wanted)
    return RatioCheck(dict(counts), parts, surprise, surprise >= alpha)


def check_course(course: Sequence[str], shares: Mapping[str, float], *, alpha: float) -> RatioCheck:
    """The sequential check after each unit, in the order of time; what was shown stays shown."""
    names = list(shares)
    whole = sum(shares.values())
    index = np.array([names.index(name) for name in course])
    counts = np.cumsum(index[:, None] == np.arange(len(names)), axis=0)
    wanted = np.array([shares[name] / whole for name in names])
    surprise = _sequential(counts.astype(np.float64), wanted)
    last = dict(zip(names, counts[-1].tolist(), strict=True))
    return RatioCheck(last, dict(zip(names, wanted, strict=True)), surprise, surprise >= alpha)


def _chi_square(seen: Floats, wanted: Floats) -> float:
    expected = wanted * seen.sum()
    if len(seen) < 2 or not seen.sum():
        return 1.0
    statistic = float(((seen - expected) ** 2 / expected).sum())
    return float(chi2.sf(statistic, len(seen) - 1))


def _sequential(counts: Floats, wanted: Floats) -> float:
    evidence = ratio_evidence(counts, wanted, SRM_PRIOR * wanted)
    return exp(-max(float(evidence.max()), log(1.0)))


# As in the canary: units of several arms beyond both of these are no draw.
MOST_MIXED_SHARE, MOST_MIXED_UNITS = 0.01, 10
MOST_NAMED = 5


@dataclass(frozen=True)
class Asked:
    """How to compare: what counts as positive, against which arm, and how often it is looked at.

    `shares` are those the arms were drawn by; empty means that all are alike.
    """

    positive: frozenset[str]
    champion: str
    shares: Mapping[str, float]
    looks: Looks
    alpha: float
    srm_alpha: float
    planned_units: int


@dataclass(frozen=True)
class Trial:
    """One comparison of a file. Without `contrasts` it is refused, and `refusal` says why."""

    name: str
    contrasts: tuple[Contrast, ...]
    refusal: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Group:
    """What is summed of one comparison while the file is read."""

    totals: dict[str, list[int]] = field(default_factory=dict)
    units: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    course: list[tuple[str, str, str]] = field(default_factory=list)


def compare_file(file: Path, columns: Columns, asked: Asked, labels: LabelConfig) -> list[Trial]:
    """Every comparison of the file, in the order of their names.

    Raises:
        DataError: the file cannot be read, a column is not there, a value is not what it must
            be, or no comparison has the champion's arm.
        CanaryError: shares were given for other arms.
    """
    groups: dict[str, _Group] = {}
    for row in read_rows(file, columns, positive=asked.positive, labels=labels):
        group = groups.setdefault(row.by, _Group())
        total = group.totals.setdefault(row.arm, [0, 0])
        total[0], total[1] = total[0] + row.tips, total[1] + row.positives
        if columns.unit:
            sums = group.units.setdefault(row.unit, {}).setdefault(row.arm, [0, 0])
            sums[0], sums[1] = sums[0] + row.tips, sums[1] + row.positives
        if columns.time:
            group.course.append((row.time, row.unit, row.arm))
    if not groups:
        raise DataError(f"{file}: no rows to compare")
    known = {arm for group in groups.values() for arm in group.totals}
    if asked.champion and asked.champion not in known:
        raise DataError(f"{file}: no arm {asked.champion!r}; there are {_some_of(known)}")
    return [_trial(name, groups[name], columns, asked) for name in sorted(groups)]


def _trial(name: str, group: _Group, columns: Columns, asked: Asked) -> Trial:
    names = list(group.totals) if not columns.arm else sorted(group.totals)
    if len(names) < 2:
        return Trial(name, (), f"refused: only the arm {names[0]}; a comparison needs two")
    if asked.champion and asked.champion not in names:
        return Trial(name, (), f"refused: no arm {asked.champion}; there are {_some_of(names)}")
    arms, mixed = _arms(group, columns, names)
    ratio = _ratio(arms, group, asked.shares or dict.fromkeys(arms, 1.0), columns, asked)
    notes = _notes(columns, mixed)
    if refusal := _refusal(ratio, mixed, len(group.units), asked):
        return Trial(name, (), refusal, notes)
    return Trial(name, _contrasts(arms, asked), notes=notes)


def _contrasts(arms: Mapping[str, Arm], asked: Asked) -> tuple[Contrast, ...]:
    """Every arm against the champion; together they err with chance alpha (Bonferroni)."""
    champion = arms[asked.champion or ("champion" if "champion" in arms else next(iter(arms)))]
    others = [arm for arm in arms.values() if arm is not champion]
    return tuple(
        contrast(
            champion,
            arm,
            alpha=asked.alpha / len(others),
            looks=asked.looks,
            planned_units=asked.planned_units,
        )
        for arm in others
    )


def _arms(group: _Group, columns: Columns, names: Sequence[str]) -> tuple[dict[str, Arm], int]:
    """The arms by name, and how many units met several of them and are left out."""
    if not columns.unit:
        return {name: independent(name, *group.totals[name]) for name in names}, 0
    mixed = sum(len(sums) > 1 for sums in group.units.values())
    arms = {}
    for name in names:
        own = [sums[name] for sums in group.units.values() if sums.keys() == {name}]
        table = np.array(own, np.float64).reshape(-1, 2)
        arms[name] = clustered(name, table[:, 0], table[:, 1])
    return arms, mixed


def _ratio(
    arms: Mapping[str, Arm],
    group: _Group,
    shares: Mapping[str, float],
    columns: Columns,
    asked: Asked,
) -> RatioCheck:
    if asked.looks == "many" and columns.time:
        seen: set[str] = set()
        course = []
        for unit, arm in _in_time(group.course):
            if not columns.unit or unit not in seen:
                seen.add(unit)
                course.append(arm)
        return check_course(course, shares, alpha=asked.srm_alpha)
    counts = {name: arm.units for name, arm in arms.items()}
    return check_ratio(counts, shares, alpha=asked.srm_alpha, looks=asked.looks)


def _in_time(course: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Units and arms in the order of time: of numbers where all are, else of texts."""
    times: Sequence[float] | Sequence[str] = [time for time, _, _ in course]
    with suppress(ValueError):
        times = [float(time) for time in times]
    order = sorted(range(len(course)), key=times.__getitem__)
    return [course[number][1:] for number in order]


def _refusal(ratio: RatioCheck, mixed: int, units: int, asked: Asked) -> str:
    if not ratio.is_passed:
        counts = " + ".join(f"{count:,}" for count in ratio.counts.values())
        shares = " : ".join(f"{share:.3g}" for share in ratio.shares.values())
        return (
            f"refused: {counts} do not fit the shares {shares} (p = {ratio.surprise:.1e}, below "
            f"{asked.srm_alpha:g}); look for exposures that get lost"
        )
    if mixed >= max(MOST_MIXED_UNITS, MOST_MIXED_SHARE * units):
        return f"refused: {mixed:,} of {units:,} units met several arms; look at how they are drawn"
    return ""


def _notes(columns: Columns, mixed: int) -> tuple[str, ...]:
    notes = []
    if not columns.unit:
        notes.append(
            "no column says whose tips these are: each counts as a person of its own. Whoever "
            "reacted more than once makes the bounds too narrow, and the sample ratio counts tips"
        )
    elif mixed:
        notes.append(f"{mixed:,} units met several arms and are left out")
    return tuple(notes)


def _some_of(names: Collection[str]) -> str:
    few = sorted(names)[:MOST_NAMED]
    return ", ".join(few) + (
        f" and {len(names) - len(few):,} more" if len(names) > len(few) else ""
    )


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """`ARM=SHARE` texts as numbers.

    Raises:
        CanaryError: one is written otherwise.
    """
    shares = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            shares[name] = float(number)
        except ValueError:
            shares[name] = 0.0
        if not name or not 0 < shares[name] < inf:
            raise CanaryError(f"--share {text!r}: write ARM=SHARE, a number above 0")
    return shares


def report(found: Sequence[Trial]) -> list[str]:
    """All comparisons, what could not be seen, and how many came out how."""
    lines = [line for trial in found for line in lines_of(trial)]
    notes = {note: None for trial in found for note in trial.notes}
    lines += [f"note: {note}" for note in notes]
    if len(found) > 1:
        findings = Counter(each.finding for trial in found for each in trial.contrasts)
        refused = sum(bool(trial.refusal) for trial in found)
        told = [f"{findings[name]:,} {name}" for name in ("better", "worse", "undecided")]
        lines.append(f"{len(found):,} comparisons: {', '.join(told)}, {refused:,} refused")
    return lines


def lines_of(trial: Trial) -> list[str]:
    """What a person reads of one comparison."""
    head = f"{trial.name}: " if trial.name else ""
    if trial.refusal:
        return [head + trial.refusal]
    return [head + line_of(each) for each in trial.contrasts]


def line_of(found: Contrast) -> str:
    """Both rates, the difference with its bounds, and what may be said."""
    champion, arm = found.champion, found.arm
    said = {
        "better": f"{arm.name} is better",
        "worse": f"{arm.name} is worse",
        "undecided": "undecided",
    }
    return (
        f"{champion.name} {champion.rate:.2%} of {champion.tips:,}, {arm.name} {arm.rate:.2%} of "
        f"{arm.tips:,}: {100 * found.estimate:+.2f} points ({100 * found.low:+.2f} to "
        f"{100 * found.high:+.2f}): {said[found.finding]}"
    )


def intervals_of(trials: Sequence[Trial]) -> list[tuple[str, float, float, float]]:
    """Rows for a picture: name, difference and bounds in points, of what was not refused."""
    return [
        (
            f"{trial.name} {each.arm.name}".strip(),
            100 * each.estimate,
            100 * each.low,
            100 * each.high,
        )
        for trial in trials
        for each in trial.contrasts
    ]
