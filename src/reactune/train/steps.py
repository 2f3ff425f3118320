"""What a trainer tells of each step, and when it stops: the same for every back-end.

What is trained, and how, is in the modules of the back-ends.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reactune.train.checkpoints import keep_lines_until
from reactune.train.job import Job
from reactune.train.order import tokens_of
from reactune.train.ranks import is_first, on_any_process


def progress_callback(
    folder: Path, job: Job, rows: list[dict[str, Any]], *, deadline: float
) -> Any:
    """Appends a line per step to `progress.jsonl`; stops at the deadline of the monotonic clock."""
    from transformers import TrainerCallback

    tokens_per_step = job.batch_size * sum(map(tokens_of, rows)) / len(rows)

    class Progress(TrainerCallback):  # type: ignore[misc]
        """Watches the steps of one training."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.monotonic()
            self.first_step = state.global_step
            if is_first():
                keep_lines_until(folder / "progress.jsonl", state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_any_process(time.monotonic() > deadline):
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            if not logs or "loss" not in logs:
                return
            done = state.global_step - self.first_step
            seconds = time.monotonic() - self.started
            line = {
                "step": state.global_step,
                "steps": state.max_steps,
                "loss": logs["loss"],
                "tokens_per_second": done * tokens_per_step / seconds,
                "seconds_left": min(
                    (state.max_steps - state.global_step) * seconds / done,
                    max(deadline - time.monotonic(), 0.0),
                ),
            }
            tell(folder, line)

    return Progress()


def tell(folder: Path, line: Mapping[str, Any]) -> None:
    """Append a line to `progress.jsonl`; of several processes the first alone does."""
    if is_first():
        with (folder / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def live_steps(job: Job) -> dict[str, Any]:
    """Where each step is shown while it is trained: MLflow's own callback, or nowhere."""
    if not job.mlflow_experiment:
        return {"report_to": "none"}
    os.environ["MLFLOW_EXPERIMENT_NAME"] = job.mlflow_experiment
    return {"report_to": "mlflow", "run_name": f"{job.method} with {job.backend}"}
