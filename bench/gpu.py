"""The same job with TRL, Unsloth and Axolotl on one GPU: tokens a second, memory and loss.

A Llama of about a billion random weights (or a model you name) learns rows of random tokens whose
lengths are those of real prompts and tips. Without a GPU it says so and ends with code 1.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from reactune.config.sections import ModelConfig, TrainConfig
from reactune.errors import TrainingError
from reactune.model.files import base_model
from reactune.model.logprobs import best_dtype
from reactune.train.backends import BACKENDS, has_gpu, usable_methods
from reactune.train.job import Job
from reactune.train.trainer import Trained, plan_job, read_progress, train
from record import record

BILLION = {
    "hidden_size": 2_048,
    "intermediate_size": 8_192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PROMPT_TOKENS, COMPLETION_TOKENS = (200, 400), (20, 64)
LAST = 10  # steps whose mean loss is compared


def make_model(folder: Path, shape: dict[str, int], *, seed: int) -> Path:
    """Write a Llama of random weights, with the tokenizer of the small base model."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=49_152, tie_word_embeddings=True, pad_token_id=2, **shape)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(base_model(ModelConfig()).folder / name, folder / name)
    return folder


def random_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Rows of SFT; few different tokens, so that there is something to learn."""
    draw = random.Random(seed)
    return [
        {
            "prompt_ids": draw.choices(range(100, 400), k=draw.randint(*PROMPT_TOKENS)),
            "completion_ids": [
                *draw.choices(range(100, 400), k=draw.randint(*COMPLETION_TOKENS)),
                2,
            ],
        }
        for _ in range(count)
    ]


def job_for(base: Path, rows: list[dict[str, Any]], *, backend: str, dtype: str) -> Job:
    """The job that every back-end gets: all rows once."""
    settings = settings_for(backend)
    return plan_job(
        "sft", rows, base_folder=base, settings=settings, dtype=dtype, max_seconds=3_600
    )


def settings_for(backend: str, backend_folder: str = "") -> TrainConfig:
    """Settings that let the rows, not a budget, end the training."""
    return TrainConfig(
        backend=backend,
        backend_folder=backend_folder,
        method="sft",
        batch_size=16,
        token_budget=10**9,
        checkpoint_steps=10**6,
    )


def figures_of(folder: Path, trained: Trained) -> dict[str, Any]:
    """What is shown and kept of one training."""
    last = [loss for _, loss in trained.curve[-LAST:]]
    return {
        "tokens_per_second": round(read_progress(folder)[-1]["tokens_per_second"]),
        "peak_gpu_gib": round((trained.peak_gpu_bytes or 0) / 2**30, 2),
        "loss": round(sum(last) / len(last), 4),
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
    }


def main() -> None:
    """Train with every back-end that is installed, print the table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder instead of random weights")
    parser.add_argument("--rows", type=int, default=1_600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend-folder", default="")
    options = parser.parse_args()
    if not has_gpu(Path(sys.executable)):
        sys.exit(f"no GPU: torch of {sys.executable} sees none, so nothing was measured")
    import torch

    figures = {"gpu": torch.cuda.get_device_name(), "rows": options.rows, "seed": options.seed}
    rows = random_rows(options.rows, seed=options.seed)
    with tempfile.TemporaryDirectory() as place:
        base = options.model or make_model(Path(place) / "base", BILLION, seed=options.seed)
        for backend in BACKENDS:
            settings, folder = settings_for(backend, options.backend_folder), Path(place) / backend
            try:
                usable_methods(settings)
                job = job_for(base, rows, backend=backend, dtype=best_dtype())
                trained = train(folder, job, rows, settings=settings)
            except TrainingError as error:
                print(f"{backend:8} {error}")
                figures[backend] = {"failed": str(error)}
                continue
            figures[backend] = figures_of(folder, trained)
            print(f"{backend:8} " + ", ".join(f"{k} {v}" for k, v in figures[backend].items()))
    print(
        f"kept in {record('gpu', figures, packages=('torch', 'transformers', 'trl', 'peft')).name}"
    )


if __name__ == "__main__":
    main()
