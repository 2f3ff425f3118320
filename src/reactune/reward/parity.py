"""Whether a served reward is the one that was learned, proven before a version is released."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reactune.reward.features import open_layers, tip_features
from reactune.reward.model import rewards
from reactune.reward.scorer import Scorer

TOLERANCE = 0.2  # standard deviations of rewards; the whole of bfloat16's rounding is within it
TIPS = 4  # compared in one prompt, as candidates are


@dataclass(frozen=True)
class Agreement:
    """The largest difference of a reward, in standard deviations of the rewards compared."""

    tips: int
    largest: float

    @property
    def is_close(self) -> bool:
        """Whether the served reward may stand for the learned one."""
        return self.largest <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"rewards of {self.tips:,} tips as served are within {self.largest:.2g} standard "
            f"deviations of those learned (allowed: {TOLERANCE:g})"
        )


def check(
    scorer: Scorer,
    base_folder: Path,
    prompts: Sequence[Sequence[int]],
    tips: Sequence[Sequence[int]],
) -> Agreement:
    """Compare the scorer's rewards with those from the features that training computes.

    Tips, in their order, are candidates of every prompt, `TIPS` at a time. Where all rewards are
    the same nothing can be told, and the largest difference is infinite.
    """
    candidates = [
        [tips[(place + shift) % len(tips)] for shift in range(TIPS)]
        for place in range(len(prompts))
    ]
    rows = [(p, tip) for p, some in zip(prompts, candidates, strict=True) for tip in some]
    layers = scorer.model.layers
    with open_layers(base_folder, layers[-1]) as model:
        learned, _ = rewards(scorer.model, tip_features(model, rows, layers))
    served = np.concatenate(
        [scorer.score(p, some)[0] for p, some in zip(prompts, candidates, strict=True)]
    )
    spread = float(learned.std())
    largest = float(np.abs(served - learned).max()) / spread if spread > 0 else float("inf")
    # A difference that is no number is no agreement.
    return Agreement(len(rows), largest if np.isfinite(largest) else float("inf"))
