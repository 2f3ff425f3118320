"""LoRA with Unsloth, as a process in an environment of its own.

Unsloth loads and patches the model; rows, order, schedule and files are those of `with_trl`.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from reactune.train.job import Job, tokens_of
from reactune.train.with_trl import finish, last_layers, prepare, run, targets_of


def main(argv: list[str]) -> int:
    """Train one job with Unsloth; the exit code is that of `with_trl.run`."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(Path(argv[0]).absolute().parent / "cache/unsloth")
    return run(argv, train)


def train(folder: Path, job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Run the job from its last whole checkpoint, or from the start, and save the adapter."""
    started = time.monotonic()
    return finish(folder, job, rows, trainer_for(folder, job, rows), started=started)


def trainer_for(folder: Path, job: Job, rows: list[dict[str, Any]]) -> Any:
    """TRL's trainer as Unsloth patches it, on Unsloth's model."""
    # Unsloth exchanges parts of transformers and TRL, so it is imported before them.
    from unsloth import FastLanguageModel

    def load(job: Job) -> Any:
        import torch

        model, _ = FastLanguageModel.from_pretrained(
            job.base_folder,
            max_seq_length=max(map(tokens_of, rows)),
            dtype=getattr(torch, job.dtype),
            load_in_4bit=job.load_in_4bit,
        )
        return FastLanguageModel.get_peft_model(
            model,
            r=job.lora_rank,
            lora_alpha=job.lora_alpha,
            lora_dropout=job.lora_dropout,
            target_modules=targets_of(model),
            layers_to_transform=last_layers(model.config.num_hidden_layers, job.lora_layers),
            use_gradient_checkpointing=False,
            random_state=job.seed,
        )

    return prepare(folder, job, rows, load)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
