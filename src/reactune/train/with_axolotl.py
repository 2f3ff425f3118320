"""LoRA with Axolotl on a GPU, as a process in an environment of its own.

Axolotl reads a settings file made of the job; rows, order, schedule and files are those of
`with_trl`.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from reactune.records import write_atomically
from reactune.train.job import Job, tokens_of
from reactune.train.with_trl import (
    finish,
    kto_weights,
    last_layers,
    neighbours,
    processes,
    run,
    sft_row,
    warmup,
)

SETTINGS = "axolotl.yml"
ROWS = "axolotl.jsonl"


def main(argv: list[str]) -> int:
    """Train one job with Axolotl; the exit code is that of `with_trl.run`."""
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    return run(argv, train)


def train(folder: Path, job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Run the job from its last whole checkpoint, or from the start, and save the adapter."""
    started = time.monotonic()
    return finish(folder, job, rows, trainer_for(folder, job, rows), started=started)


def write_settings(folder: Path, job: Job, rows: list[dict[str, Any]]) -> Path:
    """Write Axolotl's rows and, after them, its settings; the path of these is returned."""
    prepared = [sft_row(row) for row in rows] if job.method == "sft" else rows
    lines = (json.dumps(with_mask(row)) for row in prepared)
    write_atomically(folder / ROWS, "".join(f"{line}\n" for line in lines))
    longest = max(map(tokens_of, rows))
    settings = axolotl_settings(folder, job, rows, longest=longest, layers=layers_of(job))
    # JSON is YAML, and needs no library.
    write_atomically(folder / SETTINGS, json.dumps(settings, indent=2))
    return folder / SETTINGS


def with_mask(row: dict[str, Any]) -> dict[str, Any]:
    """A row of SFT with an attention mask, by which Axolotl recognises rows of token ids."""
    return {**row, "attention_mask": [1] * len(row["input_ids"])} if "input_ids" in row else row


def layers_of(job: Job) -> int:
    """How many layers the base model has."""
    config = json.loads((Path(job.base_folder) / "config.json").read_text(encoding="utf-8"))
    return int(config["num_hidden_layers"])


def axolotl_settings(
    folder: Path, job: Job, rows: list[dict[str, Any]], *, longest: int, layers: int
) -> dict[str, Any]:
    """The job in Axolotl's settings: nothing shuffled, cut, packed or padded beyond the batch."""
    return {
        "base_model": job.base_folder,
        "tokenizer_type": "AutoTokenizer",
        "adapter": "qlora" if job.load_in_4bit else "lora",
        "load_in_4bit": job.load_in_4bit,
        "lora_r": job.lora_rank,
        "lora_alpha": job.lora_alpha,
        "lora_dropout": job.lora_dropout,
        "lora_target_linear": True,
        **layers_to_transform(layers, job.lora_layers),
        "datasets": [{"path": str(folder / ROWS), "ds_type": "json", **dataset_type(job)}],
        "dataset_prepared_path": str(folder / "cache" / "axolotl"),
        "shuffle_merged_datasets": False,
        "curriculum_sampling": True,
        "val_set_size": 0.0,
        "sequence_len": longest,
        "pad_to_sequence_len": False,
        "sample_packing": False,
        "micro_batch_size": job.batch_size // processes(),
        "gradient_accumulation_steps": 1,
        "max_steps": job.steps,
        "num_epochs": 1,
        "optimizer": "adamw_torch_fused",
        "weight_decay": 0.0,
        "learning_rate": job.learning_rate,
        "lr_scheduler": "cosine",
        "warmup_steps": warmup(job.steps),
        "max_grad_norm": 1.0,
        "bf16": job.dtype == "bfloat16",
        "fp16": False,
        "tf32": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": job.checkpoint_steps,
        "save_total_limit": 2,
        "seed": job.seed,
        "output_dir": str(folder / "checkpoints"),
        **live_steps(job),
        **preference_settings(job, rows),
    }


def live_steps(job: Job) -> dict[str, Any]:
    """Where each step is shown while it is trained; the server stands in the environment."""
    if not job.mlflow_experiment:
        return {"use_mlflow": False}
    return {
        "use_mlflow": True,
        "mlflow_experiment_name": job.mlflow_experiment,
        "mlflow_run_name": f"{job.method} with {job.backend}",
        "hf_mlflow_log_artifacts": False,
    }


def layers_to_transform(layers: int, wanted: int) -> dict[str, Any]:
    """Which layers get an adapter; nothing, which means all, where 0 are wanted."""
    chosen = last_layers(layers, wanted)
    return {} if chosen is None else {"peft_layers_to_transform": chosen}


def dataset_type(job: Job) -> dict[str, Any]:
    """How Axolotl reads the rows: token ids need no type; preferences name their columns."""
    if job.method == "sft":
        return {"type": ""}
    if job.method == "kto":
        names = {"field_prompt": "prompt_ids", "field_completion": "completion_ids"}
        return {"type": {**names, "field_label": "label"}}
    names = {"field_prompt": "prompt_ids", "field_chosen": "chosen_ids"}
    return {"type": {**names, "field_rejected": "rejected_ids"}}


def preference_settings(job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What KTO and DPO need beside the rest."""
    if job.method == "sft":
        return {}
    shared = {"rl": job.method, "rl_beta": job.beta, "remove_unused_columns": False}
    if job.method == "dpo":
        return shared
    liked_weight, disliked_weight = kto_weights(rows)
    return {
        **shared,
        "kto_desirable_weight": liked_weight,
        "kto_undesirable_weight": disliked_weight,
    }


def trainer_for(folder: Path, job: Job, rows: list[dict[str, Any]]) -> Any:
    """Axolotl's trainer; its rows and settings are written into the folder first."""
    file = write_settings(folder, job, rows)
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import TrainDatasetMeta, load_datasets
    from axolotl.train import setup_model_and_trainer
    from datasets import Dataset

    settings = load_cfg(str(file))
    if settings.rl:
        keep_token_ids(settings.micro_batch_size * processes())
        meta = TrainDatasetMeta(Dataset.from_list(rows), None, settings.max_steps)
    else:
        meta = load_datasets(cfg=settings)
    trainer = setup_model_and_trainer(settings, meta)[0]
    trainer.args.train_sampling_strategy = "sequential"
    return trainer


def keep_token_ids(batch_size: int) -> None:
    """Make Axolotl's KTO and DPO trainers take rows of token ids as they are."""
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
    from axolotl.core.trainers.trl import AxolotlKTOTrainer

    def as_they_are(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def with_neighbours(self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset.map(neighbours, batched=True, batch_size=batch_size)

    AxolotlDPOTrainer._prepare_dataset = as_they_are
    AxolotlKTOTrainer._prepare_dataset = with_neighbours


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
