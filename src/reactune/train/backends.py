"""Where a trainer runs: its library, the environment that has it, and the command line.

A back-end that cannot share our environment gets one of its own, made of pinned requirements.
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Literal

from platformdirs import user_data_path

import reactune
from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.process import child_environment
from reactune.records import write_atomically
from reactune.runs.locks import lock
from reactune.train.job import METHODS, JobMethod

PACKAGE = Path(reactune.__file__).parent
MADE = "reactune.json"  # written last into an environment: what it was made from
PROBE_SECONDS = 300
KTO_LOSSES = ("kto", "apo_zero_unpaired")
HAS_GPU = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 9)"
FREE_GPU_MEMORY = "import torch; print(torch.cuda.mem_get_info()[0])"
HAS_MODULE = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"


@dataclass(frozen=True)
class Backend:
    """A library that trains. `torch` is installed first; empty: it runs in our environment."""

    module: str
    without_gpu: tuple[JobMethod, ...]
    torch: tuple[str, ...] = ()
    kto_losses: tuple[str, ...] = KTO_LOSSES


BACKENDS = {
    "trl": Backend("reactune.train.with_trl", METHODS),
    "unsloth": Backend(
        "reactune.train.with_unsloth",
        ("sft",),
        ("torch==2.14.1", "torchvision==0.29.1", "triton"),
    ),
    "axolotl": Backend(
        "reactune.train.with_axolotl", (), ("torch==2.13.0", "triton"), kto_losses=("kto",)
    ),
}
OWN = tuple(name for name, backend in BACKENDS.items() if backend.torch)


def usable_methods(settings: TrainConfig) -> tuple[JobMethod, ...]:
    """The methods that the back-end trains on this machine; without a GPU they are fewer.

    Raises:
        TrainingError: its environment or its launcher is missing, or it cannot train the method
            of the settings on this machine.
    """
    backend = BACKENDS[settings.backend]
    python = python_of(settings)
    if settings.launcher == "ray" and not has_module(python, "ray"):
        raise TrainingError(
            f"[train] launcher = 'ray', but {python} has none; run `{quote(str(python))} -m pip "
            "install 'ray[train]'`, or take launcher = 'torchrun'"
        )
    if settings.mlflow_experiment:
        require_mlflow(settings.mlflow_experiment, python)
    if settings.load_in_4bit:
        require_4bit(python)
    has_all = backend.without_gpu == METHODS or has_gpu(python)
    able: tuple[JobMethod, ...] = METHODS if has_all else backend.without_gpu
    if settings.kto_loss not in backend.kto_losses:
        able = tuple(method for method in able if method != "kto")
    if able and settings.method in ("auto", *able):
        return able
    why = f"with kto_loss = {settings.kto_loss!r}"
    if not has_all:
        why = f"without a GPU, and {python} sees none (torch.cuda.is_available() is false)"
    raise TrainingError(
        f"[train] backend = {settings.backend!r} trains {' and '.join(able) or 'nothing'} {why}; "
        f"method = {settings.method!r} needs another machine, another kto_loss, or backend = 'trl'"
    )


def require_mlflow(experiment: str, python: Path) -> None:
    """Check that a trainer can log its steps to MLflow.

    Raises:
        TrainingError: no server is named, or the trainer's environment has no MLflow.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise TrainingError(
            f"[train] mlflow_experiment = {experiment!r}, but the environment variable "
            "MLFLOW_TRACKING_URI names no MLflow server; set it, or leave the setting empty"
        )
    if not has_module(python, "mlflow"):
        raise TrainingError(
            f"[train] mlflow_experiment = {experiment!r}, but {python} has no MLflow; run "
            f"`{quote(str(python))} -m pip install mlflow-skinny`, or leave the setting empty"
        )


def require_4bit(python: Path) -> None:
    """Check that a trainer can hold a model in 4 bits.

    Raises:
        TrainingError: there is no GPU, or the trainer's environment has no bitsandbytes.
    """
    if not has_gpu(python):
        raise TrainingError(
            f"[train] load_in_4bit = true, but {python} sees no GPU: on a CPU 4 bits are unpacked "
            "for every product, so training is slower than in float32; set it to false, or take a "
            "smaller [model] base"
        )
    if not has_module(python, "bitsandbytes"):
        raise TrainingError(
            f"[train] load_in_4bit = true, but {python} has no bitsandbytes; run "
            f"`{quote(str(python))} -m pip install 'bitsandbytes>=0.48'`, or set it to false"
        )


def command(settings: TrainConfig, job_file: Path) -> list[str]:
    """The command line of the trainer: its module alone, or behind a launcher.

    Workers end when their parent ends, so the launcher itself is tied to this process first
    (`python -m reactune.process`).

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
    """The trainer's environment variables; of our environment it sees our package alone.

    The package is linked into the job's folder, because the folder that holds it holds our torch
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


def install(name: str, settings: TrainConfig, *, say: Callable[[str], None]) -> Path:
    """Make the back-end's environment, unless it is there and whole; its folder is returned.

    torch comes first and alone, so that this machine's own build is kept; the rest is pinned and
    taken as it is. An environment that a kill left unfinished is made anew.

    Raises:
        TrainingError: pip failed, or another process makes it at this moment.
    """
    folder = folder_of(name, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{name}.lock")):
        if is_made(name, folder):
            say(f"{name}: {folder} exists already")
            return folder
        say(f"{name}: making {folder} with Python {sys.version.split()[0]}")
        venv.create(folder, clear=True, with_pip=True)
        say(f"{name}: {' and '.join(BACKENDS[name].torch)} (gigabytes)")
        _pip(folder, BACKENDS[name].torch)
        say(f"{name}: {requirements_of(name).name}")
        _pip(folder, ("--no-deps", "-r", str(requirements_of(name))))
        write_atomically(folder / MADE, json.dumps({"backend": name, "digest": digest_of(name)}))
    say(f"{name}: ready")
    return folder


def _pip(folder: Path, wanted: Sequence[str]) -> None:
    """Run the environment's pip; it writes to our terminal and ends with this process."""
    python = str(python_in(folder))
    call = [sys.executable, "-m", "reactune.process", python, "-m", "pip", "install", *wanted]
    done = subprocess.run([*call, "--no-input"], env=child_environment(), check=False)
    if done.returncode != 0:
        raise TrainingError(
            f"pip ended with code {done.returncode}, see above; run the same command again"
        )


@dataclass(frozen=True)
class BackendState:
    """Where a back-end is, and the command that installs it where it cannot be used as it is."""

    name: str
    state: Literal["part of reactune[train]", "installed", "out of date", "not installed"]
    folder: Path | None
    install: str | None = None


def states(settings: TrainConfig) -> list[BackendState]:
    """The state of every back-end."""
    return [_state(name, folder_of(name, settings)) for name in BACKENDS]


def _state(name: str, folder: Path) -> BackendState:
    if name not in OWN:
        return BackendState(name, "part of reactune[train]", Path(sys.prefix))
    if is_made(name, folder):
        return BackendState(name, "installed", folder)
    install = f"reactune backend install {name}"
    if (folder / MADE).is_file():
        return BackendState(name, "out of date", folder, install)
    return BackendState(name, "not installed", None, install)


def python_of(settings: TrainConfig) -> Path:
    """The Python that runs the trainer of these settings.

    Raises:
        TrainingError: the back-end's environment is not there, or made from other requirements.
    """
    name = settings.backend
    if not BACKENDS[name].torch:
        return Path(sys.executable)
    folder = folder_of(name, settings)
    if not is_made(name, folder):
        state = "is out of date" if (folder / MADE).is_file() else "is not there"
        raise TrainingError(
            f"[train] backend = {name!r}: its environment {folder} {state}; "
            f"run `reactune backend install {name}`"
        )
    return python_in(folder)


def python_in(folder: Path) -> Path:
    """The Python of a virtual environment."""
    return folder / "bin" / "python"


def is_made(name: str, folder: Path) -> bool:
    """Whether a back-end's environment is whole, and of the requirements of this version."""
    try:
        made = json.loads((folder / MADE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(made.get("digest") == digest_of(name)) and python_in(folder).exists()


def folder_of(name: str, settings: TrainConfig) -> Path:
    """Where a back-end's environment is, or would be made."""
    root = settings.backend_folder
    return (settings.path(root) if root else user_data_path("reactune") / "backends") / name


def requirements_of(name: str) -> Path:
    """The file of pinned requirements of a back-end with an environment of its own."""
    return Path(__file__).parent / "requirements" / f"{name}.txt"


def digest_of(name: str) -> str:
    """What an environment is made from, as a SHA-256."""
    text = "\n".join(BACKENDS[name].torch) + "\n" + requirements_of(name).read_text("utf-8")
    return sha256(text.encode()).hexdigest()


@cache
def has_gpu(python: Path) -> bool:
    """Whether the torch of an environment sees a GPU (CUDA or ROCm).

    Raises:
        TrainingError: its torch cannot be imported.
    """
    found = subprocess.run(
        [str(python), "-I", "-c", HAS_GPU],
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if found.returncode not in (0, 9):
        last = found.stderr.strip().rpartition("\n")[2]
        raise TrainingError(
            f"{python} cannot import torch: {last[:300]}; run `reactune backend install` again"
        )
    return found.returncode == 0


def free_gpu_memory(python: Path) -> int:
    """Free bytes of the GPU that the torch of an environment takes first.

    Raises:
        TrainingError: it does not tell.
    """
    found = subprocess.run(
        [str(python), "-I", "-c", FREE_GPU_MEMORY],
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
        check=False,
    )
    if found.returncode != 0 or not found.stdout.strip().isdigit():
        last = found.stderr.strip().rpartition("\n")[2]
        raise TrainingError(f"{python} does not tell how much memory its GPU has: {last[:300]}")
    return int(found.stdout)


def has_module(python: Path, module: str) -> bool:
    """Whether an environment has a module."""
    return not subprocess.run([str(python), "-I", "-c", HAS_MODULE, module], check=False).returncode
