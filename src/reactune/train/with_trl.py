"""LoRA with TRL and PEFT, as a process: `python -m reactune.train.with_trl job.json`.

Reads a job; writes an adapter folder, `progress.jsonl` and `result.json`. What can go wrong in a
training (rows, order, schedule, seeds, time limit, files) stands here once for all back-ends.
"""

import json
import math
import os
import statistics
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from reactune.errors import TrainingError
from reactune.model.logprobs import Row, score
from reactune.process import die_with_parent
from reactune.records import write_atomically
from reactune.train.forward import speed_up_forward
from reactune.train.job import (
    EXIT_BAD_JOB,
    EXIT_DIVERGED,
    Job,
    keep_lines_until,
    last_checkpoint,
    read_job,
    read_rows,
    tokens_of,
)

REFERENCE_FILE = "reference.json"
SCHEDULE_FILE = "schedule.json"
# DPO alone also makes liked tips less probable, only not as much as disliked ones; the term of SFT
# holds them up (arXiv:2405.16436).
DPO_LOSSES = {"sigmoid": 1.0, "sft": 0.2}
MEASURED_STEPS = 2  # after one that warms up
RECENT_STEPS = 10  # by which a training that became slower is seen
SCHEDULED_SHARE = 0.9  # of the time left that the schedule may take: steps are not equally long
CHUNK_STEPS = 16
# A step costs four times as much as scoring its rows with the base model, so those that are not
# reached in this share of the time limit could not be trained in the rest of it.
REFERENCE_SHARE = 0.2
Train = Callable[[Path, Job, list[dict[str, Any]]], dict[str, Any]]


def main(argv: list[str]) -> int:
    """Train one job with TRL; the exit code is that of `run`."""
    return run(argv, train)


def run(argv: list[str], train: Train) -> int:
    """Train one job; the exit code is 0, 3 (no usable job) or 4 (the loss is no number)."""
    die_with_parent()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    path = Path(argv[0]).absolute()
    try:
        job = read_job(path)
        rows = read_rows(path.parent, job)
    except (TrainingError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_BAD_JOB
    os.environ["HF_DATASETS_CACHE"] = str(path.parent / "cache")
    result = train(path.parent, job, rows)
    if is_first():
        write_atomically(path.parent / "result.json", json.dumps(result, indent=2))
    return 0 if math.isfinite(result["loss"]) else EXIT_DIVERGED


def train(folder: Path, job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Run the job from its last whole checkpoint, or from the start, and save the adapter."""
    started = time.monotonic()
    trainer = trainer_for(folder, job, rows)
    speed_up_forward(trainer.model.get_base_model())
    return finish(folder, job, rows, trainer, started=started)


def trainer_for(folder: Path, job: Job, rows: list[dict[str, Any]]) -> Any:
    """TRL's trainer on the base model with a fresh adapter."""
    return prepare(folder, job, rows, load_model)


def prepare(folder: Path, job: Job, rows: list[dict[str, Any]], load: Callable[[Job], Any]) -> Any:
    """TRL's trainer of the job's method, seeded, with the model that `load` gives."""
    import torch
    from transformers import AutoTokenizer, set_seed

    if job.threads:
        torch.set_num_threads(job.threads)
    set_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(job.base_folder)
    return TRAINERS[job.method](folder, job, rows, load(job), tokenizer)


def finish(
    folder: Path, job: Job, rows: list[dict[str, Any]], trainer: Any, *, started: float
) -> dict[str, Any]:
    """Train to the end, or to the time limit counted from `started`; what `result.json` holds."""
    import torch

    deadline = started + job.max_seconds
    plan_schedule(folder, trainer, deadline=deadline)
    trainer.add_callback(progress_callback(folder, job, rows, deadline=deadline))
    output = trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    model = trainer.model
    if is_first():
        model.save_pretrained(str(folder / job.adapter))
    return {
        "method": job.method,
        "steps": trainer.state.global_step,
        "planned_steps": trainer.state.max_steps,
        "loss": float(output.training_loss),
        "seconds": time.monotonic() - started,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "peak_gpu_bytes": (
            torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        ),
    }


def plan_schedule(folder: Path, trainer: Any, *, deadline: float) -> None:
    """Shorten the training to the steps that end before the deadline, by the measured speed.

    So the learning rate falls to its end however slow the machine is; where it becomes slower, as
    beside other work, `shorten` plans anew. The steps are written to a file: a resumed training
    goes on with the same schedule.
    """
    file = folder / SCHEDULE_FILE
    if file.is_file():
        steps = json.loads(file.read_text(encoding="utf-8"))["steps"]
    else:
        seconds = highest(seconds_per_step(trainer))
        left = SCHEDULED_SHARE * (deadline - time.monotonic())
        steps = max(1, min(trainer.args.max_steps, int(left / seconds)))
        if is_first():
            plan = {"steps": steps, "seconds_per_step": seconds}
            write_atomically(file, json.dumps(plan))
    trainer.args.max_steps = steps
    trainer.args.warmup_steps = warmup(steps)


def affordable_steps(state: Any, ends: Sequence[float], *, deadline: float) -> int:
    """The steps of a training in all, of which those left end before the deadline.

    As many as are planned, where these do at the speed of the last steps, which ended at `ends`.
    """
    if len(ends) <= RECENT_STEPS:
        return int(state.max_steps)
    seconds = highest((ends[-1] - ends[0]) / (len(ends) - 1))
    left = deadline - ends[-1]
    if (state.max_steps - state.global_step) * seconds <= left:
        return int(state.max_steps)
    return int(state.global_step) + max(1, int(SCHEDULED_SHARE * left / seconds))


def shorten(folder: Path, state: Any, lr_scheduler: Any, steps: int) -> None:
    """Let a training end after so many steps in all, and its learning rate fall to its end."""
    state.max_steps = steps
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)  # Accelerate wraps it
    schedule.lr_lambdas = [
        partial(rate.func, **{**rate.keywords, "num_training_steps": steps})
        for rate in schedule.lr_lambdas
    ]
    if is_first():
        file = folder / SCHEDULE_FILE
        plan = json.loads(file.read_text(encoding="utf-8"))
        write_atomically(file, json.dumps({**plan, "steps": steps}))


def seconds_per_step(trainer: Any) -> float:
    """How long forward and backward pass of a step take; weights and seeds stay as they are."""
    import torch

    steps, seconds = 1 + MEASURED_STEPS, []
    trainer.model.train()
    with torch.random.fork_rng():
        for inputs in islice(trainer.get_train_dataloader(), steps):
            started = time.perf_counter()
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs)).backward()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    trainer.model.zero_grad()
    return statistics.fmean(seconds[1:] or seconds)


def warmup(steps: int) -> int:
    """Steps in which the learning rate rises."""
    return max(1, steps // 20)


def load_model(job: Job) -> Any:
    """The base model in the job's type, with a LoRA adapter in float32: a fresh one, or the one
    that the job starts from.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, job.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        job.base_folder, dtype=dtype, **(in_4bit(dtype) if job.load_in_4bit else {})
    )
    model.config.use_cache = False
    if job.start:
        return PeftModel.from_pretrained(model, job.start, is_trainable=True)
    return get_peft_model(
        model,
        LoraConfig(
            r=job.lora_rank,
            lora_alpha=job.lora_alpha,
            lora_dropout=job.lora_dropout,
            target_modules=targets_of(model),
            layers_to_transform=last_layers(model.config.num_hidden_layers, job.lora_layers),
            task_type="CAUSAL_LM",
        ),
    )


def targets_of(model: Any) -> list[str]:
    """Names of the linear layers that LoRA changes: all but the head, as a family calls them.

    Of layers that are experts, transformers 5 keeps one tensor for all, which the files of the
    model hold in parts: PEFT would change the tensor, and that could not be merged into the files.
    So they stay as they are, with those that are called like them.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    # What PEFT makes of the names is seen on a model without weights.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = AutoModelForCausalLM.from_config(model.config)
        tuned = get_peft_model(empty, LoraConfig(target_modules=sorted(linear)))
    return sorted(tuned.peft_config["default"].target_modules)


def in_4bit(dtype: Any) -> dict[str, Any]:
    """Options that load linear layers in 4 bits, computing in `dtype` (QLoRA, arXiv:2305.14314).

    Embeddings, head and norms stay in `dtype`.
    """
    from transformers import BitsAndBytesConfig

    kept = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": kept, "device_map": {"": device()}}


def device() -> str:
    """Where this process trains: its own GPU among those of a launcher."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def last_layers(layers: int, wanted: int) -> list[int] | None:
    """The numbers of the last layers; None, which means all, where 0 are wanted."""
    return list(range(max(0, layers - wanted), layers)) if wanted else None


def arguments(folder: Path, job: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The arguments that all three TRL trainers share."""
    import torch

    steps = len(rows) // job.batch_size
    return {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": steps,
        # The global batch is the job's, however many processes share it.
        "per_device_train_batch_size": job.batch_size // processes(),
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": warmup(steps),
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        # Else a loss that is no number would be shown as the last one that was.
        "logging_nan_inf_filter": False,
        "save_steps": job.checkpoint_steps,
        "save_total_limit": 2,
        "seed": job.seed,
        # Rows come in the order in which they are trained.
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        **live_steps(job),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def live_steps(job: Job) -> dict[str, Any]:
    """Where each step is shown while it is trained: MLflow's own callback, or nowhere."""
    if not job.mlflow_experiment:
        return {"report_to": "none"}
    os.environ["MLFLOW_EXPERIMENT_NAME"] = job.mlflow_experiment
    return {"report_to": "mlflow", "run_name": f"{job.method} with {job.backend}"}


def sft_trainer(
    folder: Path, job: Job, rows: list[dict[str, Any]], model: Any, tokenizer: Any
) -> Any:
    """Supervised fine-tuning on liked tips, loss on the completion only."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(folder, job, rows)),
        train_dataset=Dataset.from_list([sft_row(row) for row in rows]),
        processing_class=tokenizer,
    )


def kto_trainer(
    folder: Path, job: Job, rows: list[dict[str, Any]], model: Any, tokenizer: Any
) -> Any:
    """KTO (arXiv:2402.01306) or its APO form (arXiv:2408.06266) on liked and disliked tips."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    liked_weight, disliked_weight = kto_weights(rows)
    has_reference = job.kto_loss != "kto"
    if has_reference:
        rows = with_reference(folder, job, model, rows, {"ref_logps": "completion_ids"})
    dataset = Dataset.from_list(rows)
    if not has_reference:
        # TRL scores the neighbours itself, and the answers with them.
        dataset = dataset.map(neighbours, batched=True, batch_size=job.batch_size)
    return on_token_ids(KTOTrainer, has_reference=has_reference)(
        model=model,
        args=KTOConfig(
            **arguments(folder, job, rows),
            loss_type=job.kto_loss,
            beta=job.beta,
            desirable_weight=liked_weight,
            undesirable_weight=disliked_weight,
            precompute_ref_log_probs=True,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )


def dpo_trainer(
    folder: Path, job: Job, rows: list[dict[str, Any]], model: Any, tokenizer: Any
) -> Any:
    """DPO (arXiv:2305.18290) on pairs of a liked and a disliked tip for one context."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    answers = {"ref_chosen_logps": "chosen_ids", "ref_rejected_logps": "rejected_ids"}
    rows = with_reference(folder, job, model, rows, answers)
    return on_token_ids(DPOTrainer, has_reference=True)(
        model=model,
        args=DPOConfig(
            **arguments(folder, job, rows),
            beta=job.beta,
            loss_type=list(DPO_LOSSES),
            loss_weights=list(DPO_LOSSES.values()),
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


TRAINERS = {"sft": sft_trainer, "kto": kto_trainer, "dpo": dpo_trainer}


def on_token_ids(trainer: Any, *, has_reference: bool) -> Any:
    """The TRL trainer for rows that hold token ids already, and the base's log-probabilities."""

    class Tokenised(trainer):  # type: ignore[misc]
        """Takes its rows as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            if has_reference:
                return dataset
            return super()._precompute_ref_logps(dataset, name, batch_size)

    return Tokenised


def sft_row(row: dict[str, Any]) -> dict[str, list[int]]:
    """One row with labels: -100, which no loss counts, on the prompt."""
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def kto_weights(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Weights by which liked and disliked rows count the same in sum (arXiv:2402.01306, eq. 8)."""
    liked = sum(row["label"] for row in rows)
    disliked = len(rows) - liked
    return max(1.0, disliked / max(liked, 1)), max(1.0, liked / max(disliked, 1))


def neighbours(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """KTO's KL estimate pairs each prompt with the completion of its neighbour in the batch."""
    completions = batch["completion_ids"]
    return {**batch, "KL_completion_ids": [completions[-1], *completions[:-1]]}


def with_reference(
    folder: Path, job: Job, model: Any, rows: list[dict[str, Any]], answers: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows with the base model's log-probability of each answer, under the names given.

    Fewer steps' rows where a fifth of the time limit does not suffice for all. Called before the
    first step, when the adapter changes nothing yet: so the model is the base. The scores are
    written to a file, so that a resumed training has the same rows.
    """
    file = folder / REFERENCE_FILE
    if file.is_file():
        scores = json.loads(file.read_text(encoding="utf-8"))
    else:
        scores = _reference_scores(folder, job, model, rows, answers)
        if is_first():
            write_atomically(file, json.dumps(scores))
    return [{**row, **values} for row, values in zip(rows, scores, strict=False)]


def _reference_scores(
    folder: Path, job: Job, model: Any, rows: list[dict[str, Any]], answers: Mapping[str, str]
) -> list[dict[str, float]]:
    """Names and log-probabilities of the first rows, whole steps of them, in their order."""
    causal = model.get_base_model()
    causal.eval()
    # A tip stands in several pairs, and a row in several epochs.
    different = {_scored_row(row, answer) for row in rows for answer in answers.values()}
    totals: dict[Row, float] = {}
    until = time.monotonic() + REFERENCE_SHARE * job.max_seconds
    size = CHUNK_STEPS * job.batch_size
    done = 0

    def scored(count: int) -> None:
        nonlocal done
        done += count
        report_progress(
            folder, {"step": 0, "steps": job.steps, "scored": done, "of": len(different)}
        )

    for end in range(size, len(rows) + size, size):
        wanted = (_scored_row(row, a) for row in rows[end - size : end] for a in answers.values())
        new = list(dict.fromkeys(each for each in wanted if each not in totals))
        scores = score(causal, new, progress=scored)
        totals |= {each: float(s.sum()) for each, s in zip(new, scores, strict=True)}
        if on_any_process(time.monotonic() > until):
            break
    return [
        {name: totals[_scored_row(row, answer)] for name, answer in answers.items()}
        for row in rows[:end]
    ]


def _scored_row(row: dict[str, Any], answer: str) -> Row:
    return tuple(row["prompt_ids"]), tuple(row[answer])


def progress_callback(
    folder: Path, job: Job, rows: list[dict[str, Any]], *, deadline: float
) -> Any:
    """Appends a line per step to `progress.jsonl`; stops at the deadline of the monotonic clock."""
    from transformers import TrainerCallback

    tokens_per_step = job.batch_size * sum(map(tokens_of, rows)) / len(rows)

    class Progress(TrainerCallback):  # type: ignore[misc]
        """Reports the steps of one training."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = time.monotonic()
            self.first_step = state.global_step
            self.ends = deque([self.started], maxlen=RECENT_STEPS + 1)
            if is_first():
                keep_lines_until(folder / "progress.jsonl", state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ends.append(time.monotonic())
            if on_any_process(self.ends[-1] > deadline):
                control.should_training_stop = True
                return
            steps = affordable_steps(state, self.ends, deadline=deadline)
            if steps < state.max_steps:
                shorten(folder, state, kwargs["lr_scheduler"], steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            if not logs or "loss" not in logs:
                return
            done = state.global_step - self.first_step
            seconds = time.monotonic() - self.started
            line = {
                "step": state.global_step,
                "steps": state.max_steps,
                "loss": logs["loss"],
                "tokens_per_second": done * tokens_per_step / seconds,
                "seconds_left": min(
                    (state.max_steps - state.global_step) * seconds / done,
                    max(deadline - time.monotonic(), 0.0),
                ),
            }
            report_progress(folder, line)

    return Progress()


def report_progress(folder: Path, line: Mapping[str, Any]) -> None:
    """Append a line to `progress.jsonl`; of several processes the first alone does."""
    if is_first():
        with (folder / "progress.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def processes() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return os.environ.get("RANK", "0") == "0"


def on_any_process(here: bool) -> bool:
    """Whether the flag is set on any process: all must decide alike, or they wait for ever."""
    return bool(highest(float(here)))


def highest(here: float) -> float:
    """The highest of the values of all processes."""
    if processes() == 1:
        return here
    import torch
    from accelerate import PartialState

    value = torch.tensor(here, device=PartialState().device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return float(value.item())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
