"""The reward models of the versions that answer now, opened when a version is published."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from anyio import to_thread

from reactune.errors import DataError, ReleaseError
from reactune.records import ModelVersion
from reactune.reward.comparisons import Floats
from reactune.reward.scorer import Scorer

log = logging.getLogger(__name__)


@dataclass
class Rewards:
    """Scorers by the names of versions; a version whose scorer cannot be opened has none."""

    threads: int = 0
    scorers: dict[str, Scorer] = field(default_factory=dict)

    def open(self, model: ModelVersion) -> None:
        """Open the reward model of a version that has one; an error is logged, and it has none."""
        if model.reward is None or model.name in self.scorers:
            return
        try:
            self.scorers[model.name] = Scorer(model.reward, threads=self.threads)
        except (DataError, ReleaseError) as error:
            log.error("version %d answers without its reward: %s", model.version, error)

    def close(self, model: ModelVersion) -> None:
        """Free what the version's reward model holds; one that is not open is fine."""
        self.scorers.pop(model.name, None)

    async def of(
        self, model: ModelVersion, prompt: Sequence[int], tips: Sequence[Sequence[int]]
    ) -> tuple[Floats, Floats]:
        """Reward and lower bound of each tip of one prompt, all as token ids.

        Raises:
            ReleaseError: the version's reward model is not open.
            DataError: as `Scorer.score`.
        """
        scorer = self.scorers.get(model.name)
        if scorer is None:
            raise ReleaseError(f"the reward model of {model.name} is not open; see the log")
        return await to_thread.run_sync(scorer.score, prompt, tips, abandon_on_cancel=True)
