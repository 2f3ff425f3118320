"""More than one process: launchers, ranks, and the loss of one process."""

import numpy as np
import pytest

from reactune.config.sections import TrainConfig
from reactune.train.trainer import plan_job, read_progress, train

SETTINGS = TrainConfig(
    batch_size=4, lora_rank=4, lora_alpha=8, learning_rate=5e-3, checkpoint_steps=50, threads=1
)
# Sums of floats in another order: what two processes may differ by, relative to the loss.
TOLERANCE = 1e-4


def losses(folder, tiny, rows, method, **changes):
    settings = SETTINGS.model_copy(update={"preference_learning_rate": 5e-3, **changes})
    job = plan_job(
        method, rows[method], base_folder=tiny, settings=settings, dtype="float32", max_seconds=600
    )
    trained = train(folder, job, rows[method], settings=settings)
    assert [line["step"] for line in read_progress(folder)] == list(range(1, job.steps + 1))
    assert trained.steps == job.steps
    return np.array([loss for _, loss in trained.curve])


@pytest.mark.parametrize(
    ("launcher", "method"),
    [
        pytest.param("torchrun", "sft", marks=pytest.mark.slow),
        pytest.param("accelerate", "sft", marks=pytest.mark.slow),
        pytest.param("torchrun", "kto", marks=pytest.mark.slow),
        pytest.param("torchrun", "dpo", marks=pytest.mark.slow),
        pytest.param("ray", "sft", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_of_one(tiny, rows, tmp_path, launcher, method):
    if launcher == "ray":
        pytest.importorskip("ray", reason="Ray is not here; `pip install 'reactune[ray]'`")
    alone = losses(tmp_path / "one", tiny, rows, method)
    both = losses(tmp_path / "two", tiny, rows, method, launcher=launcher, processes=2)
    assert len(alone) > 4
    np.testing.assert_allclose(both, alone, rtol=TOLERANCE)
