"""The trainer's contract: `job.json` and `rows.parquet` in, an adapter folder and progress out.

Rows come as token ids and in the order in which they are trained, so that no back-end can differ
in template, loss mask, truncation or order.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from reactune.errors import TrainingError
from reactune.records import write_atomically
from reactune.train.order import in_training_order

SCHEMA = 1
JobMethod = Literal["sft", "kto", "dpo"]
METHODS: tuple[JobMethod, ...] = ("sft", "kto", "dpo")
EXIT_BAD_JOB = 3
EXIT_DIVERGED = 4
COLUMNS: dict[JobMethod, tuple[str, ...]] = {
    "sft": ("prompt_ids", "completion_ids"),
    "kto": ("prompt_ids", "completion_ids", "label"),
    "dpo": ("prompt_ids", "chosen_ids", "rejected_ids"),
}


@dataclass(frozen=True)
class Job:
    """Everything a trainer needs to know; paths are relative to the folder of `job.json`."""

    schema: int
    method: JobMethod
    base_folder: str
    rows: str
    adapter: str
    steps: int
    batch_size: int
    learning_rate: float
    beta: float
    kto_loss: str
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    lora_layers: int
    checkpoint_steps: int
    max_seconds: float
    seed: int
    threads: int
    dtype: str
    backend: str = "trl"
    mlflow_experiment: str = ""


def write_job(folder: Path, job: Job, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the rows in training order and, last, `job.json`; the path of the latter is returned.

    Raises:
        TrainingError: there are no rows, or a row lacks what the method needs.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        raise TrainingError(
            f"no rows to train {job.method!r} on: the dataset holds none of its kind"
        )
    if missing := [name for name in COLUMNS[job.method] if name not in rows[0]]:
        raise TrainingError(f"rows for {job.method!r} lack {', '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    ordered = in_training_order(rows, steps=job.steps, batch_size=job.batch_size, seed=job.seed)
    table = pa.Table.from_pylist(
        [{name: row[name] for name in COLUMNS[job.method]} for row in ordered]
    )
    pq.write_table(table, folder / job.rows)
    path = folder / "job.json"
    write_atomically(path, json.dumps(asdict(job), indent=2))
    return path


def read_job(path: Path) -> Job:
    """The job, checked.

    Raises:
        TrainingError: the file is missing, no job, or of another schema version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        job = Job(**values)
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path} is no training job: {error}") from error
    if job.schema != SCHEMA:
        raise TrainingError(f"{path} has schema {job.schema}; this trainer reads {SCHEMA}")
    return job


def read_rows(folder: Path, job: Job) -> list[dict[str, Any]]:
    """The job's rows, in the order in which they are trained, as dictionaries of token id lists."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(folder / job.rows).to_pylist()
    return rows
