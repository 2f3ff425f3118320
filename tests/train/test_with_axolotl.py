"""The settings and rows that Axolotl is given; none of it needs Axolotl."""

import json

import pytest

from reactune.config.sections import TrainConfig
from reactune.train.job import tokens_of
from reactune.train.trainer import plan_job
from reactune.train.with_axolotl import (
    ROWS,
    SETTINGS,
    axolotl_settings,
    dataset_type,
    layers_of,
    layers_to_transform,
    live_steps,
    preference_settings,
    with_mask,
    write_settings,
)
from reactune.train.with_trl import kto_weights, sft_row

TRAIN = TrainConfig(
    backend="axolotl", batch_size=4, lora_rank=4, lora_alpha=8, kto_loss="kto", epochs=2.0
)


def job_for(method, tiny, rows, **changes):
    settings = TRAIN.model_copy(update=changes)
    return plan_job(
        method, rows[method], base_folder=tiny, settings=settings, dtype="bfloat16", max_seconds=60
    )


@pytest.mark.parametrize("method", ["sft", "kto", "dpo"])
def test_settings_are_json_that_holds_the_job(tiny, rows, tmp_path, method):
    job = job_for(method, tiny, rows)
    path = write_settings(tmp_path, job, rows[method])
    assert path == tmp_path / SETTINGS
    written = json.loads(path.read_text())
    assert written["base_model"] == job.base_folder
    assert (written["lora_r"], written["lora_alpha"]) == (4, 8)
    assert (written["max_steps"], written["micro_batch_size"]) == (job.steps, 4)
    assert (written["bf16"], written["fp16"]) == (True, False)
    assert written["sequence_len"] == max(map(tokens_of, rows[method]))
    assert written["datasets"][0]["path"] == str(tmp_path / ROWS)
    assert written.get("rl") == (None if method == "sft" else method)


def test_nothing_is_shuffled_cut_packed_or_padded(tiny, rows, tmp_path):
    written = axolotl_settings(
        tmp_path, job_for("sft", tiny, rows), rows["sft"], longest=99, layers=2
    )
    off = ("shuffle_merged_datasets", "pad_to_sequence_len", "sample_packing", "val_set_size")
    assert not any(written[name] for name in off)
    assert written["curriculum_sampling"] is True
    assert written["sequence_len"] == 99


def test_rows_are_written_in_training_order_with_labels_and_mask(tiny, rows, tmp_path):
    write_settings(tmp_path, job_for("sft", tiny, rows), rows["sft"])
    lines = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert lines == [with_mask(sft_row(row)) for row in rows["sft"]]
    assert all(len(line["attention_mask"]) == len(line["input_ids"]) for line in lines)
    assert with_mask(rows["dpo"][0]) == rows["dpo"][0]


def test_rows_of_preferences_are_written_as_they_are(tiny, rows, tmp_path):
    write_settings(tmp_path, job_for("dpo", tiny, rows), rows["dpo"])
    lines = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    assert lines == rows["dpo"]


@pytest.mark.parametrize(
    ("wanted", "settings"),
    [(0, {}), (1, {"peft_layers_to_transform": [1]}), (5, {"peft_layers_to_transform": [0, 1]})],
)
def test_layers_are_named_only_where_not_all_get_an_adapter(wanted, settings):
    assert layers_to_transform(2, wanted) == settings


def test_the_number_of_layers_is_that_of_the_base_model(tiny, rows):
    assert layers_of(job_for("sft", tiny, rows)) == 2


def test_each_method_names_the_columns_of_its_rows(tiny, rows):
    named = {
        method: set(dict(dataset_type(job_for(method, tiny, rows))["type"] or {}).values())
        for method in ("sft", "kto", "dpo")
    }
    assert named == {
        "sft": set(),
        "kto": {"prompt_ids", "completion_ids", "label"},
        "dpo": {"prompt_ids", "chosen_ids", "rejected_ids"},
    }


def test_kto_weighs_liked_and_disliked_rows_as_the_other_backends_do(tiny, rows):
    uneven = rows["kto"][:-6]
    stated = preference_settings(job_for("kto", tiny, rows), uneven)
    weights = stated["kto_desirable_weight"], stated["kto_undesirable_weight"]
    assert weights == kto_weights(uneven)
    assert stated["rl_beta"] == job_for("kto", tiny, rows).beta
    assert "kto_desirable_weight" not in preference_settings(
        job_for("dpo", tiny, rows), rows["dpo"]
    )


def test_steps_are_logged_to_mlflow_only_where_an_experiment_is_named(tiny, rows):
    assert live_steps(job_for("sft", tiny, rows)) == {"use_mlflow": False}
    named = live_steps(job_for("sft", tiny, rows, mlflow_experiment="tips"))
    assert named["mlflow_experiment_name"] == "tips"
    assert named["mlflow_run_name"] == "sft with axolotl"
    assert named["hf_mlflow_log_artifacts"] is False


def test_a_base_in_four_bits_is_what_axolotl_calls_qlora(tiny, rows, tmp_path):
    for four_bit, adapter in ((False, "lora"), (True, "qlora")):
        job = job_for("sft", tiny, rows, load_in_4bit=four_bit)
        written = axolotl_settings(tmp_path, job, rows["sft"], longest=99, layers=2)
        assert (written["adapter"], written["load_in_4bit"]) == (adapter, four_bit)


def test_several_processes_share_the_batch(tiny, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    written = axolotl_settings(
        tmp_path, job_for("sft", tiny, rows), rows["sft"], longest=99, layers=2
    )
    assert written["micro_batch_size"] == 1
