"""`reactune compare`: the arms of any file of reactions, compared with the canary's statistics.

A comparison whose data cannot be trusted is refused with the reason, never reported as a result.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import exp, inf, sqrt
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from reactune.analysis.tables import (
    Columns,
    UnknownValueError,
    find_name,
    listed,
    read_rows,
)
from reactune.canary.sequential import SRM_PRIOR, Floats, kappa, multiplier, ratio_log_e_value
from reactune.config.sections import LabelConfig
from reactune.errors import CanaryError, DataError

Looks = Literal["once", "many"]
Finding = Literal["better", "worse", "undecided"]

# As in the canary: beyond both of these, arms were not assigned by unit.
MIXED_SHARE, MIXED_UNITS = 0.01, 10


@dataclass(frozen=True)
class Options:
    """How to compare: which reactions are positive, against which arm, and how often it is read.

    `shares` are those the arms were assigned by; empty means that all are alike.
    """

    positive: frozenset[str]
    champion: str
    shares: Mapping[str, float]
    looks: Looks
    alpha: float
    srm_alpha: float
    planned_units: int


@dataclass(frozen=True)
class Arm:
    """The counts of one arm. `variance` is that of `rate`, over randomised units."""

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
        """What the bounds show."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "undecided"


@dataclass(frozen=True)
class RatioCheck:
    """The sample-ratio check: units per arm against the shares they were assigned by.

    `p_value` is that of a chi-square test, or 1 / E of the sequential test.
    """

    counts: Mapping[str, int]
    shares: Mapping[str, float]
    p_value: float
    is_passed: bool


@dataclass(frozen=True)
class Trial:
    """One comparison of a file. Without `contrasts` it is refused, for the reason in `refusal`."""

    name: str
    contrasts: tuple[Contrast, ...]
    refusal: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Group:
    """The running sums (tips, positives) of one comparison while the file is read."""

    totals: dict[str, list[int]] = field(default_factory=dict)
    units: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    assignments: list[tuple[str, str, str]] = field(default_factory=list)


def compare_file(
    file: Path, columns: Columns, options: Options, labels: LabelConfig
) -> list[Trial]:
    """Every comparison of the file, in the order of their names.

    Raises:
        DataError: the file cannot be read, a column is missing, or a value is not valid.
        UnknownValueError: no comparison has the champion's arm, or no row a positive reaction.
        CanaryError: shares were given for other arms.
    """
    groups: dict[str, _Group] = {}
    for row in read_rows(file, columns, positive=options.positive, labels=labels):
        group = groups.setdefault(row.by, _Group())
        _add(group.totals, row.arm, row.tips, row.positives)
        if columns.unit:
            _add(group.units.setdefault(row.unit, {}), row.arm, row.tips, row.positives)
        if columns.time:
            group.assignments.append((row.time, row.unit, row.arm))
    if not groups:
        raise DataError(f"{file}: no rows to compare; check the file")
    known = {arm for group in groups.values() for arm in group.totals}
    options = _as_in_file(file, options, known)
    return [_trial(name, groups[name], columns, options) for name in sorted(groups)]


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """`ARM=SHARE` texts as numbers.

    Raises:
        CanaryError: a text has another form, or a share that is not above 0.
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


def report(trials: Sequence[Trial]) -> list[str]:
    """All comparisons, the notes on them, and how many have each finding."""
    lines = [line for trial in trials for line in lines_of(trial)]
    notes = {note: None for trial in trials for note in trial.notes}
    lines += [f"note: {note}" for note in notes]
    if len(trials) > 1:
        findings = Counter(each.finding for trial in trials for each in trial.contrasts)
        refused = sum(bool(trial.refusal) for trial in trials)
        counts = [f"{findings[name]:,} {name}" for name in ("better", "worse", "undecided")]
        lines.append(f"{len(trials):,} comparisons: {', '.join(counts)}, {refused:,} refused")
    return lines


def lines_of(trial: Trial) -> list[str]:
    """The lines of one comparison: both rates, the difference with its bounds, and the finding."""
    head = f"{trial.name}: " if trial.name else ""
    if trial.refusal:
        return [head + trial.refusal]
    return [head + _line_of(each) for each in trial.contrasts]


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


def clustered(name: str, tips: Floats, positives: Floats) -> Arm:
    """An arm from the sums of its units: the variance of a ratio of sums (delta method).

    Deng, Knoblich and Lu, arXiv:1803.06336; a regression with clustered errors agrees.
    """
    units, shown = len(tips), float(tips.sum())
    if not shown:
        return Arm(name, units, 0, 0, 0.0)
    residual = positives - tips * (positives.sum() / shown)
    correction = units / (units - 1) if units > 1 else 1.0
    variance = float((residual**2).sum()) / shown**2 * correction
    return Arm(name, units, int(shown), int(positives.sum()), variance)


def independent(name: str, tips: int, positives: int) -> Arm:
    """An arm of which only the totals are known: every tip counts as a unit of its own."""
    rate = positives / tips if tips else 0.0
    return Arm(name, tips, tips, positives, rate * (1 - rate) / max(tips - 1, 1))


def contrast(
    champion: Arm, arm: Arm, *, alpha: float, looks: Looks, planned_units: int
) -> Contrast:
    """The difference with bounds that fail with chance alpha, at one reading or at all together.

    `once`: Welch's t interval, for a file that is read once. `many`: a confidence sequence
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
    """Do the arms have as many units as their shares imply?

    `once`: Pearson's chi-square. `many`: the sequential Dirichlet-multinomial test (Lindon and
    Malek, arXiv:2011.03567), which may be repeated whenever the file has grown.

    Raises:
        CanaryError: the shares are not of these arms, or not above 0.
    """
    if counts.keys() != shares.keys() or min(shares.values()) <= 0:
        raise CanaryError(
            f"shares {dict(shares)}: give one above 0 for each of the arms {sorted(counts)}"
        )
    parts = _normalised(shares)
    observed = np.array([counts[name] for name in parts], np.float64)
    expected = np.array(list(parts.values()))
    if looks == "once":
        p_value = _chi_square(observed, expected)
    else:
        p_value = _sequential(observed[None], expected)
    return RatioCheck(dict(counts), parts, p_value, p_value >= alpha)


def check_sequence(arms: Sequence[str], shares: Mapping[str, float], *, alpha: float) -> RatioCheck:
    """The sequential check after each unit, in the order of time; an alarm is not taken back."""
    parts = _normalised(shares)
    names = list(parts)
    index = np.array([names.index(arm) for arm in arms])
    counts = np.cumsum(index[:, None] == np.arange(len(names)), axis=0)
    p_value = _sequential(counts.astype(np.float64), np.array(list(parts.values())))
    last = dict(zip(names, counts[-1].tolist(), strict=True))
    return RatioCheck(last, parts, p_value, p_value >= alpha)


def _add(sums: dict[str, list[int]], arm: str, tips: int, positives: int) -> None:
    total = sums.setdefault(arm, [0, 0])
    total[0], total[1] = total[0] + tips, total[1] + positives


def _as_in_file(file: Path, options: Options, known: Collection[str]) -> Options:
    """The options with the names that the arms have in the file."""
    champion = options.champion and find_name(options.champion, known)
    if champion is None:
        raise UnknownValueError(
            f"{file}: no arm {options.champion!r}; there are {listed(known)}; name one of them"
        )
    shares = {find_name(arm, known) or arm: share for arm, share in options.shares.items()}
    return replace(options, champion=champion, shares=shares)


def _trial(name: str, group: _Group, columns: Columns, options: Options) -> Trial:
    names = sorted(group.totals) if columns.arm else list(group.totals)
    if len(names) < 2:
        return Trial(name, (), f"refused: only the arm {names[0]}; a comparison needs two")
    if options.champion and options.champion not in names:
        return Trial(name, (), f"refused: no arm {options.champion}; there are {listed(names)}")
    arms, mixed = _arms(group, columns, names)
    ratio = _ratio(arms, group, columns, options)
    notes = _notes(columns, mixed)
    if refusal := _refusal(ratio, mixed, len(group.units), options):
        return Trial(name, (), refusal, notes)
    return Trial(name, _contrasts(arms, options), notes=notes)


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


def _contrasts(arms: Mapping[str, Arm], options: Options) -> tuple[Contrast, ...]:
    """Every arm against the champion; together they err with chance alpha (Bonferroni)."""
    champion = arms[options.champion or find_name("champion", arms) or next(iter(arms))]
    others = [arm for arm in arms.values() if arm is not champion]
    return tuple(
        contrast(
            champion,
            arm,
            alpha=options.alpha / len(others),
            looks=options.looks,
            planned_units=options.planned_units,
        )
        for arm in others
    )


def _ratio(
    arms: Mapping[str, Arm], group: _Group, columns: Columns, options: Options
) -> RatioCheck:
    shares = options.shares or dict.fromkeys(arms, 1.0)
    if options.looks == "many" and columns.time:
        assigned = _in_time(group.assignments)
        arms_in_time = [arm for _, arm in assigned]
        if columns.unit:
            first: dict[str, str] = {}
            for unit, arm in assigned:
                first.setdefault(unit, arm)
            arms_in_time = list(first.values())
        return check_sequence(arms_in_time, shares, alpha=options.srm_alpha)
    counts = {name: arm.units for name, arm in arms.items()}
    return check_ratio(counts, shares, alpha=options.srm_alpha, looks=options.looks)


def _in_time(assignments: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Units and arms in the order of time: of numbers if all are, else of texts."""
    times: Sequence[float] | Sequence[str] = [time for time, _, _ in assignments]
    with suppress(ValueError):
        times = [float(time) for time in times]
    order = sorted(range(len(assignments)), key=times.__getitem__)
    return [assignments[number][1:] for number in order]


def _normalised(shares: Mapping[str, float]) -> dict[str, float]:
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items()}


def _chi_square(observed: Floats, shares: Floats) -> float:
    expected = shares * observed.sum()
    if len(observed) < 2 or not observed.sum():
        return 1.0
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return float(chi2.sf(statistic, len(observed) - 1))


def _sequential(counts: Floats, shares: Floats) -> float:
    """An anytime-valid p-value: 1 over the largest e-value so far."""
    log_e = ratio_log_e_value(counts, shares, SRM_PRIOR * shares)
    return exp(-max(float(log_e.max()), 0.0))


def _refusal(ratio: RatioCheck, mixed: int, units: int, options: Options) -> str:
    if not ratio.is_passed:
        counts = " + ".join(f"{count:,}" for count in ratio.counts.values())
        shares = " : ".join(f"{share:.3g}" for share in ratio.shares.values())
        return (
            f"refused: {counts} do not fit the shares {shares} (p = {ratio.p_value:.1e}, below "
            f"{options.srm_alpha:g}); check for lost exposures"
        )
    if mixed >= max(MIXED_UNITS, MIXED_SHARE * units):
        return f"refused: {mixed:,} of {units:,} units met several arms; check the assignment"
    return ""


def _notes(columns: Columns, mixed: int) -> tuple[str, ...]:
    if not columns.unit:
        return (
            "no --unit column: every tip counts as a user of its own. Users with several tips make "
            "the bounds too narrow, and the sample ratio counts tips",
        )
    return (f"{mixed:,} units met several arms and are left out",) if mixed else ()


def _line_of(contrast: Contrast) -> str:
    champion, arm = contrast.champion, contrast.arm
    findings = {
        "better": f"{arm.name} is better",
        "worse": f"{arm.name} is worse",
        "undecided": "undecided",
    }
    return (
        f"{champion.name} {champion.rate:.2%} of {champion.tips:,}, {arm.name} {arm.rate:.2%} of "
        f"{arm.tips:,}: {100 * contrast.estimate:+.2f} points ({100 * contrast.low:+.2f} to "
        f"{100 * contrast.high:+.2f}): {findings[contrast.finding]}"
    )
