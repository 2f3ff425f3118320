"""Several processes through Ray Train: `python -m reactune.train.with_ray N MODULE job.json`.

Ray starts the workers; each is the same trainer that torchrun would start.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from reactune.process import die_with_parent

# Environment variables of this process that the workers get too.
PASSED_ON = ("PYTHONPATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "HF_HUB_OFFLINE")


def main(argv: list[str]) -> int:
    """Train one job on a cluster of this machine, or on the one that `RAY_ADDRESS` names.

    The exit code is 0, or 1 if a worker failed; Ray's report is on the error stream.
    """
    die_with_parent()
    # By default Ray's workers have the lowest priority: on a busy machine they would starve.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import torch
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    processes, module, job = int(argv[0]), argv[1], Path(argv[2]).absolute()
    has_gpu = torch.cuda.is_available()
    address = os.environ.get("RAY_ADDRESS")
    ray.init(
        address=address,
        num_cpus=None if address else max(processes, os.cpu_count() or 1),
        include_dashboard=False,
        runtime_env={
            "env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        },
    )
    trainer = TorchTrainer(
        work,
        train_loop_config={"module": module, "job": str(job)},
        scaling_config=ScalingConfig(num_workers=processes, use_gpu=has_gpu),
        torch_config=TorchConfig(backend="nccl" if has_gpu else "gloo"),
        run_config=RunConfig(storage_path=str(job.parent / "ray")),
    )
    trainer.fit()
    ray.shutdown()
    return 0


def work(config: dict[str, Any]) -> None:
    """What each worker does: the trainer's own main function."""
    code = importlib.import_module(config["module"]).main([config["job"]])
    if code != 0:
        raise RuntimeError(f"{config['module']} ended with code {code}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
