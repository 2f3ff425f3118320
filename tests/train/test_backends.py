"""Back-ends in environments of their own: same tokens, same order, same files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backend_fixtures import SETTINGS, settings_of
from places import TESTS
from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.train.backends import (
    BACKENDS,
    OWN,
    BackendState,
    digest_of,
    environment,
    folder_of,
    has_gpu,
    has_module,
    install,
    is_made,
    python_of,
    require_4bit,
    require_mlflow,
    requirements_of,
    states,
    usable_methods,
)
from reactune.train.job import COLUMNS, read_rows, write_job
from reactune.train.trainer import plan_job, train


def job_of(method, tiny, rows, settings):
    return plan_job(
        method, rows[method], base_folder=tiny, settings=settings, dtype="float32", max_seconds=600
    )


def run_in(settings, folder, script, *arguments):
    """Run a script of the tests with the back-end's Python, as its trainer is run."""
    call = [str(python_of(settings)), str(TESTS / script), *map(str, arguments)]
    done = subprocess.run(
        call, env=environment(settings, folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["trl", *OWN])
def test_the_collator_of_every_backend_gives_our_tokens_labels_and_order(
    tiny, rows, tmp_path, backend
):
    settings = settings_of(backend)
    job = job_of("sft", tiny, rows, settings)
    path = write_job(tmp_path, job, rows["sft"])
    module = BACKENDS[backend].module
    run_in(settings, tmp_path, "backend_batches.py", module, path, tmp_path / "batches.json")
    batches = json.loads((tmp_path / "batches.json").read_text())
    found = [
        (
            [i for i, m in zip(ids, mask, strict=True) if m],
            [i for i, m in zip(labels, mask, strict=True) if m],
            {i for i, m in zip(labels, mask, strict=True) if not m},
        )
        for batch in batches
        for ids, labels, mask in zip(
            batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True
        )
    ]
    ordered = read_rows(tmp_path, job)
    assert [len(batch["input_ids"]) for batch in batches] == [job.batch_size] * job.steps
    assert len(found) == len(ordered)
    for (ids, labels, beyond), row in zip(found, ordered, strict=True):
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        assert ids == prompt + completion
        assert labels == [-100] * len(prompt) + completion
        assert beyond <= {-100}


@pytest.mark.slow
def test_unsloth_on_a_cpu_trains_as_trl_does(tiny, rows, tmp_path):
    seen, curves = [], []
    for backend in ("trl", "unsloth"):
        settings = settings_of(backend, epochs=2.0)
        job = job_of("sft", tiny, rows, settings)
        trained = train(
            tmp_path / backend, job, rows["sft"], settings=settings, progress=seen.append
        )
        assert trained.steps == job.steps
        assert {file.name for file in trained.adapter.glob("adapter_*")} == {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        curves.append([loss for _, loss in trained.curve])
    assert len(seen) == 2 * len(curves[0])
    # Same weights at the start (one seed), same rows in the same order: same losses.
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-3)


def test_what_cannot_be_trained_without_a_gpu_is_one_error_before_anything_is_built(tmp_path):
    for backend, method, said in (
        ("unsloth", "kto", "trains sft without a GPU"),
        ("axolotl", "auto", "trains nothing without a GPU"),
    ):
        settings = settings_of(backend, method=method)
        if has_gpu(python_of(settings)):
            pytest.skip("this machine has a GPU")
        with pytest.raises(TrainingError, match=said):
            usable_methods(settings)
    assert usable_methods(settings_of("unsloth")) == ("sft",)


def test_a_backend_that_is_not_installed_is_named_with_the_command_that_installs_it(tmp_path):
    settings = TrainConfig(backend="unsloth", backend_folder=str(tmp_path))
    with pytest.raises(TrainingError, match="run `reactune backend install unsloth`"):
        usable_methods(settings)
    assert [each.name for each in states(settings)] == list(BACKENDS)
    assert states(settings)[1].state == "not installed"


def test_an_environment_that_is_whole_is_not_made_again(tmp_path):
    settings = settings_of("unsloth")
    made = folder_of("unsloth", settings) / "reactune.json"
    before = made.stat().st_mtime_ns
    said = []
    install("unsloth", settings, say=said.append)
    assert said == [f"unsloth: {made.parent} exists already"]
    assert made.stat().st_mtime_ns == before


def test_a_backend_of_its_own_sees_our_package_and_nothing_else_of_ours(tmp_path):
    path = environment(TrainConfig(backend="unsloth"), tmp_path)["PYTHONPATH"]
    assert [file.name for file in Path(path).iterdir()] == ["reactune"]
    assert (Path(path) / "reactune" / "train" / "with_unsloth.py").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:mlflow\.")
def test_steps_are_shown_in_mlflow_while_they_are_trained(tiny, rows, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    settings = SETTINGS.model_copy(update={"mlflow_experiment": "tips"})
    assert usable_methods(settings) == tuple(COLUMNS)
    job = job_of("sft", tiny, rows, settings)
    trained = train(tmp_path / "job", job, rows["sft"], settings=settings)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tips").experiment_id])
    assert run.info.run_name == "sft with trl"
    shown = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in shown] == list(trained.curve)


def test_steps_cannot_be_shown_where_no_mlflow_server_is_named(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrainingError, match="'tips', but the environment variable MLFLOW_TRACK"):
        usable_methods(TrainConfig(mlflow_experiment="tips"))


@pytest.mark.slow
@pytest.mark.parametrize("method", list(COLUMNS))
def test_axolotls_own_schema_accepts_our_settings(tiny, rows, tmp_path, method):
    settings = settings_of("axolotl", kto_loss="kto", lora_layers=1, mlflow_experiment="tips")
    job = job_of(method, tiny, rows, settings)
    path = write_job(tmp_path, job, rows[method])
    run_in(settings, tmp_path, "axolotl_schema.py", path, tmp_path / "checked.json")
    checked = json.loads((tmp_path / "checked.json").read_text())
    assert checked["lora_r"] == 4
    assert checked["max_steps"] == job.steps
    assert checked["seed"] == job.seed
    assert checked["micro_batch_size"] == 4
    assert checked["curriculum_sampling"] is True
    assert not checked["shuffle_merged_datasets"]
    assert checked["use_mlflow"] is True
    assert checked["mlflow_experiment_name"] == "tips"
    assert checked["mlflow_run_name"] == f"{method} with axolotl"
    assert checked["rl"] == (None if method == "sft" else method)


def made_from(name, folder, digest):
    """An environment of this Python that says what it was made from."""
    (folder / name / "bin").mkdir(parents=True)
    (folder / name / "bin" / "python").symlink_to(sys.executable)
    (folder / name / "reactune.json").write_text(json.dumps({"backend": name, "digest": digest}))
    return TrainConfig(backend=name, backend_folder=str(folder))


def test_an_environment_of_other_requirements_is_out_of_date(tmp_path):
    settings = made_from("unsloth", tmp_path, digest_of("axolotl"))
    with pytest.raises(
        TrainingError, match="is out of date; run `reactune backend install unsloth"
    ):
        python_of(settings)
    assert states(settings)[1].state == "out of date"


def test_an_environment_of_our_requirements_is_used(tmp_path):
    settings = made_from("unsloth", tmp_path, digest_of("unsloth"))
    assert python_of(settings) == tmp_path / "unsloth" / "bin" / "python"
    assert states(settings)[1] == BackendState("unsloth", "installed", tmp_path / "unsloth")
    (tmp_path / "unsloth" / "bin" / "python").unlink()
    assert not is_made("unsloth", tmp_path / "unsloth")


@pytest.mark.parametrize("text", ["", "[", "{}"])
def test_an_environment_that_was_never_finished_is_not_there(tmp_path, text):
    made_from("axolotl", tmp_path, digest_of("axolotl"))
    (tmp_path / "axolotl" / "reactune.json").write_text(text)
    assert not is_made("axolotl", tmp_path / "axolotl")


def test_the_home_directory_is_expanded_in_the_folder_of_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = folder_of("unsloth", TrainConfig(backend_folder="~/environments"))
    assert folder == tmp_path / "environments" / "unsloth"


def test_each_backend_of_its_own_pins_every_requirement():
    for name in OWN:
        lines = requirements_of(name).read_text().splitlines()
        wanted = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        assert wanted
        assert all("==" in line or "@" in line for line in wanted)


def test_an_environment_has_a_module_or_not():
    assert has_module(Path(sys.executable), "torch")
    assert not has_module(Path(sys.executable), "no_such_module")


def test_every_method_is_trained_by_trl_here():
    assert usable_methods(TrainConfig()) == ("sft", "kto", "dpo")
    assert usable_methods(TrainConfig(method="dpo")) == ("sft", "kto", "dpo")


def test_a_launcher_that_is_not_installed_is_named_with_the_command(tmp_path):
    settings = made_from("unsloth", tmp_path, digest_of("unsloth"))
    python = tmp_path / "unsloth" / "bin" / "python"
    python.unlink()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(TrainingError, match=r"ray.*has none; run `.*pip install"):
        usable_methods(settings.model_copy(update={"launcher": "ray"}))


def test_a_torch_that_cannot_be_imported_is_an_error_that_quotes_it(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ImportError: libtorch is broken >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(TrainingError, match="cannot import torch: ImportError: libtorch is broken"):
        has_gpu(python)


def test_four_bits_are_refused_without_a_gpu_and_say_why():
    if has_gpu(Path(sys.executable)):
        pytest.skip("this machine has a GPU")
    with pytest.raises(TrainingError, match=r"sees no GPU: on a CPU 4 bits are unpacked for every"):
        usable_methods(TrainConfig(load_in_4bit=True))


def test_four_bits_need_bitsandbytes_in_the_trainers_environment(tmp_path):
    python = tmp_path / "its python"
    python.write_text('#!/bin/sh\ncase "$*" in *bitsandbytes) exit 1;; esac\n')
    python.chmod(0o755)
    command = re.escape(f"'{python}'")  # as a shell takes it
    with pytest.raises(TrainingError, match=rf"run `{command} -m pip install 'bitsandbytes"):
        require_4bit(python)
    python.write_text("#!/bin/sh\nexit 0\n")
    require_4bit(python)


def test_a_trainer_without_mlflow_cannot_log_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(TrainingError, match=r"has no MLflow; run `.*pip install mlflow-skinny`"):
        require_mlflow("tips", python)
    require_mlflow("tips", Path(sys.executable))
