"""A run's reward model as the files that a service reads, if they give the rewards of training."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reactune.errors import ReleaseError
from reactune.model.files import BaseModel
from reactune.model.logprobs import Row
from reactune.reward.graph import GRAPH_FILES, graph_of
from reactune.reward.model import FILES, load
from reactune.reward.parity import Agreement, check
from reactune.reward.scorer import Scorer


@dataclass(frozen=True)
class Exported:
    """The folder of a served reward with its proof, or the reason why a version has none."""

    folder: Path | None
    agreement: Agreement | None = None
    reason: str = ""

    def line(self) -> str:
        """A few words for the person at the terminal."""
        return f"no reward: {self.reason}" if self.folder is None else f"{self.agreement}"


def export_reward(
    learned: Path, base: BaseModel, rows: Sequence[Row], out: Path, *, cache: Path
) -> Exported:
    """Write what `learned` holds, and the graph of its layers, into `out`.

    `rows` are token ids of held-out prompts and tips, on which rewards as served are compared with
    those of training; where they differ too much, or no graph can be written, `out` is removed.

    Raises:
        DataError: `learned` holds no readable reward model.
    """
    layers = load(learned).layers
    try:
        graph = graph_of(base, layers, cache=cache)
        out.mkdir(parents=True)
        for folder, names in ((learned, FILES), (graph, GRAPH_FILES)):
            for name in names:
                shutil.copyfile(folder / name, out / name)
        prompts, tips = zip(*rows, strict=True)
        agreement = check(Scorer(out), base.folder, prompts, tips)
    except ReleaseError as error:
        shutil.rmtree(out, ignore_errors=True)
        return Exported(None, None, str(error))
    if not agreement.is_close:
        shutil.rmtree(out)
        return Exported(None, agreement, f"{agreement}")
    return Exported(out, agreement)
