"""Losses for unpaired reactions, on the same rows, steps and base: what people like afterwards.

`bench/unpaired.py --folder FOLDER --seeds 1-2` takes audiences that `bench/gate.py` played in the
same folder, with the training by our loss (APO, arXiv:2408.06266) that their run holds, and trains
once more by each of the others:

* `bco`: binary classification of rewards less a moving mean of both sides' (arXiv:2404.04656);
* `topr`: the likelihood of liked tips up, that of disliked ones down, the latter by the share that
  the model still gives them of what the base gave, at most 1 (arXiv:2503.14286).

It prints the audience's own rate of positives, without noise, for one tip of each model on visits
after the training, and how many words the tips have. Every cell is written when it is done.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from gate import fresh_visits, played, written
from reactune.config.settings import Config
from reactune.demo.audience import Town
from reactune.demo.report import policy_value
from reactune.environment import limit_spinning
from reactune.records import write_atomically
from reactune.train import with_trl
from reactune.train.job import read_job
from record import Cells, record

OTHERS = ("bco", "topr")
MODELS = ("base", "apo", *OTHERS)
DECAY = 0.9  # of the moving mean of rewards, a step


def with_loss(trainer: type, loss: str) -> type:
    """The trainer of unpaired rows with another loss; the base's log-probabilities are given."""
    import torch
    from torch.nn.functional import logsigmoid

    class Other(trainer):  # type: ignore[misc, valid-type]
        shift: Any = None

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            hidden = inputs["completion_mask"] == 0
            outputs = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=inputs["input_ids"].masked_fill(hidden, -100),
                fused_lm_head=True,
                use_cache=False,
            )
            likely = outputs.log_probs[:, 1 - inputs["input_ids"].size(1) :].sum(-1)
            liked = torch.as_tensor(inputs["label"], dtype=torch.bool)
            weight = torch.where(liked, self.desirable_weight, self.undesirable_weight)
            gains = likely - inputs["ref_logps"]
            each = (
                self.classified(gains, liked)
                if loss == "bco"
                else self.tapered(likely, gains, liked)
            )
            return (weight * each).mean()

        def classified(self, gains: Any, liked: Any) -> Any:
            rewards = self.beta * gains
            sides = [rewards[side].detach().mean() for side in (liked, ~liked) if side.any()]
            here = torch.stack(sides).mean()
            self.shift = here if self.shift is None else DECAY * self.shift + (1 - DECAY) * here
            return -logsigmoid(torch.where(liked, 1, -1) * (rewards - self.shift))

        def tapered(self, likely: Any, gains: Any, liked: Any) -> Any:
            share = gains.detach().clamp(max=0).exp()
            return torch.where(liked, -likely, share * likely)

    return Other


def train(folder: Path, loss: str) -> int:
    """Train the job of a folder by another loss, in this process; the exit code is a trainer's."""
    ours = with_trl.kto_trainer

    def other(*arguments: Any) -> Any:
        trainer = ours(*arguments)
        trainer.__class__ = with_loss(type(trainer), loss)
        return trainer

    with_trl.TRAINERS["kto"] = other
    return with_trl.main([str(folder / "job.json")])


def adapter_of(run: Path, loss: str, folder: Path) -> Path:
    """The adapter by another loss on the rows of the run's own training, which is done anew."""
    own = run / "train" / "kto"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rows.parquet", with_trl.REFERENCE_FILE, with_trl.SCHEDULE_FILE):
        copyfile(own / name, folder / name)
    job = replace(read_job(own / "job.json"), max_seconds=1e6)
    write_atomically(folder / "job.json", json.dumps(asdict(job)))
    command = [sys.executable, __file__, "--train", str(folder), "--loss", loss]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / job.adapter


def liked(config: Config, run: Path, adapter: Path | None, seed: int) -> dict[str, float]:
    """The audience's rate for tips of a model, and their length in words."""
    visits = fresh_visits(seed)
    samples = written(config, run, adapter, visits, seed, "model")
    shown = [(v, one.text) for v, some in zip(visits, samples, strict=True) for one in some]
    return {
        "rate": policy_value(Town(seed), shown, labels=config.labels).reward,
        "words": statistics.fmean(len(text.split()) for _, text in shown),
        "tips": len(shown),
    }


def measured(folder: Path, seed: int, model: str) -> dict[str, Any]:
    """One cell."""
    config, run = played(folder, seed, tastes="default")
    adapter = None
    if model == "apo":
        adapter = run / "train" / "kto" / "adapter"
    elif model != "base":
        adapter = adapter_of(run, model, folder / f"{model}-{seed}")
    return liked(config, run, adapter, seed)


def main() -> None:
    """Measure, print and record."""
    limit_spinning()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", default="1-2", help="FIRST-LAST")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--loss", choices=OTHERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        sys.exit(train(options.train, options.loss))
    cells = Cells(options.folder / "unpaired")
    first, last = map(int, options.seeds.split("-"))
    found: dict[str, dict[str, Any]] = {}
    for seed in range(first, last + 1):
        for model in MODELS:
            name = f"seed {seed} {model}"
            found[name] = cells.get(
                name,
                lambda seed=seed, model=model: measured(options.folder, seed, model),  # type: ignore[misc]
            )
            print(f"{name}: rate {found[name]['rate']:.3f}, {found[name]['words']:.1f} words",
                  flush=True)  # fmt: skip
    print(record("unpaired", found, packages=("torch", "trl")))


if __name__ == "__main__":
    main()
