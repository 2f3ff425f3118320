"""Rewards of the candidates of one request, without torch: what a service computes.

The features are those of `features.tip_features`, computed by ONNX Runtime on the graph that
`graph` wrote; all candidates of a prompt go through it in one pass.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reactune.errors import DataError, ReleaseError
from reactune.reward import model as reward_model
from reactune.reward.comparisons import Floats
from reactune.reward.features import Floats as Features
from reactune.reward.features import pass_of
from reactune.reward.graph import GRAPH


class Scorer:
    """A reward model with the layers that it reads; its calls may come from several threads."""

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        """Open a folder with a reward model and its graph; `threads` 0: one a core.

        Raises:
            DataError: the folder holds no readable reward model.
            ReleaseError: ONNX Runtime is not installed, or cannot read the graph.
        """
        self.model = _loaded(folder)
        self._session = _session(folder / GRAPH, threads)

    def score(self, prompt: Sequence[int], tips: Sequence[Sequence[int]]) -> tuple[Floats, Floats]:
        """Reward and lower bound of each tip of one prompt.

        Token ids are those of `cache.reward_rows`: a prompt, and `prompt.tip_token_ids`.

        Raises:
            DataError: a tip has no tokens, a token is none of the base model's, or memory is full.
        """
        return reward_model.rewards(self.model, self.features(prompt, tips))

    def features(self, prompt: Sequence[int], tips: Sequence[Sequence[int]]) -> Features:
        """The features of each tip of one prompt, shape (tips, width).

        Raises:
            DataError: as `score`.
        """
        if not tips:
            return np.zeros((0, self.model.weights.shape[1]), np.float32)
        if not all(map(len, tips)):
            raise DataError("a tip without tokens has no reward; leave it out")
        try:
            (found,) = self._session.run(None, pass_of(prompt, tips))
        except _faults() as error:
            raise DataError(
                f"no reward of {len(tips)} tips ({_first_line(error)}); token ids must be those "
                "of the base model, and there must be memory for one pass"
            ) from error
        features: Features = found
        return features


def _loaded(folder: Path) -> reward_model.RewardModel:
    try:
        return reward_model.load(folder)
    except ImportError as error:
        raise _not_installed(error) from error


def _session(graph: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise _not_installed(error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for the next request must not keep a core busy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised, and reported where they are caught
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except _faults() as error:
        raise ReleaseError(
            f"{graph} cannot be opened ({_first_line(error)}); fetch or export the version again"
        ) from error


def _faults() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes that have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    named = vars(state).values()
    return tuple(each for each in named if isinstance(each, type) and issubclass(each, Exception))


def _not_installed(error: ImportError) -> ReleaseError:
    return ReleaseError(
        f"choosing among candidates needs {error.name}; run `pip install 'reactune[reward]'`"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
