"""The GPU benchmark, as far as a machine without a GPU can tell."""

import subprocess
import sys
from pathlib import Path

import pytest

from places import BENCH, REPOSITORY
from reactune.config.sections import ModelConfig, TrainConfig
from reactune.model.files import memory_needed, shape_of
from reactune.train.backends import BACKENDS, has_gpu


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu

    return gpu


@pytest.mark.slow
def test_without_a_gpu_the_benchmark_says_so_and_keeps_nothing():
    if has_gpu(Path(sys.executable)):
        pytest.skip("this machine has a GPU")
    before = sorted((BENCH / "results").iterdir())
    done = subprocess.run(
        [sys.executable, str(BENCH / "gpu.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("no GPU: torch of ")
    assert sorted((BENCH / "results").iterdir()) == before


def test_every_backend_gets_the_same_job_of_all_rows_once(gpu, tmp_path):
    rows = gpu.random_rows(64, seed=1)
    jobs = [
        gpu.job_for(tmp_path, rows, settings=gpu.settings_for(name), dtype="bfloat16")
        for name in BACKENDS
    ]
    assert [job.backend for job in jobs] == list(BACKENDS)
    assert {job.steps * job.batch_size for job in jobs} == {64}
    assert {len(row["completion_ids"]) for row in rows} <= set(range(21, 66))
    assert rows == gpu.random_rows(64, seed=1)


@pytest.mark.slow
def test_the_model_of_the_benchmark_has_about_a_billion_weights(gpu, tmp_path):
    small = {name: size // 16 for name, size in gpu.BILLION.items() if name.endswith("_size")}
    shape = {**gpu.BILLION, **small, "num_hidden_layers": 2, "num_attention_heads": 4}
    folder = gpu.make_model(tmp_path, {**shape, "num_key_value_heads": 2}, seed=1)
    assert shape_of(ModelConfig(base=str(folder))).layers == 2
    per_layer = 2_048 * (2 * 2_048 + 2 * 512 + 3 * 8_192)
    assert 0.9e9 < 16 * per_layer + 49_152 * 2_048 < 1.2e9


def test_the_page_shows_the_estimates_of_the_script(gpu):
    page = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "\n".join(gpu.estimates()) in page


def test_parameters_of_the_models_are_those_that_their_publishers_state(gpu):
    # Billions, on the models' pages at Hugging Face.
    stated = {"Llama 3.2 1B": 1.24, "Qwen 2.5 0.5B": 0.49, "Qwen 2.5 1.5B": 1.54}
    stated |= {"Qwen 2.5 3B": 3.09, "Qwen 2.5 7B": 7.61}
    assert {name: shape.parameters / 1e9 for name, shape in gpu.MODELS.items()} == pytest.approx(
        stated, rel=0.01
    )


def test_a_gpu_needs_less_than_a_cpu_in_float32_and_four_bits_save_the_linear_layers(gpu):
    for shape in gpu.MODELS.values():
        half, four = (gpu.expected_memory(shape, four_bit=bits, batch=8) for bits in (False, True))
        assert half < memory_needed(shape, TrainConfig(batch_size=8)) / 2**30
        linear = shape.layers * sum(inputs * outputs for inputs, outputs in shape.linears)
        assert (half - four) * 2**30 == pytest.approx(linear * (2 - 4.127 / 8))
