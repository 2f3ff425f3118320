"""`reactune compare`: the arms of any file of reactions, compared with the canary's statistics.

A comparison whose data cannot be trusted is refused with the reason, never reported as a result.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import ceil, exp, inf, isfinite, log, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy
from scipy.stats import beta, chi2, hypergeom, norm
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

# What a standard error needs in each arm: so many units with a positive and with none of them
# positive; and with several tips a unit, so many units (as if they were of one size).
MIN_EACH, MIN_UNITS = 10, 30
MANY_UNITS = 400  # with a positive, and with none, in either arm: skewed units do no harm
# As in the canary: beyond both of these, arms were not assigned by unit.
MIXED_SHARE, MIXED_UNITS = 0.01, 10
# Of many readings: the part of alpha for those up to the plan, and where the rest is tightest.
PLANNED_PART, EARLY = 0.3, 0.2


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
    """The counts of one arm. `variance` is that of `rate`, over randomised units.

    `alike` is Kish's number of units of one size that would say as much. `with_positive` and
    `with_negative` count the units that have at least one. `each` are the tips and positives of
    units, a row a unit, where they are known.
    """

    name: str
    units: int
    tips: int
    positives: int
    variance: float
    alike: float
    with_positive: int
    with_negative: int
    each: Floats | None = field(default=None, compare=False, repr=False)

    @property
    def rate(self) -> float:
        """Positives per tip; 0 without tips."""
        return self.positives / self.tips if self.tips else 0.0

    @property
    def has_enough(self) -> bool:
        """Whether it has enough units of either sort for its rate to be near to normal."""
        return min(self.with_positive, self.with_negative) >= MIN_EACH

    @property
    def is_clustered(self) -> bool:
        """Whether a unit has several tips, so that its tips are no independent draws."""
        return self.units != self.tips


@dataclass(frozen=True)
class Contrast:
    """One arm against the champion: the difference in positives per tip, and its bounds.

    `flaw` says what the data lack, where there are no bounds.
    """

    champion: Arm
    arm: Arm
    estimate: float
    error: float
    low: float
    high: float
    flaw: str = ""

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


def facts_of(trial: Trial) -> dict[str, Any]:
    """One comparison as plain values, differences in positives per tip; no units one by one."""
    return {
        "name": trial.name,
        "refusal": trial.refusal,
        "notes": trial.notes,
        "contrasts": [
            {
                "champion": _arm_facts(each.champion),
                "arm": _arm_facts(each.arm),
                "difference": each.estimate,
                "error": each.error,
                "low": each.low,
                "high": each.high,
                "finding": each.finding,
                "flaw": each.flaw,
            }
            for each in trial.contrasts
        ],
    }


def _arm_facts(arm: Arm) -> dict[str, Any]:
    facts = asdict(replace(arm, each=None))
    del facts["each"]
    return {**facts, "rate": arm.rate}


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
    shown = float(tips.sum())
    if not shown:
        return Arm(name, len(tips), 0, 0, 0.0, 0.0, 0, 0)
    residual = positives - tips * (positives.sum() / shown)
    alike = shown**2 / float((tips**2).sum())
    correction = alike / (alike - 1) if alike > 1 else 1.0
    return Arm(
        name,
        units=len(tips),
        tips=int(shown),
        positives=int(positives.sum()),
        variance=float((residual**2).sum()) / shown**2 * correction,
        alike=alike,
        with_positive=int((positives > 0).sum()),
        with_negative=int((positives < tips).sum()),
        each=np.stack([tips, positives], axis=1),
    )


def independent(name: str, tips: int, positives: int) -> Arm:
    """An arm of which only the totals are known: every tip counts as a unit of its own."""
    rate = positives / tips if tips else 0.0
    variance = rate * (1 - rate) / max(tips - 1, 1)
    return Arm(name, tips, tips, positives, variance, tips, positives, tips - positives)


def contrast(
    champion: Arm, arm: Arm, *, alpha: float, looks: Looks, planned_units: int
) -> Contrast:
    """The difference with bounds that fail with chance alpha, at one reading or at all together.

    `once`: Welch's t interval, for a file that is read once. `many`: a confidence sequence
    (`many_multiplier`), tightest at `planned_units` of both arms. At one
    reading bounds leave 0 out only where an exact test does, too (`_exact_p`). Where an arm
    is too small or too extreme for a standard error, the difference between the exact bounds of
    both rates; where it has too few units of several tips, no bounds but those of any difference.
    """
    arms = champion, arm
    is_clustered = champion.is_clustered or arm.is_clustered
    variances = _variance(champion, arm), _variance(arm, champion)
    estimate, error = arm.rate - champion.rate, sqrt(sum(variances))
    found = partial(Contrast, champion, arm, estimate, error)
    if is_clustered and (flaw := _flaw(champion, arm)):
        return found(-1.0, 1.0, flaw)
    if is_clustered or (arm.has_enough and champion.has_enough):
        width = error * _standard_errors(arms, variances, alpha, looks, planned_units)
        low, high = estimate - width, estimate + width
        is_stated = looks == "once" and not low <= 0 <= high
        if is_stated and _exact_p(champion, arm, alpha=alpha / 2) > alpha / 2:
            low, high = min(low, 0.0), max(high, 0.0)
        return found(low, high)
    bounds = rate_bounds if looks == "once" else rate_bounds_at_any_time
    (low, high), (least, most) = (
        bounds(each.positives, each.tips, alpha=alpha / 2) for each in (arm, champion)
    )
    return found(low - most, high - least)


def rate_bounds(positives: int, tips: int, *, alpha: float) -> tuple[float, float]:
    """Exact bounds of a rate: Clopper and Pearson (1934), each failing with chance alpha / 2."""
    low = beta.ppf(alpha / 2, positives, tips - positives + 1) if positives else 0.0
    high = beta.ppf(1 - alpha / 2, positives + 1, tips - positives) if positives < tips else 1.0
    return float(low), float(high)


def rate_bounds_at_any_time(positives: int, tips: int, *, alpha: float) -> tuple[float, float]:
    """Bounds of a rate that fail with chance alpha at all readings together, exactly.

    A bet against each rate: the likelihood averaged over a uniform prior, over that of the rate,
    is a martingale from 1 (Robbins, 1970), so rates at which it reaches 1 / alpha are out.
    """
    most = betaln(positives + 1, tips - positives + 1) + log(alpha)

    def excess(rate: float) -> float:
        likelihood = xlogy(positives, rate) + xlog1py(tips - positives, -rate)
        return float(max(most - likelihood, -1.0)) if isfinite(likelihood) else inf

    best = positives / tips if tips else 0.5
    low = brentq(excess, 0.0, best) if positives else 0.0
    high = brentq(excess, best, 1.0) if positives < tips else 1.0
    return float(low), float(high)


def many_multiplier(progress: float, alpha: float) -> float:
    """Half width of bounds for any number of readings, in standard errors, at so much of the plan.

    The narrower of two, which together fail with chance alpha, asymptotically: up to the plan a
    constant boundary of the sum (O'Brien and Fleming's; by reflection it is crossed with at most
    twice the chance of its end); at all times Robbins' normal mixture, tightest early
    (Waudby-Smith et al., arXiv:2103.06476).
    """
    planned, rest = PLANNED_PART * alpha, (1 - PLANNED_PART) * alpha
    mixture = float(multiplier(kappa(rest) * progress / EARLY, rest))
    if progress > 1:
        return mixture
    return min(mixture, float(norm.ppf(1 - planned / 4)) / sqrt(progress))


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


def _variance(arm: Arm, other: Arm) -> float:
    """The variance of the arm's rate; of units of several tips at least the other arm's, where the
    arm has too few positives or non-positives to show its own."""
    if arm.has_enough or not arm.is_clustered or not arm.alike:
        return arm.variance
    return max(arm.variance, other.variance * other.alike / arm.alike)


def _standard_errors(
    arms: tuple[Arm, Arm],
    variances: tuple[float, float],
    alpha: float,
    looks: Looks,
    planned_units: int,
) -> float:
    """Half the width of the bounds, in standard errors."""
    if looks == "many":
        return many_multiplier(sum(arm.units for arm in arms) / planned_units, alpha)
    parts = zip(variances, (max(arm.alike - 1, 1.0) for arm in arms), strict=True)
    spread = sum(variance**2 / units for variance, units in parts)
    freedom = sum(variances) ** 2 / spread if spread else 1.0
    return float(student.ppf(1 - alpha / 2, freedom))


def _exact_p(champion: Arm, arm: Arm, *, alpha: float) -> float:
    """One-sided p-value of an exact test that the arms are alike, on the side of the difference.

    Fisher's test of independent tips; of units, the part of random assignments of the same units
    with as large a difference: exact however skewed the units are. It draws at least 50 / alpha
    assignments, from a fixed seed; arms in which hundreds of units have a positive need no test.
    """
    total, positives = champion.tips + arm.tips, champion.positives + arm.positives
    is_more = arm.rate > champion.rate
    if champion.each is None or arm.each is None:
        tail = hypergeom.sf if is_more else hypergeom.cdf
        return float(tail(arm.positives - is_more, total, positives, arm.tips))
    if min(min(each.with_positive, each.with_negative) for each in (champion, arm)) >= MANY_UNITS:
        return 0.0
    pooled = np.concatenate([champion.each, arm.each]).astype(np.int64)
    sorts, counts = np.unique(pooled, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multivariate_hypergeometric(
        counts, len(arm.each), size=ceil(50 / alpha), method="marginals"
    )
    tips, good = (drawn @ sorts).T
    gains = good / tips - (positives - good) / (total - tips)
    gain = arm.rate - champion.rate
    as_large = gains >= gain - 1e-12 if is_more else gains <= gain + 1e-12
    return (1 + int(as_large.sum())) / (1 + len(gains))


def _flaw(champion: Arm, arm: Arm) -> str:
    """What units of several tips lack for a standard error.

    An arm with too few positives counts with the other's share of units that have one, as in the
    canary, so that an arm without any is decided on as well.
    """
    smaller = min(champion, arm, key=lambda each: each.alike)
    if smaller.alike < MIN_UNITS:
        return (
            f"{smaller.name} has {int(smaller.alike)} units of equal size, {MIN_UNITS} are needed"
        )
    units = min(champion.units, arm.units)
    for sort, counts in (
        ("a positive", [each.with_positive / each.units for each in (champion, arm)]),
        ("a non-positive", [each.with_negative / each.units for each in (champion, arm)]),
    ):
        if (expected := units * max(counts)) < MIN_EACH:
            return f"{int(expected)} units with {sort} in the smaller arm, {MIN_EACH} are needed"
    return ""


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
        f"{f', {contrast.flaw}' if contrast.flaw else ''}"
    )
