"""One GPU in five minutes: the same job with TRL, Unsloth and Axolotl, then a served file.

A Llama of about a billion random weights (or a model you name) learns rows of random tokens whose
lengths are those of real prompts and tips: tokens a second, memory and loss of each back-end. The
first adapter is merged, converted and answers. Without a GPU it says so and ends with code 1.
`--estimate` prints what docs/gpu.md expects of larger models, by arithmetic alone.
"""

import argparse
import random
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from reactune.config.sections import (
    ExportConfig,
    ModelConfig,
    PromptConfig,
    ServeConfig,
    TrainConfig,
)
from reactune.errors import ReleaseError, TrainingError
from reactune.model import files
from reactune.model.files import BaseModel, Shape, base_model
from reactune.model.logprobs import best_dtype
from reactune.model.prompt import assemble, load_chat
from reactune.records import Sampling
from reactune.release.gguf import export_release
from reactune.release.runtimes import connect
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
TRAINING_SECONDS = 60  # of one back-end, so that all three and the rest take five minutes
ANSWERS = 8
# Layers, widths, vocabulary and tied embeddings, of the models' own config.json.
MODELS = {
    "Llama 3.2 1B": Shape(16, 2_048, 8_192, 2_048, 512, 128_256, True),
    "Qwen 2.5 0.5B": Shape(24, 896, 4_864, 896, 128, 151_936, True),
    "Qwen 2.5 1.5B": Shape(28, 1_536, 8_960, 1_536, 256, 151_936, True),
    "Qwen 2.5 3B": Shape(36, 2_048, 11_008, 2_048, 256, 151_936, True),
    "Qwen 2.5 7B": Shape(28, 3_584, 18_944, 3_584, 512, 152_064, False),
}
# Dense bfloat16 products in 10**12 operations a second, of NVIDIA's data sheets, and the share of
# it that such a training reaches.
PEAKS = {"L4": 121, "A100": 312, "H100": 989}
REACHED = 0.3


def expected_memory(shape: Shape, *, four_bit: bool, batch: int, tokens: int = 384) -> float:
    """GiB at the peak of training in bfloat16, as `reactune doctor` estimates it."""
    settings = TrainConfig(batch_size=batch, load_in_4bit=four_bit)
    return files.memory_needed(shape, settings, sequence_tokens=tokens, number=files.HALF) / 2**30


def expected_speed(shape: Shape, peak: float) -> float:
    """Tokens a second: two operations a weight forward, two backward, none for frozen weights."""
    return REACHED * peak * 1e12 / (4 * shape.parameters)


def batch_for(shape: Shape, *, gib: float) -> int:
    """The largest batch of a power of two, up to 16, that fits with the weights in bfloat16.

    Two, where even that does not fit.
    """
    fitting = [b for b in (2, 4, 8, 16) if expected_memory(shape, four_bit=False, batch=b) <= gib]
    return max(fitting, default=2)


def estimates(*, gib: float = 24.0) -> list[str]:
    """The table of docs/gpu.md, for a GPU of this size."""
    lines = [
        "| model | weights, million | `batch_size` | memory, GiB | with `load_in_4bit` | "
        + " | ".join(f"tokens a second, {name}" for name in PEAKS)
        + " | minutes for a million tokens, L4 | Q8_0 file, GB |",
        "|---" * (7 + len(PEAKS)) + "|",
    ]
    for name, shape in MODELS.items():
        batch = batch_for(shape, gib=gib)
        memory = [expected_memory(shape, four_bit=bits, batch=batch) for bits in (False, True)]
        speeds = [expected_speed(shape, peak) for peak in PEAKS.values()]
        cells = [
            name,
            f"{shape.parameters / 1e6:,.0f}",
            str(batch),
            *(f"{size:.1f}" for size in memory),
            *(f"{speed:,.0f}" for speed in speeds),
            f"{1e6 / speeds[0] / 60:.0f}",
            f"{shape.parameters * 34 / 32 / 1e9:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


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


def job_for(base: Path, rows: list[dict[str, Any]], *, settings: TrainConfig, dtype: str) -> Job:
    """The job that every back-end gets: all rows once, as far as the time goes."""
    return plan_job(
        "sft",
        rows,
        base_folder=base,
        settings=settings,
        dtype=dtype,
        max_seconds=TRAINING_SECONDS,
    )


def settings_for(
    backend: str, backend_folder: str = "", *, load_in_4bit: bool = False
) -> TrainConfig:
    """Settings that let the rows or the clock, not a budget, end the training."""
    return TrainConfig(
        backend=backend,
        backend_folder=backend_folder,
        method="sft",
        batch_size=16,
        token_budget=10**9,
        checkpoint_steps=10**6,
        load_in_4bit=load_in_4bit,
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


def base_of(options: argparse.Namespace, place: Path) -> BaseModel:
    """The model that is named, or one of random weights, whose tokenizer is that of a GGUF."""
    if options.model:
        return base_model(ModelConfig(base=str(options.model)))
    made = base_model(ModelConfig(base=str(make_model(place, BILLION, seed=options.seed))))
    return replace(made, gguf=base_model(ModelConfig()).gguf)


def released(base: BaseModel, adapter: Path, folder: Path, *, serve: ServeConfig) -> dict[str, Any]:
    """Merge the adapter, convert the model and ask the model server; seconds, size and speed."""
    chat = load_chat(base.folder, PromptConfig())
    started = time.monotonic()
    release = export_release(base, chat, adapter, folder, run_id="gpu", settings=ExportConfig())
    exported = time.monotonic()
    sampling = Sampling(serve.temperature, serve.top_p, serve.max_tokens, seed=1)
    prompts = [assemble(chat, "tip", {"free_text": f"task {n}"}) for n in range(ANSWERS)]
    with closing(connect(serve)) as runtime:
        runtime.publish(release)
        loaded = time.monotonic()
        answers = [runtime.generate(release, prompt.text, sampling) for prompt in prompts]
    written = sum(answer.tokens for answer in answers)
    return {
        "merge_and_convert_seconds": round(exported - started, 1),
        "file_mb": round(release.gguf.stat().st_size / 1e6),
        "load_seconds": round(loaded - exported, 1),
        "served_tokens_per_second": round(written / (time.monotonic() - loaded), 1),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model folder instead of random weights")
    parser.add_argument("--rows", type=int, default=1_600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend-folder", default="")
    parser.add_argument("--load-in-4bit", action="store_true", help="QLoRA")
    parser.add_argument("--estimate", action="store_true", help="print the table of docs/gpu.md")
    return parser.parse_args()


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Train with every back-end that is installed, release the first adapter; print and return."""
    figures: dict[str, Any] = {}
    rows = random_rows(options.rows, seed=options.seed)
    base = base_of(options, place / "base")
    adapter = None
    for backend in BACKENDS:
        settings = settings_for(backend, options.backend_folder, load_in_4bit=options.load_in_4bit)
        try:
            usable_methods(settings)
            job = job_for(base.folder, rows, settings=settings, dtype=best_dtype())
            trained = train(place / backend, job, rows, settings=settings)
            adapter = adapter or trained.adapter
            figures[backend] = figures_of(place / backend, trained)
        except TrainingError as error:
            figures[backend] = {"failed": str(error)}
        print(f"{backend:8} " + ", ".join(f"{k} {v}" for k, v in figures[backend].items()))
    if adapter is not None:
        try:
            figures["release"] = released(base, adapter, place / "release", serve=ServeConfig())
        except ReleaseError as error:
            figures["release"] = {"failed": str(error)}
        print("release  " + ", ".join(f"{k} {v}" for k, v in figures["release"].items()))
    return figures


def main() -> None:
    """Measure, and keep the figures."""
    options = arguments()
    if options.estimate:
        print("\n".join(estimates()))
        return
    if not has_gpu(Path(sys.executable)):
        sys.exit(f"no GPU: torch of {sys.executable} sees none, so nothing was measured")
    import torch

    facts = {"gpu": torch.cuda.get_device_name(), "rows": options.rows, "seed": options.seed}
    facts["load_in_4bit"] = options.load_in_4bit
    with tempfile.TemporaryDirectory() as place:
        figures = facts | measure(options, Path(place))
    kept = record("gpu", figures, packages=("torch", "transformers", "trl", "peft"))
    print(f"kept in {kept.name}")


if __name__ == "__main__":
    main()
