"""`reactune ope`: what another policy would have earned, from a log of choices and their chances.

It may veto a policy or rank several, and never promotes one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from reactune.analysis.tables import (
    UnknownValueError,
    listed,
    number_of,
    read_columns,
    value_of,
)
from reactune.canary.sequential import Floats
from reactune.data.readers import meaning_of, plain_text
from reactune.errors import CanaryError, DataError

Conclusion = Literal["veto", "allowed", "unknown"]
Indices = NDArray[np.intp]
Booleans = NDArray[np.bool_]
PlacedRow = tuple[str, Mapping[str, Any]]  # file and line, and the values by column name

# Below either of these the weights rest on too few answers for a conclusion.
MIN_EFFECTIVE, MIN_EFFECTIVE_SHARE = 100.0, 0.01
# Parts of the largest admissible stake; small ones win slowly and surely, large ones at once.
STAKES: Floats = np.geomspace(1e-4, 0.9, 24)
BISECTIONS = 20  # bounds to one in a million
# How many average rewards a choice's own are weighed against, where they are predicted.
OWN_WEIGHT = 20.0


@dataclass(frozen=True)
class Logged:
    """Rewards in 0..1 of logged answers, and the chance that both policies had of each.

    With a reward model, `predicted` is its value for the answer that was given, and `expected` its
    mean over the new policy's answers; both known before the reward.
    `max_weight` is the largest possible ratio of new to logged chance, if it is known.
    """

    reward: Floats
    logged_chance: Floats
    new_chance: Floats
    predicted: Floats | None = None
    expected: Floats | None = None
    max_weight: float = np.inf


@dataclass(frozen=True)
class Policies:
    """The column of a row's policy, and the names of the logged policy and of the new one.

    A choice is the value of `action`, in the context of the values of `given`.
    """

    column: str
    logged: str
    new: str
    action: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewards:
    """The columns of the reward and of the logged chance, and the largest reward there is.

    `max_weight` is the largest possible ratio of new to logged chance, if it is known.
    """

    reward: str
    propensity: str
    largest: float = 1.0
    max_weight: float = np.inf


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Evaluation:
    """The new policy's value per answer, and how far the log supports it.

    `low` and `high` hold at every length of the log with chance 1 - alpha, exactly; `conclusion`
    compares them with the bounds of what the logged policy earned. `mean_weight` is near 1 if the
    chances are right; `clipped` is the share of weights that were clipped.
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
    conclusion: Conclusion
    reason: str


def read_targets(file: Path, targets: Sequence[str], of: Rewards) -> dict[str, Logged]:
    """Logged answers for each column that holds a new policy's chance of the answer given.

    Raises:
        DataError: the file cannot be read, a column is missing, or a value is not a number.
    """
    names = [of.reward, of.propensity, *targets]
    rows = _rows(file, names)
    columns = {name: _numbers(rows, name) for name in names}
    return {
        target: Logged(
            reward=columns[of.reward] / of.largest,
            logged_chance=columns[of.propensity],
            new_chance=columns[target],
            max_weight=of.max_weight,
        )
        for target in targets
    }


def read_choices(file: Path, column: str, of: Rewards) -> tuple[dict[str, Logged], int]:
    """Logged choices among candidates, for two other choices: `random`, and `best` by lower bound.

    The column is that of an exposure's `choice_json`. Candidates that the guard refused are none,
    and equal texts are one candidate with the chances of all. Rows without rewards of at least two
    candidates hold no choice; their number is returned.

    Raises:
        DataError: the file cannot be read, a column is missing, no row holds a choice, or a value
            is not what it should be.
    """
    rows = _rows(file, [of.reward, column])
    made = [(row, found) for row in rows if (found := _choice(*row, column))]
    if not made:
        raise DataError(
            f"{file}: no row of {column} holds rewards of two candidates; name the column of "
            "choice_json, and set [serve] candidates"
        )
    rewards = _numbers([row for row, _ in made], of.reward) / of.largest
    logged = np.array([chance for _, (chance, _, _) in made])
    logs = {
        name: Logged(rewards, logged, np.array([found[place] for _, found in made]))
        for place, name in ((1, "random"), (2, "best"))
    }
    return logs, len(rows) - len(made)


def read_policies(file: Path, policies: Policies, of: Rewards) -> tuple[Logged, Floats]:
    """Answers of the logged policy, and the rewards that the new one earned in this file.

    The new policy's chances are counted in its own rows. Each reward is predicted from earlier
    logged answers only, so that the doubly robust estimate stays unbiased.

    Raises:
        DataError: the file cannot be read, a column is missing, or a value is not a number.
        UnknownValueError: a policy has no row.
    """
    names = [policies.column, policies.action, *policies.given, of.reward, of.propensity]
    table = _rows(file, names)
    is_logged, is_new = _policies(file, table, policies)
    rows = np.flatnonzero(is_logged)
    choice, context = _indexed(table, policies)
    chances = _counted(choice[is_new], context[is_new], choice.max(), context.max())
    logged_rows = [table[row] for row in rows]
    rewards = _numbers(logged_rows, of.reward) / of.largest
    predicted, expected = _predict(rewards, choice[rows], context[rows], chances)
    logged_chance = _numbers(logged_rows, of.propensity)
    cells = context[rows] * chances.shape[1] + choice[rows]
    logged = Logged(
        reward=rewards,
        logged_chance=logged_chance,
        new_chance=chances[context[rows], choice[rows]],
        max_weight=min(of.max_weight, _max_weight(cells, logged_chance, chances)),
        predicted=predicted,
        expected=expected,
    )
    earned = [table[row] for row in np.flatnonzero(is_new)]
    return logged, _numbers(earned, of.reward) / of.largest


def evaluate(log: Logged, *, alpha: float = 0.05, clip: float = np.inf) -> Evaluation:
    """Inverse propensity, self-normalised and doubly robust estimates, and their weights.

    IPS: mean(w r); SNIPS: sum(w r) / sum(w); DR: mean(expected + w (r - predicted)), with
    w = new / logged chance, clipped at `clip`. Bounds: see `value_bounds`.

    Raises:
        CanaryError: no answers, a chance or a reward outside 0..1, or a logged chance of 0.
    """
    _check(log)
    whole = log.new_chance / log.logged_chance
    weight = np.minimum(whole, clip)
    answers, total = len(weight), float(weight.sum())
    snips = float(weight @ log.reward) / total if total else 0.0
    spread = float(np.sqrt((weight**2 * (log.reward - snips) ** 2).sum()))
    most = log.max_weight if clip >= log.max_weight else np.inf
    low, high = value_bounds(log.reward, weight, alpha=alpha, max_weight=most)
    earned_low, earned_high = value_bounds(log.reward, np.ones(answers), alpha=alpha, max_weight=1)
    mean_weight, effective = _mean(whole), _effective_size(weight)
    conclusion, reason = _conclude(
        effective, answers, mean_weight, high=high, earned_low=earned_low
    )
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
        mean_weight=mean_weight.value,
        mean_weight_error=mean_weight.error,
        largest_weight=float(whole.max()),
        clipped=float((whole > clip).mean()),
        conclusion=conclusion,
        reason=reason,
    )


def value_bounds(
    reward: Floats, weight: Floats, *, alpha: float, max_weight: float = np.inf
) -> tuple[float, float]:
    """Bounds on the policy's value that hold at every length of the log with chance 1 - alpha.

    Bets against each value v: wealth is multiplied by 1 + c (w r / v - 1), whose mean is at most
    1 if the value is at most v; averaged over stakes c. From above the same with 1 - r, exact for
    unbounded w and for w clipped anywhere (Waudby-Smith et al., arXiv:2210.10768). If w is known
    to be at most W and is not clipped, W - w r is bet on as well, with half of the chance: much
    tighter for rare rewards.
    """
    low = _lower_bound(weight * reward, alpha / 2)
    if not np.isfinite(max_weight):
        return low, 1 - _lower_bound(weight * (1 - reward), alpha / 2)
    at_most = 1 - _lower_bound(weight * (1 - reward), alpha / 4)
    left = _lower_bound(np.maximum(1 - weight * reward / max_weight, 0), alpha / 4)
    return low, min(at_most, max_weight * (1 - left))


def rank(evaluations: Sequence[Evaluation]) -> list[int]:
    """Indices of the allowed evaluations, the highest lower bound first."""
    known = [n for n, each in enumerate(evaluations) if each.conclusion == "allowed"]
    return sorted(known, key=lambda n: evaluations[n].low, reverse=True)


def lines_of(name: str, evaluation: Evaluation) -> list[str]:
    """The lines of one evaluation: estimates, what was logged, the weights, and the conclusion."""
    named = {"ips": evaluation.ips, "snips": evaluation.snips, "dr": evaluation.dr}
    estimates = ", ".join(
        f"{key} {each.value:.5f} (se {each.error:.5f})" for key, each in named.items() if each
    )
    words = {"veto": "veto", "allowed": "no veto", "unknown": "no conclusion"}
    clipped = f", {evaluation.clipped:.2%} clipped" if evaluation.clipped else ""
    return [
        f"{name}: {estimates}; between {evaluation.low:.5f} and {evaluation.high:.5f}",
        f"  logged {evaluation.earned.value:.5f} of {evaluation.answers:,} answers, between "
        f"{evaluation.earned_low:.5f} and {evaluation.earned_high:.5f}",
        f"  effective sample size {evaluation.effective:,.0f}; weights average "
        f"{evaluation.mean_weight:.3f}, largest {evaluation.largest_weight:.1f}{clipped}",
        f"  {words[evaluation.conclusion]}: {evaluation.reason}",
    ]


def _lower_bound(gains: Floats, alpha: float) -> float:
    """The largest value in 0..1 at or below which all values are bet down at some time."""
    below, above = 0.0, 1.0
    if not gains.any():
        return 0.0
    for _ in range(BISECTIONS):
        middle = (below + above) / 2
        if _most_wealth(gains / middle) >= -log(alpha):
            below = middle
        else:
            above = middle
    return below


def _most_wealth(ratios: Floats) -> float:
    """The largest log wealth over time, averaged over the stakes."""
    paths = np.cumsum(np.log1p(STAKES[:, None] * (ratios - 1)), axis=1)
    return float(np.max(logsumexp(paths, axis=0))) - log(len(STAKES))


def _effective_size(weight: Floats) -> float:
    """Kish's effective sample size of the weights."""
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares else 0.0


def _doubly_robust(log: Logged, weight: Floats) -> Estimate | None:
    if log.predicted is None or log.expected is None:
        return None
    return _mean(log.expected + weight * (log.reward - log.predicted))


def _conclude(
    effective: float, answers: int, mean_weight: Estimate, *, high: float, earned_low: float
) -> tuple[Conclusion, str]:
    least = max(MIN_EFFECTIVE, MIN_EFFECTIVE_SHARE * answers)
    if effective < least:
        return "unknown", f"effective sample size {effective:,.0f}, {least:,.0f} needed"
    if abs(mean_weight.value - 1) > 4 * mean_weight.error + 1e-9:
        return "unknown", f"weights average {mean_weight.value:.3f} instead of 1: chances are wrong"
    if high < earned_low:
        return "veto", "its upper bound is below the lower bound of what was logged"
    return "allowed", "its upper bound is not below what was logged"


def _mean(values: Floats) -> Estimate:
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)


def _check(log: Logged) -> None:
    if not len(log.reward):
        raise CanaryError("0 logged answers: nothing to evaluate; check the file and its columns")
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
    if (log.new_chance / log.logged_chance > log.max_weight * (1 + 1e-9)).any():
        most = float((log.new_chance / log.logged_chance).max())
        raise CanaryError(
            f"a weight is {most:g}, above the largest of {log.max_weight:g}; correct --most-weight"
        )


def _choice(
    place: str, values: Mapping[str, Any], column: str
) -> tuple[float, float, float] | None:
    """The chance of the shown text as logged, if drawn at random, and if the best is taken."""
    value = values[column]
    if value is None or value == "":
        return None
    try:
        choice = json.loads(value) if isinstance(value, str) else value
        candidates = [each for each in choice["candidates"] if each["verdict"] == "passed"]
        shown = choice["candidates"][choice["chosen"]]
        bounds = [each["bound"] for each in candidates]
        if len(candidates) < 2 or None in bounds:
            return None
        same = [each["text"] == shown["text"] for each in candidates]
        best = [bound == max(bounds) for bound in bounds]
        both = sum(one and other for one, other in zip(same, best, strict=True))
        return float(shown["chance"]), sum(same) / len(same), both / sum(best)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{place}: {column} is no choice ({error!r}); give the column choice_json as it was "
            "stored"
        ) from error


def _counted(choice: Indices, context: Indices, choices: int, contexts: int) -> Floats:
    """The frequency of each choice in each context."""
    counts = np.zeros((contexts + 1, choices + 1))
    np.add.at(counts, (context, choice), 1)
    chances: Floats = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return chances


def _max_weight(cells: Indices, logged_chance: Floats, chances: Floats) -> float:
    """The largest possible weight if the logged chances are constant; else infinite."""
    least, most = np.full(chances.size, np.inf), np.zeros(chances.size)
    np.minimum.at(least, cells, logged_chance)
    np.maximum.at(most, cells, logged_chance)
    possible = chances.ravel() > 0
    if not np.allclose(least[possible], most[possible], rtol=1e-9):
        return np.inf
    return float((chances.ravel()[possible] / least[possible]).max())


def _predict(
    rewards: Floats, choice: Indices, context: Indices, chances: Floats
) -> tuple[Floats, Floats]:
    """Each answer's reward predicted from earlier answers, and its mean under the new policy."""
    sums, counts = np.zeros_like(chances), np.zeros_like(chances)
    predicted, expected = np.empty(len(rewards)), np.empty(len(rewards))
    total = 0.0
    for number, (reward, taken, here) in enumerate(zip(rewards, choice, context, strict=True)):
        average = total / number if number else 0.0
        row = (sums[here] + OWN_WEIGHT * average) / (counts[here] + OWN_WEIGHT)
        predicted[number], expected[number] = row[taken], row @ chances[here]
        sums[here, taken] += reward
        counts[here, taken] += 1
        total += reward
    return predicted, expected


def _policies(
    file: Path, table: Sequence[PlacedRow], policies: Policies
) -> tuple[Booleans, Booleans]:
    """Which rows are of the logged policy, and which of the new one."""
    found = {meaning_of(values[policies.column]): values[policies.column] for _, values in table}
    for wanted in (policies.logged, policies.new):
        if meaning_of(wanted) not in found:
            raise UnknownValueError(
                f"{file}: no rows of policy {wanted!r}; there are "
                f"{listed([plain_text(value) for value in found.values()])}; name one of them"
            )
    policy = np.array([meaning_of(values[policies.column]) for _, values in table])
    return policy == meaning_of(policies.logged), policy == meaning_of(policies.new)


def _indexed(table: Sequence[PlacedRow], policies: Policies) -> tuple[Indices, Indices]:
    actions = [plain_text(values[policies.action]) for _, values in table]
    givens = ["\0".join(plain_text(values[name]) for name in policies.given) for _, values in table]
    choice, context = (np.unique(each, return_inverse=True)[1] for each in (actions, givens))
    return choice, context


def _rows(file: Path, names: Sequence[str]) -> list[PlacedRow]:
    rows: list[PlacedRow] = [
        (f"{file}, line {line.number}", {name: value_of(line.values, name) for name in names})
        for line in read_columns(file, names, command="ope")
    ]
    if not rows:
        raise DataError(f"{file}: no rows to evaluate; check the file")
    return rows


def _numbers(rows: Sequence[PlacedRow], name: str) -> Floats:
    return np.array([number_of(place, name, values[name]) for place, values in rows])
