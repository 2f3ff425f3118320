"""How a trainer is started: its command line, its environment, one process or several."""

import sys
from pathlib import Path

import numpy as np
import pytest

from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.train.backends import command, environment
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


JOB = Path("/runs/1/train/sft/job.json")


def test_without_a_launcher_the_trainer_is_a_module_of_this_python():
    assert command(TrainConfig(), JOB) == [
        sys.executable,
        "-m",
        "reactune.train.with_trl",
        str(JOB),
    ]


@pytest.mark.parametrize(
    ("launcher", "module", "options"),
    [
        ("torchrun", "torch.distributed.run", {"--standalone", "--nproc-per-node=3"}),
        (
            "accelerate",
            "accelerate.commands.launch",
            {"--num_processes=3", "--multi_gpu", "--mixed_precision=no", "--num_machines=1"},
        ),
    ],
)
def test_a_launcher_is_tied_to_this_process_and_starts_the_same_module(launcher, module, options):
    line = command(TrainConfig(launcher=launcher, processes=3), JOB)
    assert line[:6] == [sys.executable, "-m", "reactune.process", sys.executable, "-m", module]
    assert options <= set(line)
    assert line[-3:] == ["-m", "reactune.train.with_trl", str(JOB)]


def test_accelerate_with_one_process_is_not_asked_for_several_devices():
    assert "--multi_gpu" not in command(TrainConfig(launcher="accelerate"), JOB)


def test_ray_gets_the_number_of_processes_and_the_module():
    line = command(TrainConfig(launcher="ray", processes=2), JOB)
    assert line == [
        sys.executable, "-m", "reactune.train.with_ray", "2", "reactune.train.with_trl", str(JOB),
    ]  # fmt: skip


def test_no_command_line_without_the_environment_of_the_backend(tmp_path):
    settings = TrainConfig(backend="axolotl", backend_folder=str(tmp_path))
    with pytest.raises(TrainingError, match="run `reactune backend install axolotl`"):
        command(settings, JOB)


def test_launched_processes_share_the_threads(tmp_path):
    given = environment(TrainConfig(launcher="torchrun", processes=2, threads=3), tmp_path)
    assert given["OMP_NUM_THREADS"] == "3"
    many = environment(TrainConfig(launcher="torchrun", processes=10_000), tmp_path)
    assert many["OMP_NUM_THREADS"] == "1"
    assert environment(TrainConfig(), tmp_path)["PYTHONUNBUFFERED"] == "1"


def test_a_package_that_was_linked_before_is_linked_again(tmp_path):
    settings = TrainConfig(backend="unsloth")
    assert environment(settings, tmp_path)["PYTHONPATH"] == str(tmp_path / "code")
    assert environment(settings, tmp_path)["PYTHONPATH"] == str(tmp_path / "code")
    assert (tmp_path / "code" / "reactune" / "__init__.py").is_file()
