import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest

from gguf_fixtures import HEAD, read_with_transformers, save_adapter, write_tiny_gguf
from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.records import ModelVersion, sha256_of
from reactune.release import gguf as exports
from reactune.release.gguf import (
    disk_needed,
    export_gguf,
    export_release,
    possible_types,
    read_release,
    require_exportable,
    unquantise,
    write_release,
)

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
Kind = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Name of an architecture -> a random base model of it, converted."""
    folder = tmp_path_factory.mktemp("tiny")
    made = {}

    def make(architecture):
        if architecture not in made:
            file = write_tiny_gguf(folder / f"{architecture}.gguf", architecture)
            settings = ModelConfig(base=str(file), cache_dir=str(folder / "cache"))
            made[architecture] = base_model(settings)
        return made[architecture]

    return make


@pytest.fixture(scope="module")
def llama(tiny):
    return tiny("llama")


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(open_folder(llama), folder)
    return folder


def open_folder(base):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)


def weights_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def tensors_of(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    "architecture",
    [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in HEAD],
)
@pytest.mark.parametrize(
    ("quantisation", "steps"),
    [("q8_0", 2 * 127), *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        ("f16", 2**11), ("bf16", 2**8)
    ))],
)  # fmt: skip
def test_a_file_holds_the_weights_that_peft_merges_into_the_whole_model(
    tiny, architecture, quantisation, steps, tmp_path
):
    base = tiny(architecture)
    merged = weights_of(save_adapter(open_folder(base), tmp_path / "adapter"))
    settings = ExportConfig(quantisation=quantisation)
    out = tmp_path / "export" / "m.gguf"
    assert export_gguf(base, tmp_path / "adapter", out, settings=settings) == 2 * 7
    read = weights_of(read_with_transformers(out))
    for name, weight in merged.items():
        # Half a step of the type's grid, whose width follows the largest weight nearby; and
        # Q8_0 keeps the width itself as a 16-bit float.
        allowed = np.abs(weight).max() / steps * 1.2
        assert np.abs(read[name] - weight).max() <= allowed, name
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in HEAD],
)
def test_a_base_given_as_q8_comes_out_as_it_was_with_its_own_tokenizer(
    tiny, architecture, tmp_path
):
    base = tiny(architecture)
    export_gguf(base, None, tmp_path / "m.gguf", settings=ExportConfig())
    before, after = tensors_of(base.gguf), tensors_of(tmp_path / "m.gguf")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].data, after[name].data) for name in before)
    ours, theirs = (gguf.GGUFReader(file).fields for file in (tmp_path / "m.gguf", base.gguf))
    names = [name for name in theirs if name.startswith("tokenizer.")]
    assert "tokenizer.chat_template" in names
    assert {n: ours[n].contents() for n in names} == {n: theirs[n].contents() for n in names}


@pytest.mark.slow
def test_the_same_adapter_gives_the_same_bytes_wherever_it_is_exported(llama, adapter, tmp_path):
    for name in ("one", "two"):
        export_gguf(llama, adapter, tmp_path / name / "m.gguf", settings=ExportConfig())
    one, two = ((tmp_path / name / "m.gguf").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_file_and_the_next_one_sweeps(llama, tmp_path):
    out = tmp_path / "m.gguf"
    out.write_text("the old one")
    script = f"""
import os, signal
from pathlib import Path
from reactune.config.sections import ExportConfig
from reactune.model.files import BaseModel
from reactune.release import gguf
gguf.convert = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
base = BaseModel("tiny", Path({str(llama.folder)!r}), Path({str(llama.gguf)!r}), "", "")
gguf.export_gguf(base, None, Path({str(out)!r}), settings=ExportConfig())
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert out.read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 2
    export_gguf(llama, None, out, settings=ExportConfig())
    assert len(tensors_of(out)) == len(tensors_of(llama.gguf))
    assert list(tmp_path.iterdir()) == [out]


def test_unquantised_weights_are_the_numbers_that_quantised_ones_stand_for(tmp_path):
    for kind in (Kind.Q8_0, Kind.Q4_1, Kind.BF16, Kind.F16):
        source = write_tiny_gguf(tmp_path / f"{kind.name}.gguf", kind=kind)
        out = tmp_path / f"{kind.name}-16.gguf"
        unquantise(source, out)
        ours, theirs = (weights_of(read_with_transformers(file)) for file in (out, source))
        for name, weight in theirs.items():
            np.testing.assert_allclose(ours[name], weight, rtol=2**-11, atol=2**-24)
        types = {tensor.tensor_type for tensor in tensors_of(out).values()}
        assert types == {Kind.F32, Kind.F16}
        before, after = (gguf.GGUFReader(file).fields for file in (source, out))
        assert before.keys() == after.keys()


@pytest.mark.parametrize("content", [b"", b"no GGUF at all, but long enough to hold a header"])
def test_what_is_no_gguf_cannot_be_read(content, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ReleaseError, match="no readable GGUF"):
        unquantise(file, tmp_path / "out.gguf")


@pytest.mark.slow
def test_a_type_of_llama_quantize_goes_through_that_program(llama, tmp_path):
    program = tmp_path / "llama-quantize"
    program.write_text('#!/bin/sh\necho "$3" > "$(dirname "$0")/asked"\ncp "$1" "$2"\n')
    program.chmod(0o755)
    settings = ExportConfig(quantisation="q4_k_m", quantiser=str(program))
    export_gguf(llama, None, tmp_path / "out" / "m.gguf", settings=settings)
    assert (tmp_path / "asked").read_text() == "Q4_K_M\n"
    types = {tensor.tensor_type for tensor in tensors_of(tmp_path / "out" / "m.gguf").values()}
    assert types == {Kind.F32, Kind.F16}  # what the program was given to quantise
    program.write_text("#!/bin/sh\necho no such type >&2\nexit 1\n")
    with pytest.raises(ReleaseError, match="does not write q4_k_m \\(no such type\\)"):
        export_gguf(llama, None, tmp_path / "out" / "n.gguf", settings=settings)
    assert "q4_k_m" in possible_types(settings)


@pytest.mark.slow
def test_a_type_without_its_program_is_known_before_anything_is_trained(llama, tmp_path):
    settings = ExportConfig(quantisation="q4_k_m", quantiser=str(tmp_path / "none"))
    assert possible_types(settings) == ("q8_0", "f16", "bf16")
    with pytest.raises(ReleaseError, match="'q4_k_m' needs"):
        require_exportable(llama.folder, llama.gguf, settings)
    with pytest.raises(ReleaseError, match=r"needs .* program llama-quantize"):
        export_gguf(llama, None, tmp_path / "m.gguf", settings=settings)
    require_exportable(llama.folder, llama.gguf, ExportConfig())


def test_a_full_disk_is_known_before_an_export_begins(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "free_disk", lambda folder: 10**3)
    with pytest.raises(ReleaseError, match="of disk"):
        export_gguf(llama, None, tmp_path / "m.gguf", settings=ExportConfig())


def test_the_disk_that_is_asked_for_holds_all_that_an_export_writes(llama):
    weights = sum(int(tensor.n_elements) for tensor in tensors_of(llama.gguf).values())
    assert disk_needed(llama, ExportConfig(quantisation="f16")) == weights * (4 + 2)
    assert disk_needed(llama, ExportConfig(quantisation="q4_0")) == round(weights * (4 + 2 + 5 / 8))


@pytest.mark.parametrize("tuned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_release_is_read_back_from_wherever_its_run_lies_now(llama, adapter, tmp_path, tuned):
    run = tmp_path / "run"
    folder, trained = run / "export", run / "train" / "adapter"
    shutil.copytree(adapter, trained)
    release = export_release(
        llama,
        load_chat(llama.folder, PromptConfig()),
        trained if tuned else None,
        folder,
        run_id="r1",
        settings=ExportConfig(),
    )
    assert release.name == f"reactune-trial:{release.sha256[:12]}"
    assert (release.version, release.run_id, release.quantisation) == (0, "r1", "q8_0")
    assert release.sha256 == sha256_of(release.gguf)
    reward = folder / "reward"
    reward.mkdir()
    (reward / "features.onnx").write_bytes(b"graph")
    release = replace(release, reward=reward if tuned else None)
    names = write_release(release)
    assert ("reward/features.onnx" in names) == tuned
    assert not any(name.startswith("adapter/") for name in names)
    assert {"model.gguf", "release.json", "prompt/stop.txt", "prompt/prompt.json"} <= set(names)
    assert all((folder / name).is_file() for name in names)
    run.rename(tmp_path / "moved")
    moved = read_release(tmp_path / "moved")
    there = tmp_path / "moved" / "export"
    assert moved == replace(
        release,
        gguf=there / "model.gguf",
        prompt_folder=there / "prompt",
        adapter=tmp_path / "moved" / "train" / "adapter" if tuned else None,
        reward=there / "reward" if tuned else None,
    )


def test_a_release_with_the_adapter_of_another_run_holds_it(tmp_path):
    folder = tmp_path / "run" / "export"
    for name in ("model.gguf", "prompt/stop.txt", "adapter/adapter_config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    release = ModelVersion(
        version=0,
        name="trial",
        run_id="run",
        gguf=folder / "model.gguf",
        sha256="ab",
        prompt_folder=folder / "prompt",
        base="tiny",
        quantisation="q8_0",
        adapter=folder / "adapter",
    )
    assert "adapter/adapter_config.json" in write_release(release)
    assert read_release(tmp_path / "run") == release


def test_a_release_that_an_earlier_version_wrote_is_read_without_a_reward(tmp_path):
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    values = {
        "version": 0, "name": "trial", "run_id": "run", "gguf": "/a/run/export/model.gguf",
        "sha256": "ab", "prompt_folder": "/a/run/export/prompt", "base": "tiny",
        "quantisation": "q8_0", "adapter": None,
    }  # fmt: skip
    (folder / "release.json").write_text(json.dumps(values))
    found = read_release(tmp_path / "run")
    assert (found.adapter, found.reward, found.gguf) == (None, None, folder / "model.gguf")


# A process's own ru_maxrss begins at what its parent held; VmHWM begins with the program.
PEAK = """
import re, resource, sys
from pathlib import Path
from reactune.config.sections import ExportConfig
from reactune.model.files import BaseModel
from reactune.release.gguf import export_gguf
base, adapter, out = map(Path, sys.argv[1:])
export_gguf(BaseModel("m", base, None, "", ""), adapter, out, settings=ExportConfig())
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
def test_no_step_takes_more_memory_than_the_base_and_a_third_of_it(tmp_path):
    pytest.importorskip("sentencepiece")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=16,
        tie_word_embeddings=True,
    )
    folder = tmp_path / "base"
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    save_adapter(model, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base_model(ModelConfig()).folder / name, folder / name)
    size = (folder / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", PEAK, folder, tmp_path / "adapter", tmp_path / "m.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    merging, converting = (int(each) * 1024 for each in done.stdout.split()[-2:])
    assert size > 600 * 10**6
    assert max(merging, converting) < 1.3 * size + 500 * 10**6, (merging, converting, size)
