"""How many tokens a second a LoRA step trains: by number type, and by the order of rows.

Rows are the demo's tips (SFT), or, with `--pairs FILE` (JSONL of kind, context, chosen, rejected),
pairs (DPO). Every cell is a real trainer process; cells take turns, and the first step of each,
which warms up, does not count. Tokens are those of the rows, without padding.
"""

import argparse
import json
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reactune.config.sections import ModelConfig, PromptConfig, TrainConfig
from reactune.demo.pool import read_pool
from reactune.evaluate.pairs import pair_rows, read_pairs
from reactune.model.files import base_model
from reactune.model.logprobs import best_dtype
from reactune.model.prompt import Chat, assemble, completion_ids, load_chat
from reactune.train.job import Job, JobMethod, read_rows, tokens_of, write_job
from reactune.train.trainer import plan_job, read_progress, run_trainer
from record import record

TYPES = ("float32", "bfloat16")
ORDERS = ("by length", "at random")
Row = dict[str, Any]


def rows_to_train(chat: Chat, pairs: Path | None, count: int) -> tuple[JobMethod, list[Row]]:
    """That many rows, drawn by a seed, and the method that reads them."""
    draw = random.Random(7)
    if pairs is None:
        tips = draw.sample(read_pool().tips, count)
        prompts = [assemble(chat, t.situation.kind, t.situation.context).token_ids for t in tips]
        return "sft", [
            {"prompt_ids": list(prompt), "completion_ids": list(completion_ids(chat, tip.text))}
            for prompt, tip in zip(prompts, tips, strict=True)
        ]
    found = [pair_rows(chat, pair) for pair in draw.sample(read_pairs(pairs), count)]
    return "dpo", [
        {"prompt_ids": list(prompt), "chosen_ids": list(chosen), "rejected_ids": list(rejected)}
        for (prompt, chosen), (_, rejected) in found
    ]


def tokens_per_second(folder: Path, job: Job, rows: list[Row], order: str) -> float:
    """Train the job in a folder; the rate over all steps but the first."""
    write_job(folder, job, rows)
    if order == "at random":
        table = pa.Table.from_pylist(random.Random(1).sample(rows, len(rows)))
        pq.write_table(table, folder / job.rows)
    if run_trainer(folder, TrainConfig(), None) != 0:
        raise SystemExit((folder / "trainer.log").read_text())
    # Seconds since the start, from what the trainer says of its rate so far.
    mean = job.batch_size * statistics.fmean(map(tokens_of, rows))
    lines = read_progress(folder)
    at = [line["step"] * mean / line["tokens_per_second"] for line in (lines[0], lines[-1])]
    trained = read_rows(folder, job)[job.batch_size :]
    return sum(map(tokens_of, trained)) / (at[1] - at[0])


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    base = base_model(ModelConfig())
    settings = TrainConfig()
    count = options.steps * settings.batch_size
    method, rows = rows_to_train(load_chat(base.folder, PromptConfig()), options.pairs, count)
    job = plan_job(
        method, rows, base_folder=base.folder, settings=settings, dtype="", max_seconds=3600
    )
    rates: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for dtype in TYPES:
            for order in ORDERS:
                with tempfile.TemporaryDirectory() as folder:
                    rate = tokens_per_second(Path(folder), replace(job, dtype=dtype), rows, order)
                rates.setdefault(f"{dtype}, {order}", []).append(rate)
                print(f"{method} {dtype:8} {order:10} {rate:6.0f} tokens/s", flush=True)
    medians = {cell: statistics.median(values) for cell, values in rates.items()}
    plain = medians["bfloat16, at random"]
    for cell, value in medians.items():
        print(f"{cell:22} {value:6.0f} tokens/s, {value / plain:.2f} of bfloat16 at random")
    print(f"chosen on this machine: {best_dtype()}, by length")
    figures = {"method": method, "rows": len(rows), "chosen": best_dtype(), "tokens/s": rates}
    print(record("training", json.loads(json.dumps(figures)), packages=("torch", "trl")))


if __name__ == "__main__":
    main()
