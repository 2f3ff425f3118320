"""Which of several candidates is shown: a draw by the reward's lower bounds, and its chance.

The choice is soft and has a floor, so that every candidate has a known chance of being shown:
whoever learns from the reactions, or asks what another choice would have earned, divides by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reactune.reward.comparisons import Floats

TEMPERATURE = 0.2  # of the softmax, in log-odds: a bound that is 0.5 higher has 12 times the chance
FLOOR = 0.1  # of the draws take any candidate, each as often as the others
RANDOM_BITS = 53  # of a draw, as a float in 0..1 has them


@dataclass(frozen=True)
class Candidate:
    """A text that passed the guard, as it is stored, or the verdict on one that did not.

    A refused text is not kept. `reward` and `bound` are log-odds, None where they could not be
    computed; `chance` is that of being shown, 0 for a refused text.
    """

    text: str = ""
    verdict: str = "passed"
    reward: float | None = None
    bound: float | None = None
    chance: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The candidates of one answer in the order in which they were written, and the shown one.

    `problem` says why the reward did not choose; then the first that passed is shown.
    """

    candidates: tuple[Candidate, ...]
    chosen: int
    problem: str | None = None

    @property
    def chance(self) -> float:
        """The chance with which the chosen text was chosen."""
        return self.candidates[self.chosen].chance


def chances(bounds: Floats, texts: Sequence[str]) -> Floats:
    """The chance of each candidate; equal texts share theirs, so each gets the sum.

    A softmax of the lower bounds, mixed with a draw at random.
    """
    scaled = np.exp((bounds - bounds.max()) / TEMPERATURE)
    soft = (1 - FLOOR) * scaled / scaled.sum() + FLOOR / len(bounds)
    same = np.array([[one == other for other in texts] for one in texts])
    found: Floats = same @ soft
    return found


def choose(
    candidates: Sequence[Candidate], rewards: Floats, bounds: Floats, *, draw: float
) -> Choice:
    """Choose among the candidates that passed, in whose order rewards and bounds are.

    `draw` is uniform in 0..1.
    """
    passed = [place for place, each in enumerate(candidates) if each.verdict == "passed"]
    texts = [candidates[place].text for place in passed]
    chance = chances(bounds, texts)
    made = list(candidates)
    values = zip(rewards.tolist(), bounds.tolist(), chance.tolist(), strict=True)
    for place, (reward, bound, own) in zip(passed, values, strict=True):
        made[place] = replace(made[place], reward=reward, bound=bound, chance=own)
    # The first of equal texts stands for all of them.
    firsts = [number for number, text in enumerate(texts) if text not in texts[:number]]
    ends = np.cumsum(chance[firsts])
    chosen = firsts[min(int(np.searchsorted(ends, draw, side="right")), len(firsts) - 1)]
    return Choice(tuple(made), passed[chosen])


def first_passed(candidates: Sequence[Candidate], problem: str | None) -> Choice:
    """The first candidate that passed, which is shown for certain."""
    chosen = next(n for n, each in enumerate(candidates) if each.verdict == "passed")
    made = list(candidates)
    made[chosen] = replace(made[chosen], chance=1.0)
    return Choice(tuple(made), chosen, problem)
