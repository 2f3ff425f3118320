"""One cell of `bench/training.py` in a process of its own: `training_cell.py FOLDER CELL`.

Reads the folder's job, rows and held-out rows; writes `found.json`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from reactune.environment import limit_spinning
from reactune.model.logprobs import score
from reactune.train import with_trl
from reactune.train.forward import speed_up_forward
from reactune.train.job import Job, read_job, read_rows


class Stopwatch:
    """Seconds of the steps of a training, and of what scored rows for a reference before it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.reference = 0.0

    def callback(self) -> Any:
        """A callback of transformers' trainer that notes when each step ends."""
        from transformers import TrainerCallback

        watch = self

        class Note(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                watch.steps.append(time.perf_counter())

        return Note()

    def around(self, function: Any) -> Any:
        """The function, whose seconds count as reference."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = function(*args, **kwargs)
            self.reference += time.perf_counter() - started
            return found

        return timed

    def rows_per_second(self, batch_size: int) -> float:
        """Of all steps but the first, with their share of the reference."""
        counted = len(self.steps) - 1
        seconds = self.steps[-1] - self.steps[0]
        return counted * batch_size / (seconds + self.reference * counted / len(self.steps))


def ours(folder: Path, job: Job, rows: list[dict[str, Any]], watch: Stopwatch) -> Any:
    """Our trainer, as a run starts it."""
    with_trl.with_reference = watch.around(with_trl.with_reference)
    trainer = with_trl.trainer_for(folder, job, rows)
    speed_up_forward(trainer.model.get_base_model())
    return trainer


def theirs(folder: Path, job: Job, rows: list[dict[str, Any]], *, bf16: bool) -> Any:
    """TRL's trainer on the same rows as texts, with the same adapter, rate and number of steps."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.base_folder)
    names = {"prompt_ids": "prompt", "completion_ids": "completion", "chosen_ids": "chosen",
             "rejected_ids": "rejected"}  # fmt: skip

    def text(ids: list[int]) -> str:
        end = ids[-1:] == [tokenizer.eos_token_id]
        return str(tokenizer.decode(ids[:-1] if end else ids))

    texts = [
        {names.get(name, name): text(v) if name in names else v for name, v in row.items()}
        for row in rows
    ]
    kinds = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, {}),
        "kto": (trl.KTOTrainer, trl.KTOConfig, {"beta": job.beta}),
        "dpo": (trl.DPOTrainer, trl.DPOConfig, {"beta": job.beta}),
    }
    trainer, config, more = kinds[job.method]
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(job.base_folder, dtype="float32"),
        args=config(
            output_dir=str(folder / "theirs"),
            max_steps=job.steps,
            per_device_train_batch_size=job.batch_size,
            learning_rate=job.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=with_trl.warmup(job.steps),
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=bf16,
            seed=job.seed,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **more,
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=job.lora_rank,
            lora_alpha=job.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def in_float32(model: Any, job: Job, folder: Path) -> Any:
    """The trained adapter on the base in float32: bfloat16 does not show a small change."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model.save_pretrained(str(folder / "trained"))
    base = AutoModelForCausalLM.from_pretrained(job.base_folder, dtype="float32")
    return PeftModel.from_pretrained(base, str(folder / "trained"))


def held_out_loss(model: Any, job: Job, rows: list[dict[str, Any]]) -> float:
    """Of SFT the mean over tokens, of DPO and KTO the loss by gains over the base (KL left out)."""

    def gains(name: str) -> Any:
        some = [(row["prompt_ids"], row[name]) for row in rows]
        tuned = score(model, some)
        with model.disable_adapter():
            base = score(model, some)
        return np.array([t.sum() - b.sum() for t, b in zip(tuned, base, strict=True)])

    model.eval()
    if job.method == "sft":
        tokens = score(model, [(row["prompt_ids"], row["completion_ids"]) for row in rows])
        return float(-np.concatenate(tokens).mean())
    if job.method == "dpo":
        margin = job.beta * (gains("chosen_ids") - gains("rejected_ids"))
        return float(np.logaddexp(0, -margin).mean())
    sign = np.where([row["label"] for row in rows], 1, -1)
    return float((1 / (1 + np.exp(sign * job.beta * gains("completion_ids")))).mean())


def main() -> None:
    """Train, and say what it took."""
    limit_spinning()
    folder, cell = Path(sys.argv[1]), sys.argv[2]
    job = read_job(folder / "job.json")
    rows, watch = read_rows(folder, job), Stopwatch()
    if cell.startswith("ours"):
        trainer = ours(folder, job, rows, watch)
    else:
        trainer = theirs(folder, job, rows, bf16=cell.endswith("bf16"))
    trainer.add_callback(watch.callback())
    trainer.train()
    held_out = json.loads((folder / "held_out.json").read_text())
    found = {
        "rows_per_second": watch.rows_per_second(job.batch_size),
        "held_out_loss": held_out_loss(in_float32(trainer.model, job, folder), job, held_out),
        "steps": len(watch.steps),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
