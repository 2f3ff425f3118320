"""What a policy without a model would have earned from the same people on the same visits.

For the report: whoever cannot beat the shortest or the most popular tip has learnt nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from reactune.config import LabelConfig
from reactune.demo.audience import Audience, Response, Town, Visit, expected_harm, expected_reward

Policy = Callable[[Visit], str]


@dataclass(frozen=True)
class Shown:
    """A tip that somebody was shown in the past, and whether it became a positive."""

    kind: str
    tip: str
    is_positive: bool


@dataclass(frozen=True)
class Earned:
    """What a policy got: shares of tips that were positives and negatives, and how many tips."""

    reward: float
    harm: float
    tips: int


def shortest_tip(past: Sequence[Shown]) -> Policy:
    """Always the tip of the asked kind with the fewest characters."""
    return _one_per_kind(past, lambda tip, _: (-len(tip), tip))


def most_popular_tip(past: Sequence[Shown]) -> Policy:
    """Always the tip of the asked kind with the highest share of positives, (k + 1) / (n + 2).

    The rule of succession keeps a tip that one person liked below one that nine of ten did. Of
    equals the shorter.
    """
    return _one_per_kind(
        past, lambda tip, results: ((sum(results) + 1) / (len(results) + 2), -len(tip), tip)
    )


def earned(
    audience: Audience, shown: Iterable[tuple[Visit, str]], *, labels: LabelConfig
) -> Earned:
    """What these tips earn from a fresh audience; each is remembered, so repeats wear off.

    The built-in audience states its probabilities, so its numbers have no noise of reactions;
    another one is asked to react, once.
    """
    rewards: list[float] = []
    harms: list[float] = []
    for visit, tip in shown:
        if isinstance(audience, Town):
            rewards.append(expected_reward(audience, visit, tip, labels=labels))
            harms.append(expected_harm(audience, visit, tip, labels=labels))
            audience.remember(visit, tip)
        else:
            response = audience.react(visit, tip)
            rewards.append(float(is_positive(response, labels)))
            harms.append(float(is_negative(response, labels)))
    count = len(rewards)
    return Earned(
        reward=sum(rewards) / count if count else 0.0,
        harm=sum(harms) / count if count else 0.0,
        tips=count,
    )


def is_positive(response: Response, labels: LabelConfig) -> bool:
    """The label rule for a reaction to a model's tip: evidence that it was liked."""
    low, high = labels.positive_dwell_ms
    dwell = response.dwell_ms
    return response.reaction == "done" and dwell is not None and low <= dwell <= high


def is_negative(response: Response, labels: LabelConfig) -> bool:
    """The label rule for a reaction to a model's tip: evidence that it was not."""
    dwell = response.dwell_ms
    return (
        response.reaction == "dismiss"
        and dwell is not None
        and dwell < labels.negative_dwell_below_ms
    )


def _one_per_kind(
    past: Sequence[Shown], rank: Callable[[str, list[bool]], tuple[float, ...] | tuple[object, ...]]
) -> Policy:
    results: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for shown in past:
        results[shown.kind][shown.tip].append(shown.is_positive)
    best = {
        kind: max(tips, key=lambda tip, tips=tips: rank(tip, tips[tip]))  # type: ignore[misc]
        for kind, tips in results.items()
    }
    return lambda visit: best.get(visit.kind, "")
