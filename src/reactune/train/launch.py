"""How a trainer is started: with which back-end's Python, through which launcher.

What the trainer then does is in the modules of the back-ends; watching it is in `trainer.py`.
"""

import os
import sys
from pathlib import Path

import reactune
from reactune.config import TrainConfig
from reactune.process import child_environment
from reactune.train.backends import BACKENDS, python_of

PACKAGE = Path(reactune.__file__).parent


def command(settings: TrainConfig, job_file: Path) -> list[str]:
    """The command line of the trainer: its module alone, or behind a launcher.

    Launchers start workers that look for their parent, so the launcher itself is made to die
    with us first (`python -m reactune.process`).

    Raises:
        TrainingError: the back-end's environment is not there.
    """
    python = str(python_of(settings))
    worker = ["-m", BACKENDS[settings.backend].module, str(job_file)]
    if not settings.launcher:
        return [python, *worker]
    if settings.launcher == "ray":
        return [python, "-m", "reactune.train.with_ray", str(settings.processes), *worker[1:]]
    launcher = ["-m", *LAUNCHERS[settings.launcher](settings.processes)]
    return [sys.executable, "-m", "reactune.process", python, *launcher, *worker]


def _torchrun(processes: int) -> list[str]:
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def _accelerate(processes: int) -> list[str]:
    arguments = [
        "accelerate.commands.launch",
        f"--num_processes={processes}",
        "--num_machines=1",
        "--main_process_port=0",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]
    # "multi_gpu" means one process a device; on a CPU the trainer takes gloo all the same.
    return [*arguments, "--multi_gpu"] if processes > 1 else arguments


LAUNCHERS = {"torchrun": _torchrun, "accelerate": _accelerate}


def environment(settings: TrainConfig, folder: Path) -> dict[str, str]:
    """The trainer's environment; a back-end of its own sees our package and nothing else of ours.

    The package is linked into the job's folder, because the folder it lies in holds our own torch
    too.
    """
    variables = {**child_environment(), "PYTHONUNBUFFERED": "1"}
    if settings.launcher:
        threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.processes)
        variables["OMP_NUM_THREADS"] = str(threads)
    if BACKENDS[settings.backend].torch:
        link = folder / "code" / PACKAGE.name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(PACKAGE, target_is_directory=True)
        variables["PYTHONPATH"] = str(link.parent.absolute())
    return variables
