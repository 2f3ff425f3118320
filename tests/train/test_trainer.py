import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from dataset_fixtures import example
from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.model.prompt import completion_ids, rebuild
from reactune.process import child_environment
from reactune.train.job import tokens_of, write_job
from reactune.train.trainer import (
    MIN_PAIRS,
    is_same_job,
    last_error,
    plan_job,
    read_progress,
    rows_by_method,
    run_trainer,
    train,
    train_methods,
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


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
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


def test_a_killed_training_goes_on_from_its_checkpoint_and_ends_as_if_nothing_had_been(
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


def test_where_time_is_short_the_base_model_is_asked_about_the_first_steps_only(
    tiny, rows, tmp_path
):
    job = replace(job_for("kto", tiny, rows, epochs=2.0), max_seconds=0.01)
    trained = train(tmp_path, job, rows["kto"], settings=SETTINGS)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (job.steps, result["planned_steps"], trained.steps) == (24, 16, 1)
    assert len(json.loads((tmp_path / "reference.json").read_text())) == 16 * job.batch_size


def test_a_training_goes_on_with_other_threads_but_not_with_another_seed(tiny, rows, tmp_path):
    job = job_for("sft", tiny, rows)
    write_job(tmp_path, job, rows["sft"])
    assert is_same_job(tmp_path, replace(job, threads=2, max_seconds=1.0))
    assert not is_same_job(tmp_path, replace(job, seed=8))


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


def test_a_child_whose_parent_ended_before_it_could_look_ends_too():
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


def test_the_head_that_scores_labels_only_gives_trls_own_losses(tiny, rows):
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from reactune.train.with_trl import score_only_labelled_positions, sft_row

    fields = ("log_probs", "entropy", "mean_logits", "is_top1")
    outputs = []
    for patch in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny)
        add_fused_lm_head(model, outputs=fields)
        if patch:
            score_only_labelled_positions(model)
        row = sft_row(rows["sft"][0])
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        out = model(input_ids=ids, labels=labels, fused_lm_head=True)
        out.loss.backward()
        grad = model.model.layers[0].mlp.up_proj.weight.grad
        outputs.append([out.loss, *(getattr(out, name).float() for name in fields), grad])
    for theirs, ours in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_counts_the_completion_only(rows):
    from reactune.train.with_trl import sft_row

    row = rows["sft"][0]
    made = sft_row(row)
    assert made["input_ids"] == row["prompt_ids"] + row["completion_ids"]
    assert [label for label in made["labels"] if label != -100] == row["completion_ids"]


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


def test_the_methods_share_the_minutes_that_the_settings_allow(tiny, rows, tmp_path):
    trained = train_methods(
        tmp_path,
        {"sft": rows["sft"]},
        base_folder=tiny,
        settings=SETTINGS.model_copy(update={"epochs": 9.0, "time_budget_minutes": 0.01 / 60}),
        dtype="float32",
        progress=lambda job: lambda line: None,
    )
    job = json.loads((tmp_path / "sft" / "job.json").read_text(encoding="utf-8"))
    assert (job["steps"], job["max_seconds"]) == (54, pytest.approx(0.01))
    assert [each.steps for each in trained] == [1]
