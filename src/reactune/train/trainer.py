"""Runs a trainer process for each method and shows how far it is.

Which rows it gets and which of several adapters is kept is decided by the caller.
"""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

import reactune
from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.model.prompt import Chat, completion_ids, rebuild
from reactune.process import child_environment
from reactune.records import Example
from reactune.train.backends import BACKENDS, python_of, usable_methods
from reactune.train.job import (
    EXIT_BAD_JOB,
    EXIT_DIVERGED,
    SCHEMA,
    Job,
    JobMethod,
    read_job,
    read_rows,
    tokens_of,
    write_job,
)


@contextmanager
def progress_bars() -> Iterator[Callable[[Any], Callable[[dict[str, Any]], None]]]:
    """A function that opens the bar of a training job, and ends the one before."""
    with ExitStack() as stack:

        def open_bar(job: Any) -> Callable[[dict[str, Any]], None]:
            stack.close()
            bar = stack.enter_context(
                tqdm(total=job.steps, desc=f"train {job.method}", unit="step")
            )

            def show(line: dict[str, Any]) -> None:
                if "scored" in line:
                    bar.set_postfix_str(f"base model asked {line['scored']:,} of {line['of']:,}")
                    return
                left = int(line["seconds_left"])
                bar.set_postfix_str(
                    f"loss {line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s, "
                    f"{left // 60}:{left % 60:02d} left"
                )
                bar.update(line["step"] - bar.n)

            return show

        yield open_bar


MIN_PAIRS = 50
BETA = 0.1  # how closely KTO and DPO hold on to the reference model
LORA_DROPOUT = 0.0
Pair = tuple[Example, Example]  # a liked and a disliked tip for one context


def rows_by_method(
    chat: Chat, examples: Iterable[Example], pairs: Iterable[Pair]
) -> dict[JobMethod, list[dict[str, Any]]]:
    """The tokenised rows of every method that the examples allow: DPO needs `MIN_PAIRS` pairs.

    KTO gets every example with its label, SFT the liked ones. Each context is parsed once,
    however many examples share it.
    """

    @cache
    def prompt_ids(kind: str, context_json: str) -> list[int]:
        return list(rebuild(chat, kind, context_json).token_ids)

    judged = [
        {
            "prompt_ids": prompt_ids(each.kind, each.context_json),
            "completion_ids": list(completion_ids(chat, each.tip)),
            "label": each.label,
        }
        for each in examples
    ]
    paired = [
        {
            "prompt_ids": prompt_ids(liked.kind, liked.context_json),
            "chosen_ids": list(completion_ids(chat, liked.tip)),
            "rejected_ids": list(completion_ids(chat, disliked.tip)),
        }
        for liked, disliked in pairs
    ]
    rows: dict[JobMethod, list[dict[str, Any]]] = {
        "sft": [row for row in judged if row["label"]],
        "kto": judged,
        "dpo": paired if len(paired) >= MIN_PAIRS else [],
    }
    return {method: found for method, found in rows.items() if found}


PACKAGE = Path(reactune.__file__).parent


def command(settings: TrainConfig, job_file: Path) -> list[str]:
    """The command line of the trainer: its module alone, or behind a launcher.

    Launchers start workers that look for their parent, so the launcher itself is made to die
    with us first (`python -m reactune.process`).

    Raises:
        TrainingError: the back-end's environment is not there.
    """
    python = str(python_of(settings))
    worker = ["-m", BACKENDS[settings.backend].module, str(job_file)]
    if not settings.launcher:
        return [python, *worker]
    if settings.launcher == "ray":
        return [python, "-m", "reactune.train.with_ray", str(settings.processes), *worker[1:]]
    launcher = ["-m", *LAUNCHERS[settings.launcher](settings.processes)]
    return [sys.executable, "-m", "reactune.process", python, *launcher, *worker]


def _torchrun(processes: int) -> list[str]:
    return ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def _accelerate(processes: int) -> list[str]:
    arguments = [
        "accelerate.commands.launch",
        f"--num_processes={processes}",
        "--num_machines=1",
        "--main_process_port=0",
        "--mixed_precision=no",
        "--dynamo_backend=no",
    ]
    # "multi_gpu" means one process a device; on a CPU the trainer takes gloo all the same.
    return [*arguments, "--multi_gpu"] if processes > 1 else arguments


LAUNCHERS = {"torchrun": _torchrun, "accelerate": _accelerate}


def environment(settings: TrainConfig, folder: Path) -> dict[str, str]:
    """The trainer's environment; a back-end of its own sees our package and nothing else of ours.

    The package is linked into the job's folder, because the folder it lies in holds our own torch
    too.
    """
    variables = {**child_environment(), "PYTHONUNBUFFERED": "1"}
    if settings.launcher:
        threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.processes)
        variables["OMP_NUM_THREADS"] = str(threads)
    if BACKENDS[settings.backend].torch:
        link = folder / "code" / PACKAGE.name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(PACKAGE, target_is_directory=True)
        variables["PYTHONPATH"] = str(link.parent.absolute())
    return variables


LOG = "trainer.log"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Trained:
    """An adapter, and how it came about. `curve` holds (step, loss)."""

    method: JobMethod
    adapter: Path
    steps: int
    loss: float
    seconds: float
    tokens: int
    curve: tuple[tuple[int, float], ...]
    peak_gpu_bytes: int | None = None


def plan_job(
    method: JobMethod,
    rows: Sequence[dict[str, Any]],
    *,
    base_folder: Path,
    settings: TrainConfig,
    dtype: str,
    max_seconds: float,
) -> Job:
    """The job for these rows: as many steps as epochs ask for and the token budget allows."""
    tokens_per_step = settings.batch_size * sum(map(tokens_of, rows)) / max(len(rows), 1)
    wanted = settings.epochs * len(rows) / settings.batch_size
    affordable = settings.token_budget / max(tokens_per_step, 1)
    rate = settings.learning_rate if method == "sft" else settings.preference_learning_rate
    return Job(
        schema=SCHEMA,
        method=method,
        base_folder=str(base_folder),
        rows="rows.parquet",
        adapter="adapter",
        steps=max(1, int(min(wanted, affordable))),
        batch_size=settings.batch_size,
        learning_rate=rate,
        beta=BETA,
        kto_loss=settings.kto_loss,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=LORA_DROPOUT,
        lora_layers=settings.lora_layers,
        checkpoint_steps=settings.checkpoint_steps,
        max_seconds=max_seconds,
        seed=settings.seed,
        threads=settings.threads,
        dtype=dtype,
        backend=settings.backend,
        mlflow_experiment=settings.mlflow_experiment,
    )


def train(
    folder: Path,
    job: Job,
    rows: Sequence[dict[str, Any]],
    *,
    settings: TrainConfig,
    progress: Progress | None = None,
) -> Trained:
    """Train one method in processes of its own, or go on where killed ones stopped.

    A finished training of the same job is not repeated. `progress` gets each line of the
    trainer's progress file.

    Raises:
        TrainingError: the trainer failed; its log is named.
    """
    result_file = folder / "result.json"
    if not is_same_job(folder, job):
        clear(folder)
        write_job(folder, job, rows)
    code = 0 if result_file.is_file() else run_trainer(folder, settings, progress)
    result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else None
    if result is not None and not math.isfinite(result["loss"]):
        code = EXIT_DIVERGED  # a launcher replaces its workers' codes by its own
    if code != 0 or result is None:
        raise TrainingError(explain(code, folder))
    curve = tuple((line["step"], line["loss"]) for line in read_progress(folder))
    return Trained(
        method=job.method,
        adapter=folder / job.adapter,
        steps=result["steps"],
        loss=result["loss"],
        seconds=result["seconds"],
        tokens=sum(map(tokens_of, read_rows(folder, job)[: result["steps"] * job.batch_size])),
        curve=curve,
        peak_gpu_bytes=result.get("peak_gpu_bytes"),
    )


def train_methods(
    folder: Path,
    rows: Mapping[JobMethod, Sequence[dict[str, Any]]],
    *,
    base_folder: Path,
    settings: TrainConfig,
    dtype: str,
    progress: Callable[[Job], Progress],
) -> list[Trained]:
    """Train the method of the settings, or with `auto` each one that has rows.

    With `auto`, methods that the back-end cannot train on this machine are left out.

    `auto` shares the time budget out: a method that needs less leaves more to the next.

    Raises:
        TrainingError: the back-end is not there or cannot train this here, there are no rows for
            the method, or its trainer failed.
    """
    usable = usable_methods(settings)
    methods = [m for m in rows if m in usable] if settings.method == "auto" else [settings.method]
    if not methods:
        raise TrainingError(
            f"[train] backend = {settings.backend!r} trains {', '.join(usable)} here, and the "
            f"dataset has rows for {', '.join(rows) or 'nothing'} only"
        )
    seconds = 60 * settings.time_budget_minutes
    trained: list[Trained] = []
    for place, method in enumerate(methods):
        if method not in rows:
            raise TrainingError(
                f"[train] method = {method!r}, but the dataset has no rows for it; "
                f"it has some for {', '.join(rows) or 'none'}"
            )
        chosen = within_budget(rows[method], settings)
        job = plan_job(
            method,
            chosen,
            base_folder=base_folder,
            settings=settings,
            dtype=dtype,
            max_seconds=seconds / (len(methods) - place),
        )
        one = train(folder / method, job, chosen, settings=settings, progress=progress(job))
        trained.append(one)
        seconds = max(seconds - one.seconds, 60.0)
    return trained


def within_budget(rows: Sequence[dict[str, Any]], settings: TrainConfig) -> list[dict[str, Any]]:
    """As many rows as the token budget reads once, drawn by the seed; all where it reads more.

    Labelled rows are drawn in turn from liked and disliked ones, so that a small budget sees both
    alike.
    """
    drawn = list(rows)
    random.Random(settings.seed).shuffle(drawn)
    if "label" in drawn[0]:
        liked, disliked = ([r for r in drawn if r["label"] is label] for label in (True, False))
        both = min(len(liked), len(disliked))
        pairs = [row for pair in zip(liked, disliked, strict=False) for row in pair]
        drawn = pairs + liked[both:] + disliked[both:]
    affordable = list(accumulate(map(tokens_of, drawn)))
    return drawn[: max(settings.batch_size, bisect_right(affordable, settings.token_budget))]


def keep_adapter(adapter: Path, out: Path) -> None:
    """Copy the two files that make a LoRA adapter."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ADAPTER_FILES:
        shutil.copyfile(adapter / name, out / name)


def run_trainer(folder: Path, settings: TrainConfig, progress: Progress | None) -> int:
    """Start the trainer, hand on its progress, and return its exit code.

    The trainer dies with this process; should this one end by an exception, it is stopped.
    """
    with (folder / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command(settings, folder / "job.json"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(settings, folder),
        )
        shown = 0
        try:
            while process.poll() is None:
                time.sleep(0.5)
                lines = read_lines(folder)
                for line in lines[shown:] if progress else ():
                    progress(line)  # type: ignore[misc]
                shown = len(lines)
        finally:
            process.kill()
            process.wait()
    for line in read_lines(folder)[shown:] if progress else ():
        progress(line)  # type: ignore[misc]
    return process.returncode


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """The lines of the trainer's progress file that tell of steps."""
    return [line for line in read_lines(folder) if "loss" in line]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the trainer's progress file, those of what comes before steps too."""
    file = folder / "progress.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def read_log(folder: Path) -> str:
    """What the trainer printed, at all its starts, with progress bars as they last stood."""
    text = (folder / LOG).read_bytes().decode(errors="replace")
    return "\n".join(line.rpartition("\r")[2] for line in text.split("\n"))


def is_same_job(folder: Path, job: Job) -> bool:
    """Whether the folder holds this very job; what only sets its speed may differ when resumed."""
    if not (folder / "job.json").is_file():
        return False
    found = read_job(folder / "job.json")
    speed = {"max_seconds": job.max_seconds, "dtype": job.dtype, "threads": job.threads}
    return replace(found, **speed) == job  # type: ignore[arg-type]


def clear(folder: Path) -> None:
    """Remove what another job left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def explain(code: int, folder: Path) -> str:
    """What a trainer's exit code means, and where to read on."""
    log = folder / LOG
    if code == EXIT_DIVERGED:
        return f"the loss became infinite or no number; lower [train] learning_rate. Log: {log}"
    if code == EXIT_BAD_JOB:
        return f"the trainer could not read its job. Log: {log}"
    if code < 0:
        return (
            f"the trainer was ended by signal {-code} (9 often means: out of memory; lower "
            f"[train] batch_size). Run again to go on from the last checkpoint. Log: {log}"
        )
    return f"the trainer ended with code {code}: {last_word(log)[:300]}. Log: {log}"


def last_word(log: Path) -> str:
    """The last error that a log names, else its last line: launchers add pages of their own."""
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = re.findall(r"^(?:\[rank\d+\]: )?([\w.]+(?:Error|Exception): .+)$", text, re.MULTILINE)
    words = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return [*words[-1:], *errors][-1] if words else "it said nothing"
