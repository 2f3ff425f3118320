"""What the trainer process itself computes, on the tiny model and without a process."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback, get_cosine_schedule_with_warmup

from family_fixtures import FAMILIES, SIZES
from reactune.config.sections import TrainConfig
from reactune.model.logprobs import open_model, score
from reactune.train import with_trl
from reactune.train.job import Job
from reactune.train.trainer import plan_job
from reactune.train.with_trl import (
    REFERENCE_FILE,
    affordable_steps,
    arguments,
    finish,
    in_4bit,
    is_first,
    kto_weights,
    last_layers,
    live_steps,
    load_model,
    neighbours,
    on_any_process,
    prepare,
    processes,
    progress_callback,
    report_progress,
    sft_row,
    shorten,
    targets_of,
    with_reference,
)

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing.:FutureWarning")
SETTINGS = TrainConfig(batch_size=4, lora_rank=4, lora_alpha=8, checkpoint_steps=2, threads=1)


def job_for(method, tiny, rows, **changes):
    settings = SETTINGS.model_copy(update=changes)
    return plan_job(
        method, rows[method], base_folder=tiny, settings=settings, dtype="float32", max_seconds=600
    )


def lines_of(folder):
    return [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]


def test_the_loss_counts_the_completion_only(rows):
    row = rows["sft"][0]
    made = sft_row(row)
    assert made["input_ids"] == row["prompt_ids"] + row["completion_ids"]
    assert [label for label in made["labels"] if label != -100] == row["completion_ids"]


@pytest.mark.parametrize(
    ("layers", "wanted", "chosen"),
    [(4, 0, None), (4, 1, [3]), (4, 3, [1, 2, 3]), (4, 4, [0, 1, 2, 3]), (4, 9, [0, 1, 2, 3])],
)
def test_the_last_layers_are_those_nearest_the_output(layers, wanted, chosen):
    assert last_layers(layers, wanted) == chosen


def test_a_training_may_go_on_from_an_adapter(tiny, rows, tmp_path):
    job = job_for("dpo", tiny, rows)
    before = load_model(job)
    for name, weight in before.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight)
    before.save_pretrained(str(tmp_path / "earlier"))
    after = load_model(replace(job, start=str(tmp_path / "earlier")))
    for name, weight in before.named_parameters():
        if "lora_" in name:
            found = after.get_parameter(name)
            assert torch.equal(found, weight)
            assert found.requires_grad


def test_an_adapter_sits_on_the_wanted_layers_only(tiny, rows):
    model = load_model(job_for("sft", tiny, rows, lora_layers=1))
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".layers.1." in name for name in trained)


def test_the_loras_dropout_is_the_jobs(tiny, rows):
    job = replace(job_for("sft", tiny, rows), lora_dropout=0.25)
    config = load_model(job).peft_config["default"]
    assert config.lora_dropout == 0.25
    assert (config.r, config.lora_alpha) == (4, 8)


def test_weights_are_trained_in_float32_and_start_without_effect(tiny, rows):
    job = job_for("sft", tiny, rows)
    model = load_model(job)
    trained = {n: w for n, w in model.named_parameters() if w.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all(not weight.any() for name, weight in trained.items() if "lora_B" in name)
    assert any(weight.any() for name, weight in trained.items() if "lora_A" in name)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama3", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("phi3", "down_proj gate_up_proj o_proj qkv_proj"),
        ("falcon", "dense dense_4h_to_h dense_h_to_4h query_key_value"),
        ("gpt2", "c_attn c_fc c_proj"),
        ("mixtral", "k_proj o_proj q_proj v_proj"),  # its experts cannot be merged into its files
    ],
)
def test_all_linear_layers_that_can_be_merged_are_trained_whatever_they_are_called(
    family, expected
):
    import transformers

    kind, special, _ = FAMILIES[family]
    model = getattr(transformers, kind)
    with torch.device("meta"):
        empty = model(model.config_class(**{**SIZES, **special, "vocab_size": 60_000}))
    assert targets_of(empty) == expected.split()


def test_four_bits_are_those_of_qlora_and_only_where_the_job_says_so(tiny, rows, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    options = in_4bit(torch.bfloat16)
    kept = options["quantization_config"]
    assert (kept.load_in_4bit, kept.bnb_4bit_quant_type) == (True, "nf4")
    assert kept.bnb_4bit_use_double_quant
    assert kept.bnb_4bit_compute_dtype == torch.bfloat16
    expected = "cuda:3" if torch.cuda.is_available() else "cpu"
    assert options["device_map"] == {"": expected}
    assert job_for("sft", tiny, rows, load_in_4bit=True).load_in_4bit
    assert not job_for("sft", tiny, rows).load_in_4bit


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_liked_and_disliked_rows_weigh_the_same_in_sum(labels):
    liked_weight, disliked_weight = kto_weights([{"label": label} for label in labels])
    liked, disliked = labels.count(True), labels.count(False)
    assert min(liked_weight, disliked_weight) == 1.0
    if liked and disliked:
        assert liked * liked_weight == pytest.approx(disliked * disliked_weight)


def test_each_prompt_is_paired_with_the_completion_before_it():
    batch = {"prompt_ids": [[1], [2], [3]], "completion_ids": [[4], [5], [6]]}
    assert neighbours(batch) == {**batch, "KL_completion_ids": [[6], [4], [5]]}


@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_the_reference_is_the_bases_own_log_probability_of_each_answer(
    tiny, rows, tmp_path, method
):
    job = job_for(method, tiny, rows)
    prepared = prepare(tmp_path, job, rows[method], load_model).train_dataset
    names = {"kto": {"ref_logps": "completion_ids"}}.get(
        method, {"ref_chosen_logps": "chosen_ids", "ref_rejected_logps": "rejected_ids"}
    )
    assert len(prepared) == len(rows[method])
    with open_model(tiny, threads=1) as model:
        for name, answer in names.items():
            texts = [(row["prompt_ids"], row[answer]) for row in rows[method]]
            expected = [values.sum() for values in score(model, texts)]
            np.testing.assert_allclose(prepared[name], expected, rtol=1e-4)


def test_plain_kto_trains_on_rows_of_token_ids_with_neighbours_that_trl_scores(
    tiny, rows, tmp_path
):
    some = {"kto": rows["kto"][:8]}
    job = job_for("kto", tiny, some, kto_loss="kto")
    prepared = prepare(tmp_path, job, some["kto"], load_model).train_dataset
    completions = [row["completion_ids"] for row in some["kto"]]
    assert prepared["completion_ids"] == completions
    first, second = completions[:4], completions[4:]
    assert prepared["KL_completion_ids"] == [
        first[-1], *first[:-1], second[-1], *second[:-1],
    ]  # fmt: skip
    with open_model(tiny, threads=1) as model:
        texts = [(row["prompt_ids"], row["completion_ids"]) for row in some["kto"]]
        expected = [values.sum() for values in score(model, texts)]
    np.testing.assert_allclose(prepared["ref_logps"], expected, rtol=1e-4)


def test_reference_scores_are_computed_once_and_read_again(tiny, rows, tmp_path):
    job = job_for("kto", tiny, rows)
    model = load_model(job)
    answers = {"ref_logps": "completion_ids"}
    first = with_reference(tmp_path, job, model, rows["kto"], answers)
    assert lines_of(tmp_path)[-1] == {"step": 0, "steps": job.steps, "scored": 48, "of": 48}
    (tmp_path / "progress.jsonl").unlink()
    assert with_reference(tmp_path, job, model, rows["kto"], answers) == first
    assert not (tmp_path / "progress.jsonl").exists()
    scores = json.loads((tmp_path / REFERENCE_FILE).read_text())
    assert [row["ref_logps"] for row in first] == [each["ref_logps"] for each in scores]


def test_the_schedule_warms_up_and_counts_steps_of_the_global_batch(tiny, rows, tmp_path):
    job = job_for("sft", tiny, rows)
    stated = arguments(tmp_path, job, rows["sft"] * 10)
    assert (stated["max_steps"], stated["warmup_steps"]) == (60, 3)
    assert stated["per_device_train_batch_size"] == 4
    assert arguments(tmp_path, job, rows["sft"][:4])["warmup_steps"] == 1
    assert stated["train_sampling_strategy"] == "sequential"
    assert stated["max_length"] is None


@pytest.mark.parametrize(
    ("ends", "deadline", "steps"),
    [
        (range(10), 11, 100),  # too few steps to tell
        (range(11), 1000, 100),  # in time
        (range(11), 100, 100),  # in time, to the second
        (range(11), 99, 10 + 80),  # 89 seconds are left, of which nine tenths are planned
        (range(11), 10.5, 11),  # one more at least
        (range(0, 33, 3), 99, 10 + 20),
    ],
)
def test_steps_that_are_left_are_planned_by_the_speed_of_the_last(ends, deadline, steps):
    state = SimpleNamespace(max_steps=100, global_step=10)
    assert affordable_steps(state, list(ends), deadline=deadline) == steps


def test_a_shortened_schedule_falls_to_its_end(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, 100)
    (tmp_path / "schedule.json").write_text('{"steps": 100, "seconds_per_step": 1.5}')
    state, rates = SimpleNamespace(max_steps=100), []
    for step in range(30):
        optimizer.step()
        schedule.step()
        rates += schedule.get_last_lr()
        if step == 9:
            shorten(tmp_path, state, schedule, 30)
    assert state.max_steps == 30
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0)
    planned = json.loads((tmp_path / "schedule.json").read_text(encoding="utf-8"))
    assert planned == {"steps": 30, "seconds_per_step": 1.5}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.01, 1.0], ids=["as fast as measured", "slower"])
def test_a_training_that_becomes_slower_ends_its_schedule_in_time(
    tiny, rows, tmp_path, monkeypatch, seconds
):
    clock = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter, now=0.0)

    class Slower(TrainerCallback):
        """Other work begins after the twentieth step."""

        def on_step_end(self, args, state, control, **kwargs):
            clock.now += 0.01 if state.global_step <= 20 else seconds

    monkeypatch.setattr(with_trl, "time", clock)
    monkeypatch.setattr(with_trl, "seconds_per_step", lambda trainer: 0.01)
    many = rows["sft"] * 10
    job = job_for("sft", tiny, rows, checkpoint_steps=60)
    job = replace(job, steps=60, max_seconds=20.0)
    trainer = prepare(tmp_path, job, many, load_model)
    trainer.add_callback(Slower())
    result = finish(tmp_path, job, many, trainer, started=0.0)
    planned = json.loads((tmp_path / "schedule.json").read_text(encoding="utf-8"))
    assert result["steps"] == result["planned_steps"] == planned["steps"]
    assert result["steps"] == 60 if seconds == 0.01 else 30 < result["steps"] <= 40
    assert result["seconds"] <= job.max_seconds
    rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    assert max(rates) == job.learning_rate
    assert rates[-1] < 0.01 * job.learning_rate


def test_several_processes_share_the_batch_and_the_first_writes(tiny, rows, tmp_path, monkeypatch):
    assert (processes(), is_first()) == (1, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (processes(), is_first()) == (2, False)
    job = job_for("sft", tiny, rows)
    assert arguments(tmp_path, job, rows["sft"])["per_device_train_batch_size"] == 2
    report_progress(tmp_path, {"step": 1})
    assert not (tmp_path / "progress.jsonl").exists()
    monkeypatch.setenv("RANK", "0")
    report_progress(tmp_path, {"step": 1})
    report_progress(tmp_path, {"step": 2})
    assert lines_of(tmp_path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("flag", [True, False])
def test_one_process_decides_alone(flag):
    assert on_any_process(flag) is flag


def test_steps_are_logged_to_mlflow_only_where_an_experiment_is_named(tiny, rows, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    job = job_for("dpo", tiny, rows)
    assert live_steps(job) == {"report_to": "none"}
    named = replace(job, mlflow_experiment="tips")
    assert live_steps(named) == {"report_to": "mlflow", "run_name": "dpo with trl"}


def test_progress_counts_tokens_and_stops_at_the_deadline(tiny, rows, tmp_path):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    job = job_for("sft", tiny, rows)
    (tmp_path / "progress.jsonl").write_text('{"step": 2, "loss": 1}\n{"step": 3, "loss": 1}\n{"st')
    given = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state, control = TrainerState(global_step=2, max_steps=6), TrainerControl()
    callback = progress_callback(tmp_path, job, rows["sft"], deadline=time.monotonic() + 3600)
    callback.on_train_begin(given, state, control)
    state.global_step = 4
    callback.on_log(given, state, control, logs={"loss": 0.5})
    callback.on_log(given, state, control, logs={"train_runtime": 1.0})
    callback.on_step_end(given, state, control)
    assert not control.should_training_stop
    before, line = lines_of(tmp_path)
    assert before == {"step": 2, "loss": 1}
    assert (line["step"], line["steps"], line["loss"]) == (4, 6, 0.5)
    assert line["tokens_per_second"] > 0
    assert 0 <= line["seconds_left"] < 3600
    late = progress_callback(tmp_path, job, rows["sft"], deadline=time.monotonic() - 1)
    late.on_train_begin(given, state, control)
    late.on_step_end(given, state, control)
    assert control.should_training_stop


def test_a_job_has_a_field_for_all_that_an_adapter_depends_on(tiny, rows):
    job = job_for("sft", tiny, rows, learning_rate=0.5, seed=11, lora_layers=1)
    assert isinstance(job, Job)
    assert (job.learning_rate, job.seed, job.lora_layers) == (0.5, 11, 1)
    preference = job_for("dpo", tiny, rows, learning_rate=0.5, preference_learning_rate=0.25)
    assert preference.learning_rate == 0.25
