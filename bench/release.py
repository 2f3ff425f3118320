"""Seconds and peak memory of a release, step by step: merge, convert, quantise.

For SmolLM2 and for a Llama of about a billion random weights in bfloat16, with an adapter of rank
16 on all linear layers; beside them the converter on the base alone, and PEFT's own merge. Each
step is a process, whose peak is that of itself plus that of its largest child. Steps take turns.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu import BILLION, make_model
from reactune.config.sections import ExportConfig, ModelConfig
from reactune.model.files import BaseModel, base_model
from reactune.release.converter import convert, converter_folder, find_quantiser, quantise
from reactune.release.gguf import export_gguf
from reactune.release.merge import merge
from record import record

MB = 10**6
K_QUANT = "q4_k_m"


@dataclass(frozen=True)
class Case:
    """One base model with an adapter, and the folder in which its steps write."""

    base: BaseModel
    place: Path

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.place / "adapter"

    @property
    def merged(self) -> Path:
        """Where the first step writes, and the others read."""
        return self.place / "merged"

    @property
    def unquantised(self) -> Path:
        """What the quantiser reads."""
        return self.place / "model-f16.gguf"

    def convert(self, folder: Path, *, kind: str, out: Path) -> None:
        """The converter on a folder."""
        convert(
            folder,
            out,
            kind=kind,
            converter=converter_folder(),
            name="bench",
            vocabulary=self.base.gguf,
        )


def make_billion(folder: Path) -> Path:
    """Write the larger model; its folder."""
    return make_model(folder, BILLION, seed=1)


def make_adapter(case: Case) -> None:
    """An adapter of rank 16 on all linear layers that changes each of them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(case.base.folder, dtype="auto")
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    tuned.save_pretrained(case.adapter)


def merge_with_peft(case: Case) -> None:
    """PEFT's own way: load all, merge all, save all."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(case.base.folder, dtype="auto")
    merged = PeftModel.from_pretrained(model, str(case.adapter)).merge_and_unload()
    merged.save_pretrained(case.place / "peft")


STEPS: dict[str, Callable[[Case], object]] = {
    "adapter": make_adapter,
    "merge": lambda case: merge(case.base.folder, case.adapter, case.merged),
    "convert to f16": lambda case: case.convert(case.merged, kind="f16", out=case.unquantised),
    "convert to q8_0": lambda case: case.convert(
        case.merged, kind="q8_0", out=case.place / "model-q8_0.gguf"
    ),
    f"quantise to {K_QUANT}": lambda case: quantise(
        case.unquantised,
        case.place / f"model-{K_QUANT}.gguf",
        kind=K_QUANT,
        settings=ExportConfig(),
    ),
    "all of it, q8_0": lambda case: export_gguf(
        case.base, case.adapter, case.place / "export" / "model.gguf", settings=ExportConfig()
    ),
    "converter alone, q8_0": lambda case: case.convert(
        case.base.folder, kind="q8_0", out=case.place / "base-q8_0.gguf"
    ),
    "PEFT's merge alone": merge_with_peft,
}
PREPARATION = "adapter"


def peak_mb() -> int:
    """Peak resident memory of this process plus that of its largest child, in MB."""
    peaks = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(sum(peaks) * 1_024 / MB)


def do(step: str, case: Case) -> None:
    """In a process of its own: do one step and print what it took, imports included in memory."""
    started = time.monotonic()
    STEPS[step](case)
    print(json.dumps({"seconds": time.monotonic() - started, "peak MB": peak_mb()}))


def measured(step: str, base: str, place: Path) -> dict[str, float]:
    """One step in a fresh process; what it writes is removed before the next round."""
    call = [sys.executable, __file__, "--base", base, "--place", str(place), "--step", step]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{step}: {done.stderr.strip()[-2_000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def steps() -> list[str]:
    """The steps that can be done here."""
    left_out = set() if find_quantiser(ExportConfig()) else {f"quantise to {K_QUANT}"}
    return [step for step in STEPS if step != PREPARATION and step not in left_out]


def measure(base: str, place: Path, *, rounds: int) -> dict[str, Any]:
    """All steps, `rounds` times in turn: the median of the seconds, the highest peak."""
    measured(PREPARATION, base, place)
    found: dict[str, list[dict[str, float]]] = {step: [] for step in steps()}
    for _ in range(rounds):
        for folder in ("merged", "peft"):
            subprocess.run(["rm", "-rf", str(place / folder)], check=True)
        for step, figures in found.items():
            figures.append(measured(step, base, place))
    weights = sum(file.stat().st_size for file in Path(base_folder(base)).glob("*.safetensors"))
    limit = round((1.3 * weights + 500 * MB) / MB)
    table = {
        step: {
            "seconds": round(statistics.median(each["seconds"] for each in figures), 1),
            "peak MB": max(each["peak MB"] for each in figures),
        }
        for step, figures in found.items()
    }
    return {"safetensors MB": round(weights / MB), "limit MB": limit, "steps": table}


def base_folder(base: str) -> Path:
    """The folder of safetensors of a base model."""
    return base_model(ModelConfig(base=base)).folder


def show(name: str, figures: dict[str, Any]) -> None:
    """The table of one model."""
    size, limit = figures["safetensors MB"], figures["limit MB"]
    print(f"{name}: safetensors {size:,} MB, 1.3 times that plus 500 MB: {limit:,} MB")
    for step, values in figures["steps"].items():
        print(f"  {step:24} {values['seconds']:8.1f} s {values['peak MB']:8,.0f} MB")


def main() -> None:
    """Measure both models, print and record; or, called by itself, do one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="smollm2,billion")
    parser.add_argument("--base", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        # Both have SmolLM2's tokenizer, which is taken from its GGUF.
        tokenizer = base_model(ModelConfig()).gguf
        base = replace(base_model(ModelConfig(base=options.base)), gguf=tokenizer)
        do(options.step, Case(base, options.place))
        return
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        for model in options.models.split(","):
            place = Path(name) / model
            place.mkdir()
            base = ModelConfig().base
            if model == "billion":
                # In a process of its own: a child's peak starts at what its parent held.
                with ProcessPoolExecutor(1) as process:
                    base = str(process.submit(make_billion, place / "base").result())
            figures[model] = measure(base, place, rounds=options.rounds)
            show(model, figures[model])
    packages = ("torch", "transformers", "peft")
    print(f"kept in {record('release', figures, packages=packages).name}")


if __name__ == "__main__":
    main()
