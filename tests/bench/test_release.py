"""The benchmark of a release, on a model of a few thousand weights."""

import pytest

from places import BENCH


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import release

    return release


@pytest.mark.slow
def test_every_step_is_a_process_with_seconds_and_a_peak(release, tiny, tmp_path):
    figures = release.measure(str(tiny), tmp_path, rounds=1)
    assert [*figures["steps"]] == release.steps()
    assert all(values["seconds"] > 0 for values in figures["steps"].values())
    assert all(50 < values["peak MB"] < 3_000 for values in figures["steps"].values())
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "export" / "model.gguf").read_bytes()[:4] == b"GGUF"
    # What is measured beside ours changes the same weights.
    assert (tmp_path / "peft" / "model.safetensors").is_file()
