"""Trains examples to adapters: a process for each method, within the token and time budget.

A training that was killed goes on from its last checkpoint, and a finished one is not repeated.
"""

import json
import math
import random
import re
import shutil
import subprocess
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.model.prompt import Chat, completion_ids, rebuild
from reactune.progress import progress_bar
from reactune.records import Example
from reactune.train.backends import command, environment, usable_methods
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

LOG = "trainer.log"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
MIN_PAIRS = 50  # for DPO
FIRST_PAIRS = 300  # from which DPO is what `auto` trains first
BETA = 0.1  # how closely KTO and DPO hold on to the reference model
LORA_DROPOUT = 0.0
Pair = tuple[Example, Example]  # a liked and a disliked tip for one context
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Trained:
    """An adapter, and how it came about: by `method`, in a folder of that name.

    `curve` holds (step, loss).
    """

    method: str
    adapter: Path
    steps: int
    loss: float
    seconds: float
    tokens: int
    curve: tuple[tuple[int, float], ...]
    peak_gpu_bytes: int | None = None


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
        pair_row(chat, prompt_ids(liked.kind, liked.context_json), liked.tip, disliked.tip)
        for liked, disliked in pairs
    ]
    rows: dict[JobMethod, list[dict[str, Any]]] = {
        "sft": [row for row in judged if row["label"]],
        "kto": judged,
        "dpo": paired if len(paired) >= MIN_PAIRS else [],
    }
    return {method: some for method, some in rows.items() if some}


def pair_row(
    chat: Chat, prompt_ids: Sequence[int], chosen: str, rejected: str
) -> dict[str, list[int]]:
    """A row of DPO."""
    return {
        "prompt_ids": list(prompt_ids),
        "chosen_ids": list(completion_ids(chat, chosen)),
        "rejected_ids": list(completion_ids(chat, rejected)),
    }


def train_methods(
    folder: Path,
    rows: Mapping[JobMethod, Sequence[dict[str, Any]]],
    *,
    base_folder: Path,
    settings: TrainConfig,
    dtype: str,
    progress: Callable[[Job], Progress],
    only_first: bool = False,
) -> list[Trained]:
    """Train the method of the settings, or with `auto` the first one of `in_order` and its whole
    schedule; another one only where its schedule ends within the minutes that are left, and not
    with `only_first`.

    `auto` leaves out methods that the back-end cannot train on this machine.

    Raises:
        TrainingError: the back-end is not there or cannot train this here, there are no rows for
            the method, or its trainer failed.
    """
    usable = usable_methods(settings)
    methods = in_order(rows, usable) if settings.method == "auto" else [settings.method]
    if not methods:
        raise TrainingError(
            f"[train] backend = {settings.backend!r} trains {', '.join(usable)} here, and the "
            f"dataset has rows for {', '.join(rows) or 'nothing'} only"
        )
    seconds = 60 * settings.time_budget_minutes
    trained: list[Trained] = []
    for method in methods[:1] if only_first else methods:
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
            max_seconds=seconds,
        )
        if trained and expected_seconds(job, chosen, trained) > seconds:
            continue
        one = train(folder / method, job, chosen, settings=settings, progress=progress(job))
        trained.append(one)
        seconds -= one.seconds
    return trained


def in_order(
    rows: Mapping[JobMethod, Sequence[dict[str, Any]]], usable: Sequence[JobMethod]
) -> list[JobMethod]:
    """The methods that have rows, in the order in which `auto` trains them.

    DPO before KTO where many contexts have a liked and a disliked tip: there the pair says most.
    """
    has_pairs = len(rows.get("dpo", ())) >= FIRST_PAIRS
    order: tuple[JobMethod, ...] = ("dpo", "kto", "sft") if has_pairs else ("kto", "dpo", "sft")
    return [method for method in order if method in rows and method in usable]


def expected_seconds(job: Job, rows: Sequence[dict[str, Any]], trained: Sequence[Trained]) -> float:
    """How long the job's whole schedule takes at the lowest speed of those that were trained."""
    speed = min(each.tokens / each.seconds for each in trained)
    tokens = job.steps * job.batch_size * sum(map(tokens_of, rows)) / len(rows)
    return tokens / speed


def within_budget(rows: Sequence[dict[str, Any]], settings: TrainConfig) -> list[dict[str, Any]]:
    """As many rows as the token budget reads once, drawn by the seed; all where it reads more.

    Labelled rows are drawn in turn from liked and disliked ones, so that a small budget reads as
    many of both.
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
        load_in_4bit=settings.load_in_4bit,
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

    A finished training of the same job is not repeated. `progress` is called with each line of
    the trainer's progress file.

    Raises:
        TrainingError: the trainer failed; its log is named.
    """
    result_file = folder / "result.json"
    if not is_same_job(folder, job):
        clear(folder)
        write_job(folder, job, rows)
    code = 0 if result_file.is_file() else run_trainer(folder, settings, progress)
    result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else None
    if result is not None and not (
        math.isfinite(result["loss"]) and has_finite_weights(folder / job.adapter)
    ):
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


def has_finite_weights(adapter: Path) -> bool:
    """Whether every weight of an adapter is a finite number.

    The last step can spoil them without a loss that tells, and some trainers leave out losses that
    are no number from their mean.
    """
    from safetensors.torch import load_file

    weights = load_file(adapter / ADAPTER_FILES[0])
    return all(bool(each.isfinite().all()) for each in weights.values())


def run_trainer(folder: Path, settings: TrainConfig, progress: Progress | None) -> int:
    """Start the trainer, report its progress, and return its exit code.

    The trainer ends with this process, killed or not.
    """
    shown = 0

    def show() -> None:
        nonlocal shown
        lines = read_lines(folder)
        if progress is not None:
            for line in lines[shown:]:
                progress(line)
        shown = len(lines)

    with (folder / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command(settings, folder / "job.json"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(settings, folder),
        )
        try:
            while process.poll() is None:
                time.sleep(0.5)
                show()
        finally:
            process.kill()
            process.wait()
    show()
    return process.returncode


def is_same_job(folder: Path, job: Job) -> bool:
    """Whether the folder holds this very job; what only sets its speed may differ when resumed."""
    if not (folder / "job.json").is_file():
        return False
    stored = read_job(folder / "job.json")
    speed = {"max_seconds": job.max_seconds, "dtype": job.dtype, "threads": job.threads}
    return replace(stored, **speed) == job  # type: ignore[arg-type]


def clear(folder: Path) -> None:
    """Remove the files of another job."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def keep_adapter(adapter: Path, out: Path) -> None:
    """Copy the two files that make a LoRA adapter."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ADAPTER_FILES:
        shutil.copyfile(adapter / name, out / name)


def explain(code: int, folder: Path) -> str:
    """What a trainer's exit code means, and which log has more."""
    log = folder / LOG
    if code == EXIT_DIVERGED:
        return (
            "the loss or a weight became infinite or no number; lower [train] learning_rate. "
            f"Log: {log}"
        )
    if code == EXIT_BAD_JOB:
        return f"the trainer could not read its job. Log: {log}"
    if code < 0:
        return (
            f"the trainer was ended by signal {-code} (9 often means: out of memory; lower "
            f"[train] batch_size). Run again to go on from the last checkpoint. Log: {log}"
        )
    return f"the trainer ended with code {code}: {last_error(log)[:300]}. Log: {log}"


def last_error(log: Path) -> str:
    """The last error in a log, else its last line: launchers add pages of their own."""
    text = log.read_text(encoding="utf-8", errors="replace")
    errors = re.findall(r"^(?:\[rank\d+\]: )?([\w.]+(?:Error|Exception): .+)$", text, re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return [*lines[-1:], *errors][-1] if lines else "its log is empty"


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """The lines of the trainer's progress file that report a step."""
    return [line for line in read_lines(folder) if "loss" in line]


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of the trainer's progress file, those before the first step too."""
    file = folder / "progress.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def read_log(folder: Path) -> str:
    """What the trainer printed, at all its starts, with progress bars as they last stood."""
    text = (folder / LOG).read_bytes().decode(errors="replace")
    return "\n".join(line.rpartition("\r")[2] for line in text.split("\n"))


@contextmanager
def progress_bars() -> Iterator[Callable[[Job], Progress]]:
    """A function that opens the progress bar of a job and closes that of the job before."""
    with ExitStack() as stack:

        def open_bar(job: Job) -> Progress:
            stack.close()
            name = f"train {job.method} on its own tips" if job.start else f"train {job.method}"
            bar = stack.enter_context(
                progress_bar(name, total=job.steps, unit="step", is_kept=True)
            )

            def show(line: dict[str, Any]) -> None:
                if "scored" in line:
                    bar.set_note(f"base model scored {line['scored']:,} of {line['of']:,}")
                    return
                left = int(line["seconds_left"])
                note = (
                    f"loss {line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s, "
                    f"{left // 60}:{left % 60:02d} left"
                )
                bar.show(line["step"], total=line["steps"], note=note)
                if line["step"] >= line["steps"]:
                    stack.close()

            return show

        yield open_bar
