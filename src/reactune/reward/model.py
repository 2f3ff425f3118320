"""What was learned, as two files: rewards of tips from their features, and a lower bound.

A reward is a log-odds: of two tips in one context the difference of their rewards is the log-odds
that the first is preferred; 0 is the average tip that was learned from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reactune.errors import DataError
from reactune.records import canonical_json, replacing, write_atomically
from reactune.reward.comparisons import Floats

if TYPE_CHECKING:
    from reactune.reward.fit import Fitted

WEIGHTS, FACTS = "reward.safetensors", "reward.json"
FILES = (WEIGHTS, FACTS)
TEACHER = "teacher"  # folder, beside these two, of the reward that may train a generator
SCHEMA = 2
DEVIATIONS = 1.0  # standard errors between a reward and its lower bound


@dataclass(frozen=True)
class RewardModel:
    """Linear models of features: one fitted on all users, and one without each group of them."""

    weights: npt.NDArray[np.float32] = field(repr=False)
    """Shape (1 + groups, width of the features)."""
    biases: npt.NDArray[np.float32] = field(repr=False)
    layers: tuple[int, ...]
    base_digest: str
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Where it is from and how good it is, as plain JSON values."""


def assemble_model(
    fitted: Sequence["Fitted"],
    scale: float,
    mean: Floats,
    deviation: Floats,
    *,
    layers: Sequence[int],
    base_digest: str,
    facts: Mapping[str, Any],
) -> RewardModel:
    """What `fit.fit_with_error` gave, times the scale, for features that are not standardised."""
    weights = scale * np.array([each.weights for each in fitted]) / deviation
    return RewardModel(
        weights=weights.astype(np.float32),
        biases=-(weights @ mean).astype(np.float32),
        layers=tuple(layers),
        base_digest=base_digest,
        facts=facts,
    )


def rewards(model: RewardModel, features: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Reward and lower bound of each row of features, shape (rows, width).

    The bound is below the reward by its standard error by the jackknife, which leaves out one group
    of users at a time (Efron and Stein, Annals of Statistics 9, 1981).
    """
    each = (features @ model.weights.T + model.biases).astype(np.float64)
    reward, members = each[:, 0], each[:, 1:]
    count = members.shape[1]
    spread = np.square(members - members.mean(1, keepdims=True)).sum(1)
    return reward, reward - DEVIATIONS * np.sqrt((count - 1) / count * spread)


def save(model: RewardModel, folder: Path) -> tuple[str, ...]:
    """Write the two files, each whole or not at all; their names."""
    from safetensors.numpy import save as as_bytes

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as partial:
        partial.write_bytes(as_bytes({"weights": model.weights, "biases": model.biases}))
    known = {"schema": SCHEMA, "layers": model.layers, "base_digest": model.base_digest}
    write_atomically(folder / FACTS, canonical_json({**known, "facts": model.facts}))
    return FILES


def load(folder: Path) -> RewardModel:
    """The model that `save` wrote.

    Raises:
        DataError: the folder holds none, or one that this release cannot read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["schema"] not in (1, SCHEMA):
            raise DataError(
                f"{folder / FACTS} has schema {facts['schema']!r}, this release reads {SCHEMA}; "
                "install the release that wrote it"
            )
        arrays = load_file(folder / WEIGHTS)
        if facts["schema"] == 1:
            # One layer, and the folds alone, whose mean was the reward.
            facts["layers"] = [facts["layer"]]
            arrays = {name: np.stack([v.mean(0), *v]) for name, v in arrays.items()}
        return RewardModel(
            weights=arrays["weights"],
            biases=arrays["biases"],
            layers=tuple(facts["layers"]),
            base_digest=facts["base_digest"],
            facts=facts["facts"],
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"{folder} holds no readable reward model ({type(error).__name__}); "
            "`reactune stage reward` writes one"
        ) from error
