import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from dataset_fixtures import example
from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.model.prompt import completion_ids, rebuild
from reactune.process import child_environment
from reactune.train.job import METHODS, tokens_of, write_job
from reactune.train.trainer import (
    ADAPTER_FILES,
    FIRST_PAIRS,
    MIN_PAIRS,
    clear,
    explain,
    in_order,
    is_same_job,
    keep_adapter,
    last_error,
    plan_job,
    progress_bars,
    read_lines,
    read_log,
    read_progress,
    rows_by_method,
    run_trainer,
    train,
    train_methods,
    within_budget,
)

SETTINGS = TrainConfig(
    batch_size=4, lora_rank=4, lora_alpha=8, learning_rate=5e-3, checkpoint_steps=2, threads=1
)


def job_for(method, tiny, rows, **changes):
    settings = SETTINGS.model_copy(update=changes)
    return plan_job(
        method, rows[method], base_folder=tiny, settings=settings, dtype="float32", max_seconds=600
    )


def weights_of(adapter: Path):
    from safetensors.numpy import load_file

    return load_file(adapter / "adapter_model.safetensors")


def test_steps_follow_epochs_until_the_token_budget_ends_them(tiny, rows):
    assert job_for("sft", tiny, rows, epochs=2.0).steps == 2 * 24 // 4
    per_step = 4 * sum(map(tokens_of, rows["sft"])) / 24
    assert job_for("sft", tiny, rows, epochs=9.0, token_budget=int(5.5 * per_step)).steps == 5


SLOW_METHODS = [pytest.param(method, marks=pytest.mark.slow) for method in ("sft", "dpo")]


@pytest.mark.parametrize("method", ["kto", *SLOW_METHODS])
def test_every_method_writes_an_adapter_that_moved_towards_the_liked_tips(
    tiny, rows, tmp_path, method
):
    from reactune.model.logprobs import open_model, score

    job = job_for(method, tiny, rows, epochs=2.0, preference_learning_rate=5e-3)
    seen = []
    trained = train(tmp_path, job, rows[method], settings=SETTINGS, progress=seen.append)
    assert trained.steps == job.steps
    before = [line for line in seen if "scored" in line]
    assert seen[len(before) :] == read_progress(tmp_path)
    assert [line["step"] for line in seen[len(before) :]] == list(range(1, job.steps + 1))
    assert [line["scored"] for line in before][-1:] == ([] if method == "sft" else [48])
    assert [line["step"] for line in read_progress(tmp_path)] == [s for s, _ in trained.curve]
    assert seen[-1]["tokens_per_second"] > 0
    pairs = [
        (row["prompt_ids"], ids)
        for row in rows["dpo"]
        for ids in (row["chosen_ids"], row["rejected_ids"])
    ]
    gaps = []
    for adapter in (None, trained.adapter):
        with open_model(tiny, adapter, threads=1) as model:
            totals = np.array([values.sum() for values in score(model, pairs)])
        gaps.append((totals[0::2] - totals[1::2]).mean())
    assert gaps[1] > gaps[0]


@pytest.mark.slow
def test_a_killed_training_resumes_from_its_checkpoint_and_ends_with_the_same_adapter(
    tiny, rows, tmp_path
):
    job = job_for("sft", tiny, rows, epochs=2.0)
    whole = train(tmp_path / "whole", job, rows["sft"], settings=SETTINGS)
    broken = tmp_path / "broken"
    path = write_job(broken, job, rows["sft"])
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "reactune.train.with_trl", str(path)], stdout=log, stderr=log
        )
        while len(read_progress(broken)) < 5 and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (broken / "result.json").exists()
    assert list((broken / "checkpoints").glob("checkpoint-*"))
    resumed = train(broken, job, rows["sft"], settings=SETTINGS)
    assert [step for step, _ in resumed.curve] == list(range(1, job.steps + 1))
    assert [loss for _, loss in resumed.curve] == pytest.approx(
        [loss for _, loss in whole.curve], rel=1e-4
    )
    ours, theirs = weights_of(resumed.adapter), weights_of(whole.adapter)
    assert ours.keys() == theirs.keys()
    assert all(np.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


@pytest.mark.slow
def test_where_time_is_short_the_base_model_is_asked_about_the_first_steps_only(
    tiny, rows, tmp_path
):
    job = replace(job_for("kto", tiny, rows, epochs=2.0), max_seconds=0.01)
    trained = train(tmp_path, job, rows["kto"], settings=SETTINGS)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (job.steps, result["planned_steps"], trained.steps) == (24, 1, 1)
    assert len(json.loads((tmp_path / "reference.json").read_text())) == 16 * job.batch_size


def test_a_training_resumes_with_other_threads_but_not_with_another_seed(tiny, rows, tmp_path):
    job = job_for("sft", tiny, rows)
    write_job(tmp_path, job, rows["sft"])
    assert is_same_job(tmp_path, replace(job, threads=2, max_seconds=1.0))
    assert not is_same_job(tmp_path, replace(job, seed=8))


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(tiny, rows, tmp_path):
    job = job_for("sft", tiny, rows, token_budget=1_000)
    train(tmp_path, job, rows["sft"], settings=SETTINGS)
    before = (tmp_path / "result.json").stat().st_mtime_ns
    train(tmp_path, job, rows["sft"], settings=SETTINGS)
    assert (tmp_path / "result.json").stat().st_mtime_ns == before


PARENT = """
import sys
from pathlib import Path
from reactune.config.sections import TrainConfig
from reactune.train.trainer import run_trainer
run_trainer(Path(sys.argv[1]), TrainConfig(launcher=sys.argv[2], processes=int(sys.argv[3])), None)
"""


@pytest.mark.parametrize(
    ("launcher", "processes"), [("", 1), pytest.param("torchrun", 2, marks=pytest.mark.slow)]
)
def test_the_trainer_dies_with_the_process_that_started_it(
    tiny, rows, tmp_path, launcher, processes
):
    write_job(tmp_path, job_for("sft", tiny, rows, epochs=500.0), rows["sft"])
    arguments = [str(tmp_path), launcher, str(processes)]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *arguments])
    children = []
    awaited = 1 + processes if launcher else 1
    while len(children) < awaited and parent.poll() is None:
        children = psutil.Process(parent.pid).children(recursive=True)
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=60)
    assert gone
    assert not alive


def test_a_child_whose_parent_ended_before_it_checked_ends_too():
    code = "from reactune.process import die_with_parent; die_with_parent(); print('alive')"
    orphan = subprocess.run(
        [sys.executable, "-c", code],
        env={**child_environment(), "REACTUNE_PARENT": str(pid_that_is_gone())},
        capture_output=True,
        check=False,
    )
    assert orphan.returncode == -signal.SIGKILL
    assert orphan.stdout == b""


def pid_that_is_gone():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_job_that_cannot_be_read_is_one_clear_error(tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"schema": 99}))
    assert run_trainer(tmp_path, SETTINGS, None) == 3
    assert "is no training job" in (tmp_path / "trainer.log").read_text()


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_one_clear_error(tiny, rows, tmp_path):
    job = job_for("sft", tiny, rows, learning_rate=1e30, epochs=1.0)
    with pytest.raises(TrainingError, match=r"lower \[train\] learning_rate"):
        train(tmp_path, job, rows["sft"], settings=SETTINGS)


def test_what_a_workers_error_was_is_found_among_the_pages_of_its_launcher(tmp_path):
    log = tmp_path / "trainer.log"
    log.write_text(
        "[rank1]: Traceback (most recent call last):\n"
        "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "====================\n"
    )
    assert last_error(log) == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    log.write_text("killed by somebody\n=======\n")
    assert last_error(log) == "killed by somebody"


def test_a_method_without_rows_is_named(tiny, rows, tmp_path):
    with pytest.raises(TrainingError, match="'dpo', but the dataset has no rows for it"):
        train_methods(
            tmp_path,
            {"sft": rows["sft"]},
            base_folder=tiny,
            settings=SETTINGS.model_copy(update={"method": "dpo"}),
            dtype="float32",
            progress=lambda job: lambda line: None,
        )


def test_examples_become_rows_of_every_method_that_they_allow(chat):
    contexts = ['{"v":1,"context":{"free_text":"call the bank"}}', '{"free_text":"water it"}']
    examples = [
        example(f"tip-{n}", f"Tip {n}.", label=n % 2 == 0, context=contexts[n // 2 % 2])
        for n in range(8)
    ]
    pairs = [(examples[0], examples[1])]
    rows = rows_by_method(chat, examples, pairs * MIN_PAIRS)
    assert list(rows) == ["sft", "kto", "dpo"]
    assert rows["sft"] == [row for row in rows["kto"] if row["label"]]
    for row, each in zip(rows["kto"], examples, strict=True):
        assert row == {
            "prompt_ids": list(rebuild(chat, each.kind, each.context_json).token_ids),
            "completion_ids": list(completion_ids(chat, each.tip)),
            "label": each.label,
        }
    assert rows["dpo"][0] == {
        "prompt_ids": rows["kto"][0]["prompt_ids"],
        "chosen_ids": rows["kto"][0]["completion_ids"],
        "rejected_ids": rows["kto"][1]["completion_ids"],
    }


def test_too_few_pairs_are_no_rows_of_dpo_and_no_positives_none_of_sft(chat):
    disliked = [example("tip", label=False, context="{}")]
    assert list(rows_by_method(chat, disliked, [])) == ["kto"]
    liked = example("liked", context="{}")
    pairs = [(liked, disliked[0])] * (MIN_PAIRS - 1)
    assert list(rows_by_method(chat, [liked], pairs)) == ["sft", "kto"]


@pytest.mark.slow
def test_a_schedule_is_shortened_to_the_minutes_that_the_settings_allow(tiny, rows, tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 60.0, "time_budget_minutes": 15 / 60})
    (trained,) = train_methods(
        tmp_path,
        {"sft": rows["sft"]},
        base_folder=tiny,
        settings=settings,
        dtype="float32",
        progress=lambda job: lambda line: None,
    )
    folder = tmp_path / "sft"
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    planned = json.loads((folder / "schedule.json").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert (job["steps"], job["max_seconds"]) == (360, 15.0)
    assert trained.steps <= result["planned_steps"] == planned["steps"] < 360
    assert planned["seconds_per_step"] > 0


def finished(folder, job, rows, *, seconds=30.0, loss=1.5, weight=0.5):
    """A training that has ended, as its files say."""
    write_job(folder, job, rows)
    lines = ({"step": step, "steps": job.steps, "loss": loss} for step in range(1, job.steps + 1))
    (folder / "progress.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = {"steps": job.steps, "loss": loss, "seconds": seconds}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / job.adapter).mkdir(exist_ok=True)
    weights = {"first": np.ones(3, np.float32), "last": np.array([1, weight, 1], np.float32)}
    save_file(weights, folder / job.adapter / ADAPTER_FILES[0])
    return folder


def of_auto(tmp_path, tiny, rows, minutes):
    """Methods that `auto` trains in these minutes, and their time limits, from finished files."""
    settings = SETTINGS.model_copy(update={"time_budget_minutes": minutes})
    jobs = []
    trained = train_methods(
        tmp_path, rows, base_folder=tiny, settings=settings, dtype="float32", progress=jobs.append
    )
    return [one.method for one in trained], [job.max_seconds for job in jobs]


def test_the_first_method_has_all_the_time_and_others_what_is_left_if_it_suffices(
    tiny, rows, tmp_path
):
    tokens = {}
    for method in ("sft", "kto", "dpo"):
        job = job_for(method, tiny, rows)
        finished(tmp_path / method, job, rows[method], seconds=100.0)
        tokens[method] = sum(map(tokens_of, rows[method]))
    dpo = 100.0 * tokens["dpo"] / tokens["kto"]  # at the speed of KTO
    assert of_auto(tmp_path, tiny, rows, 10.0) == (["kto", "dpo", "sft"], [600.0, 500.0, 400.0])
    # One that is too long is left out; a shorter one after it is not.
    minutes = (100.0 + dpo - 1) / 60
    assert of_auto(tmp_path, tiny, rows, minutes)[0] == ["kto", "sft"]
    assert of_auto(tmp_path, tiny, rows, 101.0 / 60)[0] == ["kto"]


def test_a_method_that_overran_leaves_nothing_to_others(tiny, rows, tmp_path):
    for method in ("sft", "kto"):
        job = job_for(method, tiny, rows)
        finished(tmp_path / method, job, rows[method], seconds=500.0)
    two = {method: rows[method] for method in ("sft", "kto")}
    assert of_auto(tmp_path, tiny, two, 1.0) == (["kto"], [60.0])


def test_dpo_comes_first_where_many_pairs_share_a_context():
    many = {"sft": [{}], "kto": [{}], "dpo": [{}] * FIRST_PAIRS}
    assert in_order(many, METHODS) == ["dpo", "kto", "sft"]
    assert in_order({**many, "dpo": [{}] * (FIRST_PAIRS - 1)}, METHODS) == ["kto", "dpo", "sft"]
    assert in_order({"sft": [{}], "kto": [{}]}, ("sft",)) == ["sft"]


def test_a_finished_training_is_read_from_its_files(tiny, rows, tmp_path):
    job = job_for("sft", tiny, rows)
    trained = train(finished(tmp_path, job, rows["sft"]), job, rows["sft"], settings=SETTINGS)
    assert (trained.method, trained.steps, trained.loss) == ("sft", job.steps, 1.5)
    assert trained.adapter == tmp_path / "adapter"
    assert trained.curve == tuple((step, 1.5) for step in range(1, job.steps + 1))
    assert trained.tokens == sum(map(tokens_of, rows["sft"]))
    assert trained.peak_gpu_bytes is None


@pytest.mark.parametrize("spoilt", [{"loss": nan}, {"weight": nan}, {"weight": inf}])
def test_a_loss_or_a_weight_that_is_no_number_is_an_error_whatever_the_code(
    tiny, rows, tmp_path, spoilt
):
    job = job_for("sft", tiny, rows)
    finished(tmp_path, job, rows["sft"], **spoilt)
    with pytest.raises(TrainingError, match=r"lower \[train\] learning_rate. Log: .*trainer\.log"):
        train(tmp_path, job, rows["sft"], settings=SETTINGS)


def test_another_job_in_the_folder_is_cleared_away(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "result.json").write_text("{}")
    clear(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    clear(tmp_path / "never there")
    assert (tmp_path / "never there").is_dir()


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (4, r"the loss or a weight became infinite or no number; lower \[train\] learning_rate"),
        (3, "could not read its job"),
        (-9, r"ended by signal 9 .*lower \[train\] batch_size\). Run again to go on"),
        (-15, "ended by signal 15"),
        (1, "ended with code 1: ValueError: no such thing"),
    ],
)
def test_an_exit_code_is_explained_with_the_log(tmp_path, code, meaning):
    (tmp_path / "trainer.log").write_text("loading\nValueError: no such thing\n")
    assert re.search(rf"{meaning}.*Log: .*trainer\.log$", explain(code, tmp_path))


def test_an_empty_log_is_named_as_such(tmp_path):
    (tmp_path / "trainer.log").write_text("\n---\n")
    assert "ended with code 1: its log is empty" in explain(1, tmp_path)


def test_a_log_shows_progress_bars_as_they_last_stood(tmp_path):
    (tmp_path / "trainer.log").write_bytes(b"start\n 1%\r 50%\r100%\nend \xff\n")
    assert read_log(tmp_path) == "start\n100%\nend \ufffd\n"


def test_progress_holds_whole_lines_only_and_steps_are_those_with_a_loss(tmp_path):
    assert read_lines(tmp_path) == []
    (tmp_path / "progress.jsonl").write_text('{"scored": 4}\n{"step": 1, "loss": 2.0}\n{"step": 2')
    assert read_lines(tmp_path) == [{"scored": 4}, {"step": 1, "loss": 2.0}]
    assert read_progress(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_the_two_files_of_an_adapter_are_copied_and_no_more(tmp_path):
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        (tmp_path / name).write_text(name)
    keep_adapter(tmp_path, tmp_path / "kept" / "adapter")
    assert {file.name: file.read_text() for file in (tmp_path / "kept" / "adapter").iterdir()} == {
        "adapter_model.safetensors": "adapter_model.safetensors",
        "adapter_config.json": "adapter_config.json",
    }


def rows_for_budget(liked, disliked):
    labels = [True] * liked + [False] * disliked
    return [
        {"prompt_ids": [n] * 8, "completion_ids": [1, 2], "label": label}
        for n, label in enumerate(labels)
    ]


def test_a_budget_for_all_rows_takes_all(tiny):
    settings = SETTINGS.model_copy(update={"token_budget": 1_000})
    some = rows_for_budget(30, 10)
    chosen = within_budget(some, settings)
    assert sorted(row["prompt_ids"][0] for row in chosen) == list(range(40))


def test_a_small_budget_reads_as_many_liked_as_disliked_rows():
    settings = SETTINGS.model_copy(update={"token_budget": 1_000})
    chosen = within_budget(rows_for_budget(300, 60), settings)
    assert len(chosen) == 100  # ten tokens each
    assert sum(row["label"] for row in chosen) == 50
    assert within_budget(rows_for_budget(300, 60), settings) == chosen
    other = settings.model_copy(update={"seed": 8})
    assert within_budget(rows_for_budget(300, 60), other) != chosen


def test_a_budget_below_a_batch_takes_a_batch():
    settings = SETTINGS.model_copy(update={"token_budget": 1})
    assert len(within_budget(rows_for_budget(30, 30), settings)) == settings.batch_size


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 2_000))
def test_what_a_budget_takes_is_affordable_and_no_row_comes_twice(liked, disliked, budget):
    settings = SETTINGS.model_copy(update={"token_budget": budget})
    chosen = within_budget(rows_for_budget(liked, disliked), settings)
    numbers = [row["prompt_ids"][0] for row in chosen]
    assert len(set(numbers)) == len(numbers)
    assert len(chosen) <= settings.batch_size or sum(map(tokens_of, chosen)) <= budget


def test_the_bar_follows_the_job_and_shows_loss_speed_and_time(tiny, rows, capsys):
    job = job_for("kto", tiny, rows)
    with progress_bars() as open_bar:
        show = open_bar(job)
        show({"step": 0, "steps": 12, "scored": 1_234, "of": 5_000})
        show({"step": 2, "steps": 12, "loss": 0.5, "tokens_per_second": 81.2, "seconds_left": 75.9})
        open_bar(replace(job, method="dpo"))
        open_bar(replace(job, method="dpo", start="adapter"))
    first, kto, _, dpo, own, _ = capsys.readouterr().err.splitlines()
    assert first == f"train kto: {job.steps} steps"
    assert kto.startswith("train kto: 2 of 12 steps done")
    assert kto.endswith("; loss 0.500, 81 tokens/s, 1:15 left")
    assert dpo.startswith(f"train dpo: 0 of {job.steps} steps")
    assert own == f"train dpo on its own tips: {job.steps} steps"


def test_a_bar_ends_with_the_last_step_of_its_job(tiny, rows, capsys):
    with progress_bars() as open_bar:
        show = open_bar(job_for("kto", tiny, rows))
        show({"step": 9, "steps": 9, "loss": 0.4, "tokens_per_second": 80.0, "seconds_left": 0.0})
        assert "train kto: 9 steps done" in capsys.readouterr().err
    assert capsys.readouterr().err == ""
