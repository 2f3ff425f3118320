"""`reactune ope`: a file of logged answers, with the chances of the policies that gave them.

What follows from chances and rewards is for `canary/offpolicy.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import logsumexp

from reactune.analysis.tables import read_columns, value_of
from reactune.canary.sequential import Floats
from reactune.errors import CanaryError, DataError

Standing = Literal["veto", "allowed", "unknown"]

# Below either of these the weights rest on too few answers to conclude anything.
LEAST_EFFECTIVE, LEAST_EFFECTIVE_SHARE = 100.0, 0.01
# Parts of the largest admissible stake; small ones win slowly and surely, large ones at once.
STAKES: Floats = np.geomspace(1e-4, 0.9, 24)
HALVINGS = 20  # bounds to one in a million


@dataclass(frozen=True)
class Logged:
    """Rewards in 0..1 of logged answers, and how likely both policies were to give each.

    Where a model of rewards is at hand, `predicted` is its value for the answer that was given,
    and `prospect` its mean over the new policy's answers; both known before the reward.
    `most_weight` is what the new chance over the logged one can be at most, where that is known.
    """

    reward: Floats
    logged_chance: Floats
    new_chance: Floats
    predicted: Floats | None = None
    prospect: Floats | None = None
    most_weight: float = np.inf


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Evaluation:
    """What the new policy would have earned per answer, and how much the log can tell of it.

    `low` and `high` hold at every length of the log with chance 1 - alpha, exactly; `standing`
    compares them with the bounds of what was earned. `mean_weight` is near 1 where the chances
    are right; `clipped` is the share of weights that were cut.
    """

    answers: int
    earned: Estimate
    ips: Estimate
    snips: Estimate
    dr: Estimate | None
    low: float
    high: float
    earned_low: float
    earned_high: float
    effective: float
    mean_weight: float
    mean_weight_error: float
    largest_weight: float
    clipped: float
    standing: Standing
    reason: str


def evaluate(log: Logged, *, alpha: float = 0.05, clip: float = np.inf) -> Evaluation:
    """Inverse propensity, self-normalised and doubly robust estimates, with their health.

    IPS: mean(w r); SNIPS: sum(w r) / sum(w); DR: mean(prospect + w (r - predicted)), with
    w = new / logged chance, cut at `clip`. Bounds: see `value_bounds`.

    Raises:
        CanaryError: no answers, a chance or a reward outside 0..1, or a logged chance of 0.
    """
    _check(log)
    whole = log.new_chance / log.logged_chance
    weight = np.minimum(whole, clip)
    answers, total = len(weight), float(weight.sum())
    snips = float(weight @ log.reward) / total if total else 0.0
    spread = float(np.sqrt((weight**2 * (log.reward - snips) ** 2).sum()))
    most = log.most_weight if clip >= log.most_weight else np.inf
    low, high = value_bounds(log.reward, weight, alpha=alpha, most_weight=most)
    earned_low, earned_high = value_bounds(log.reward, np.ones(answers), alpha=alpha, most_weight=1)
    squares = float((weight**2).sum())
    health = _mean(whole)
    effective = total**2 / squares if squares else 0.0
    standing, reason = _stand(effective, answers, health, high=high, earned_low=earned_low)
    return Evaluation(
        answers=answers,
        earned=_mean(log.reward),
        ips=_mean(weight * log.reward),
        snips=Estimate(snips, spread / total if total else 0.0),
        dr=_doubly_robust(log, weight),
        low=low,
        high=high,
        earned_low=earned_low,
        earned_high=earned_high,
        effective=effective,
        mean_weight=health.value,
        mean_weight_error=health.error,
        largest_weight=float(whole.max()),
        clipped=float((whole > clip).mean()),
        standing=standing,
        reason=reason,
    )


def value_bounds(
    reward: Floats, weight: Floats, *, alpha: float, most_weight: float = np.inf
) -> tuple[float, float]:
    """Bounds on the policy's value that hold at every length of the log with chance 1 - alpha.

    Bets against each value v: wealth is multiplied by 1 + c (w r / v - 1), whose mean is at most
    1 if the value is at most v; averaged over stakes c. From above the same with 1 - r, exact for
    w without bound and for w cut anywhere (Waudby-Smith et al., arXiv:2210.10768). Where w is
    known to be at most W and is not cut, W - w r is bet on beside it, with half of the chance:
    much tighter for rare rewards.
    """
    low = _lower_bound(weight * reward, alpha / 2)
    if not np.isfinite(most_weight):
        return low, 1 - _lower_bound(weight * (1 - reward), alpha / 2)
    at_most = 1 - _lower_bound(weight * (1 - reward), alpha / 4)
    left = _lower_bound(np.maximum(1 - weight * reward / most_weight, 0), alpha / 4)
    return low, min(at_most, most_weight * (1 - left))


def rank(evaluations: Sequence[Evaluation]) -> list[int]:
    """Places of those that are not vetoed and known, the one that surely earns most first."""
    known = [n for n, each in enumerate(evaluations) if each.standing == "allowed"]
    return sorted(known, key=lambda n: evaluations[n].low, reverse=True)


def lines_of(name: str, found: Evaluation) -> list[str]:
    """What a person reads of one evaluation."""
    said = {"ips": found.ips, "snips": found.snips, "dr": found.dr}
    estimates = ", ".join(
        f"{key} {each.value:.5f} (se {each.error:.5f})" for key, each in said.items() if each
    )
    words = {"veto": "veto", "allowed": "no veto", "unknown": "no conclusion"}
    cut = f", {found.clipped:.2%} cut" if found.clipped else ""
    return [
        f"{name}: {estimates}; between {found.low:.5f} and {found.high:.5f}",
        f"  logged {found.earned.value:.5f} of {found.answers:,} answers, between "
        f"{found.earned_low:.5f} and {found.earned_high:.5f}",
        f"  worth {found.effective:,.0f} answers; weights average {found.mean_weight:.3f}, "
        f"largest {found.largest_weight:.1f}{cut}",
        f"  {words[found.standing]}: {found.reason}",
    ]


def _lower_bound(gains: Floats, alpha: float) -> float:
    """The largest value in 0..1 at or below which all values are bet down at some time."""
    below, above = 0.0, 1.0
    if not gains.any():
        return 0.0
    for _ in range(HALVINGS):
        middle = (below + above) / 2
        if _most_wealth(gains / middle) >= -log(alpha):
            below = middle
        else:
            above = middle
    return below


def _most_wealth(ratios: Floats) -> float:
    """The largest log wealth over time, averaged over the stakes."""
    courses = np.cumsum(np.log1p(STAKES[:, None] * (ratios - 1)), axis=1)
    return float(np.max(logsumexp(courses, axis=0))) - log(len(STAKES))


def _doubly_robust(log: Logged, weight: Floats) -> Estimate | None:
    if log.predicted is None or log.prospect is None:
        return None
    return _mean(log.prospect + weight * (log.reward - log.predicted))


def _stand(
    effective: float, answers: int, health: Estimate, *, high: float, earned_low: float
) -> tuple[Standing, str]:
    least = max(LEAST_EFFECTIVE, LEAST_EFFECTIVE_SHARE * answers)
    if effective < least:
        return "unknown", f"the log tells as much as {effective:,.0f} answers, {least:,.0f} needed"
    if abs(health.value - 1) > 4 * health.error + 1e-9:
        return "unknown", f"weights average {health.value:.3f} instead of 1: chances are wrong"
    if high < earned_low:
        return "veto", "it would certainly have earned less than what was logged"
    return "allowed", "nothing in the log speaks against it"


def _mean(values: Floats) -> Estimate:
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)


def _check(log: Logged) -> None:
    if not len(log.reward):
        raise CanaryError("no logged answers: nothing to evaluate")
    ranges = (
        ("reward", log.reward, 0.0),
        ("logged chance", log.logged_chance, np.finfo(np.float64).tiny),
        ("new chance", log.new_chance, 0.0),
    )
    for name, values, least in ranges:
        wrong = ~((values >= least) & (values <= 1))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise CanaryError(
                f"answer {row + 1}: {name} = {values[row]:g}; give values in 0..1"
                f"{', above 0' if least else ''}"
            )
    if (log.new_chance / log.logged_chance > log.most_weight * (1 + 1e-9)).any():
        raise CanaryError(f"weights reach more than the {log.most_weight:g} said to be the most")


# How many rewards of the average a choice's own are weighed against, where they are predicted.
OWN_WEIGHT = 20.0


@dataclass(frozen=True)
class Policies:
    """Which column names the policy of a row, which policy was logged and which is new.

    A choice is what `action` says, in the circumstances that `given` says.
    """

    column: str
    logged: str
    new: str
    action: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewards:
    """The columns of the reward and of the logged chance, and the largest reward there is.

    `most_weight` is the largest ratio of new to logged chance that can occur, where it is known.
    """

    reward: str
    propensity: str
    largest: float = 1.0
    most_weight: float = np.inf


def read_targets(file: Path, targets: Sequence[str], of: Rewards) -> dict[str, Logged]:
    """Logged answers for each column that holds a new policy's chance of the answer given.

    Raises:
        DataError: the file cannot be read, a column is not there, or a value is no number.
    """
    names = [of.reward, of.propensity, *targets]
    table = _table(file, names)
    columns = {name: _numbers(file, table, name) for name in names}
    return {
        target: Logged(
            reward=columns[of.reward] / of.largest,
            logged_chance=columns[of.propensity],
            new_chance=columns[target],
            most_weight=of.most_weight,
        )
        for target in targets
    }


def read_policies(file: Path, policies: Policies, of: Rewards) -> tuple[Logged, Floats]:
    """Answers of the logged policy, and the rewards that the new one really got in this file.

    The new policy's chances are counted in its own rows. Rewards are predicted from the answers
    logged before, so that the doubly robust estimate stays unbiased.

    Raises:
        DataError: the file cannot be read, a column or a policy is not there, or a value is no
            number.
    """
    names = [policies.column, policies.action, *policies.given, of.reward, of.propensity]
    table = _table(file, names)
    policy = np.array([str(row[policies.column]) for row in table])
    for wanted in (policies.logged, policies.new):
        if wanted not in policy:
            raise DataError(
                f"{file}: no rows of policy {wanted!r}; there are {', '.join(np.unique(policy))}"
            )
    rewards = _numbers(file, table, of.reward) / of.largest
    choice, circumstance = _indexed(table, policies)
    is_logged, is_new = policy == policies.logged, policy == policies.new
    chances = _counted(choice[is_new], circumstance[is_new], choice.max(), circumstance.max())
    rows = np.flatnonzero(is_logged)
    predicted, prospect = _foresee(rewards[rows], choice[rows], circumstance[rows], chances)
    logged_chance = _numbers(file, table, of.propensity)[rows]
    cells = circumstance[rows] * chances.shape[1] + choice[rows]
    logged = Logged(
        reward=rewards[rows],
        logged_chance=logged_chance,
        new_chance=chances[circumstance[rows], choice[rows]],
        most_weight=min(of.most_weight, _most_weight(cells, logged_chance, chances)),
        predicted=predicted,
        prospect=prospect,
    )
    return logged, rewards[is_new]


def _counted(choice: Any, circumstance: Any, choices: int, circumstances: int) -> Floats:
    """Chance of each choice in each circumstance, as often as it was taken there."""
    counts = np.zeros((circumstances + 1, choices + 1))
    np.add.at(counts, (circumstance, choice), 1)
    chances: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return chances


def _most_weight(cells: Any, logged_chance: Floats, chances: Floats) -> float:
    """The largest weight there can be, if the logged chances are always the same; else infinite."""
    least, most = np.full(chances.size, np.inf), np.zeros(chances.size)
    np.minimum.at(least, cells, logged_chance)
    np.maximum.at(most, cells, logged_chance)
    wanted = chances.ravel() > 0
    if not np.allclose(least[wanted], most[wanted], rtol=1e-9):
        return np.inf
    return float((chances.ravel()[wanted] / least[wanted]).max())


def _foresee(
    rewards: Floats, choice: Any, circumstance: Any, chances: Floats
) -> tuple[Floats, Floats]:
    """For each answer the reward foreseen from those before it, and its mean under the policy."""
    sums, counts = np.zeros_like(chances), np.zeros_like(chances)
    predicted, prospect = np.empty(len(rewards)), np.empty(len(rewards))
    total = 0.0
    for number, (reward, taken, here) in enumerate(zip(rewards, choice, circumstance, strict=True)):
        average = total / number if number else 0.0
        row = (sums[here] + OWN_WEIGHT * average) / (counts[here] + OWN_WEIGHT)
        predicted[number], prospect[number] = row[taken], row @ chances[here]
        sums[here, taken] += reward
        counts[here, taken] += 1
        total += reward
    return predicted, prospect


def _indexed(table: Sequence[Mapping[str, Any]], policies: Policies) -> tuple[Any, Any]:
    actions = [str(row[policies.action]) for row in table]
    givens = ["\0".join(str(row[name]) for name in policies.given) for row in table]
    choice, circumstance = (np.unique(each, return_inverse=True)[1] for each in (actions, givens))
    return choice, circumstance


def _table(file: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = [
        {name: value_of(line.values, name) for name in names}
        for line in read_columns(file, names, command="ope")
    ]
    if not rows:
        raise DataError(f"{file}: no rows to evaluate")
    return rows


def _numbers(file: Path, table: Sequence[Mapping[str, Any]], name: str) -> Floats:
    try:
        return np.array([float(row[name]) for row in table])
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: column {name!r} holds what is no number: {error}") from error
