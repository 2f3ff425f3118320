"""Arms that somebody else drew and recorded: is one better, and may the question be asked at all?

Sums in, verdicts out; where the sums come from is for `arm_files.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Literal

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from reactune.canary.bounds import SRM_PRIOR, Floats, kappa, multiplier, ratio_evidence
from reactune.errors import CanaryError

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
