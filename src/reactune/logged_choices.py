"""`reactune ope`: a file of logged answers, with the chances of the policies that gave them.

What follows from chances and rewards is for `canary/offpolicy.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reactune.arm_files import read_columns, value_of
from reactune.canary.bounds import Floats
from reactune.canary.offpolicy import Logged
from reactune.errors import DataError

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
