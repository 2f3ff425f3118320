"""How fast a LoRA step trains beside TRL as it comes: rows a second, memory, and held-out loss.

`bench/training.py --data FOLDER --folder FOLDER` trains SFT, KTO and DPO on the same headlines with
as many steps of as many rows, each cell in a process of its own, in turns, once for each seed:

* `ours`: the trainer of a run, all layers, in the faster type of this machine;
* `TRL`: the same adapter with TRL's own trainer and defaults, without checkpointing of gradients;
* `TRL, bf16`: the same with autocast;
* `ours, a third of the layers`: what a team gives up speed for, or quality.

Rows a second count all steps but the first, which warms up, and whatever scores rows for a
reference. Every cell is written to the second folder when it is done; an interrupted bench goes on.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from reactune.config.sections import ModelConfig, PromptConfig, TrainConfig
from reactune.evaluate.pairs import read_pairs
from reactune.model.files import BaseModel, base_model
from reactune.model.logprobs import best_dtype
from reactune.model.prompt import assemble, load_chat
from reactune.train.job import JobMethod, write_job
from reactune.train.trainer import pair_row, plan_job
from record import Cells, record

CELLS = ("ours", "TRL", "TRL, bf16", "ours, a third of the layers")
METHODS: tuple[JobMethod, ...] = ("sft", "kto", "dpo")
HELD_OUT = 64
GOALS = {"sft": 3.5, "kto": 4.0, "dpo": 4.0}  # times TRL as it comes
GOAL_BF16 = 2.0
Row = dict[str, Any]


def rows_of(base: BaseModel, file: Path, count: int, seed: int) -> dict[JobMethod, list[Row]]:
    """That many rows for each method, drawn by the seed: pairs, and their texts with labels."""
    chat = load_chat(base.folder, PromptConfig())
    pairs, judged = [], []
    for pair in random.Random(seed).sample(read_pairs(file), count):
        prompt = assemble(chat, pair.kind, pair.context).token_ids
        row = pair_row(chat, prompt, pair.chosen, pair.rejected)
        pairs.append(row)
        for name, label in (("chosen_ids", True), ("rejected_ids", False)):
            judged.append(
                {"prompt_ids": row["prompt_ids"], "completion_ids": row[name], "label": label}
            )
    liked = [row for row in judged if row["label"]]
    return {"sft": liked, "kto": judged[:count], "dpo": pairs}


def measured(
    base: BaseModel,
    folder: Path,
    cell: str,
    method: JobMethod,
    rows: list[Row],
    held_out: list[Row],
    *,
    seed: int,
) -> dict[str, Any]:
    """What the process of a cell says, with its peak memory."""
    settings = TrainConfig(seed=seed, epochs=1, token_budget=10**9)
    job = plan_job(
        method,
        rows,
        base_folder=base.folder,
        settings=settings,
        dtype=best_dtype(),
        max_seconds=10**6,
    )
    if cell.endswith("layers"):
        job = replace(job, lora_layers=10)
    write_job(folder, job, rows)
    (folder / "held_out.json").write_text(json.dumps(held_out))
    script = Path(__file__).with_name("training_cell.py")
    process = subprocess.Popen([sys.executable, script, folder, cell], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the process of {cell}, {method} ended with status {status}")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return {**found, "peak_mb": usage.ru_maxrss / 1024}


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Medians over seeds, and ratios of each seed's own turn."""
    figures: dict[str, Any] = {}
    for method, cells in found.items():
        for cell, some in cells.items():
            losses = [each["held_out_loss"] for each in some]
            ratios = [
                own["rows_per_second"] / theirs["rows_per_second"]
                for own, theirs in zip(cells["ours"], some, strict=True)
            ]
            figures[f"{method}, {cell}"] = {
                "rows_per_second": statistics.median(each["rows_per_second"] for each in some),
                "ours is times as fast": [min(ratios), statistics.median(ratios), max(ratios)],
                "peak_mb": max(each["peak_mb"] for each in some),
                "held_out_loss": losses,
            }
    return figures


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    base = base_model(ModelConfig())
    cells = Cells(options.folder / "cells")
    count = options.steps * TrainConfig().batch_size
    file = options.data / "upworthy" / "pairs_train.jsonl"
    methods = [method for method in METHODS if method in options.methods.split(",")]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in range(1, options.seeds + 1):
        drawn = rows_of(base, file, count + HELD_OUT, seed)
        for method in methods:
            rows, held_out = drawn[method][:count], drawn[method][count:]
            for cell in CELLS:
                name = f"{method} {cell} seed {seed}"

                def measure(
                    cell: str = cell,
                    method: JobMethod = method,
                    rows: list[Row] = rows,
                    held_out: list[Row] = held_out,
                    seed: int = seed,
                    name: str = name,
                ) -> dict[str, Any]:
                    place = options.folder / name.replace(" ", "-").replace(",", "")
                    return measured(base, place, cell, method, rows, held_out, seed=seed)

                found.setdefault(method, {}).setdefault(cell, []).append(cells.get(name, measure))
    figures = table(found)
    for name, row in figures.items():
        low, middle, high = row["ours is times as fast"]
        losses = ", ".join(f"{loss:.4f}" for loss in row["held_out_loss"])
        print(
            f"{name:34} {row['rows_per_second']:6.2f} rows/s; ours is {middle:.2f} "
            f"[{low:.2f}, {high:.2f}] times as fast; {row['peak_mb']:5.0f} MB; "
            f"held-out loss {losses}"
        )
    print(f"goals: {GOALS} times TRL as it comes, {GOAL_BF16} times TRL with bf16")
    settings = {"steps": options.steps, "rows": count, "dtype": best_dtype()}
    known = {"settings": settings, "job": TrainConfig().model_dump(), "table": figures}
    print(record("training", json.loads(json.dumps(known, default=str)), packages=("torch", "trl")))


if __name__ == "__main__":
    main()
