"""A cell of the bench of training, on the tiny model: ours and TRL's, in a process each."""

import json
import subprocess
import sys

import pytest

from places import BENCH
from reactune.config.sections import TrainConfig
from reactune.train.job import write_job
from reactune.train.trainer import plan_job

SCRIPT = BENCH / "training_cell.py"
CELLS = ("ours", "TRL", "TRL, bf16")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_ours_and_trls_training_take_the_same_rows_and_come_to_like_losses(
    method, tiny, rows, tmp_path
):
    settings = TrainConfig(batch_size=4, lora_rank=4, epochs=1, threads=1)
    job = plan_job(
        method, rows[method], base_folder=tiny, settings=settings, dtype="float32", max_seconds=600
    )
    losses = []
    for cell in CELLS:
        folder = tmp_path / cell.replace(", ", "-")
        write_job(folder, job, rows[method])
        (folder / "held_out.json").write_text(json.dumps(rows[method][:6]))
        subprocess.run([sys.executable, SCRIPT, folder, cell], check=True, timeout=300)
        found = json.loads((folder / "found.json").read_text())
        assert found["steps"] == job.steps
        assert found["rows_per_second"] > 0
        losses.append(found["held_out_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=0.02)
