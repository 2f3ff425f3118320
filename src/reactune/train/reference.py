"""What the base model thinks of each answer, which KTO and DPO compare the tuned one with.

The losses are TRL's; which rows there are, and their order, is decided before.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reactune.records import write_atomically
from reactune.scoring import Row, score
from reactune.train.job import Job
from reactune.train.ranks import is_first, on_any_process
from reactune.train.steps import tell

FILE = "reference.json"
CHUNK_STEPS = 16
# A step costs four times as much as asking the base model about its rows, so those that are not
# reached in this share of the time limit could not be trained in the rest of it.
SHARE = 0.2


def with_reference(
    folder: Path, job: Job, model: Any, rows: list[dict[str, Any]], answers: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows with the base model's log-probability of each answer, under the names given.

    Fewer steps' rows where a fifth of the time limit does not suffice for all. Called before the
    first step, when the adapter changes nothing yet: so the model is the base. What was scored
    is kept, so that a resumed training has the same rows.
    """
    file = folder / FILE
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        found = _score(folder, job, model, rows, answers)
        if is_first():
            write_atomically(file, json.dumps(found))
    return [{**row, **values} for row, values in zip(rows, found, strict=False)]


def _score(
    folder: Path, job: Job, model: Any, rows: list[dict[str, Any]], answers: Mapping[str, str]
) -> list[dict[str, float]]:
    """Names and log-probabilities of the first rows, whole steps of them, in their order."""
    causal = model.get_base_model()
    causal.eval()
    # A tip stands in several pairs, and a row in several epochs.
    different = {_asked(row, answer) for row in rows for answer in answers.values()}
    totals: dict[Row, float] = {}
    until = time.monotonic() + SHARE * job.max_seconds
    size = CHUNK_STEPS * job.batch_size
    done = 0

    def scored(count: int) -> None:
        nonlocal done
        done += count
        tell(folder, {"step": 0, "steps": job.steps, "scored": done, "of": len(different)})

    for end in range(size, len(rows) + size, size):
        wanted = (_asked(row, a) for row in rows[end - size : end] for a in answers.values())
        new = list(dict.fromkeys(each for each in wanted if each not in totals))
        scores = score(causal, new, progress=scored)
        totals |= {each: float(s.sum()) for each, s in zip(new, scores, strict=True)}
        if on_any_process(time.monotonic() > until):
            break
    return [
        {name: totals[_asked(row, answer)] for name, answer in answers.items()}
        for row in rows[:end]
    ]


def _asked(row: dict[str, Any], answer: str) -> Row:
    return tuple(row["prompt_ids"]), tuple(row[answer])
