import json
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_fixtures import HEAD, read_with_transformers, save_adapter, write_tiny_gguf
from reactune.config.sections import ExportConfig, ModelConfig, PromptConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.records import sha256_of
from reactune.release.gguf import (
    REFUSED,
    _in_halves,
    _interleave,
    export_base,
    export_merged,
    export_release,
    load_gguf,
    read_lora,
    read_release,
    write_release,
)

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
ARCHITECTURES = list(HEAD)
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


@pytest.fixture(scope="module")
def tiny_chat(llama):
    return load_chat(llama.folder, PromptConfig())


def open_folder(base):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)


def weights_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def tensors_of(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_read_back_is_what_transformers_own_import_reads(tiny, architecture, tmp_path):
    base = tiny(architecture)
    exported = export_base(base, tmp_path / "base.gguf", quantisation="q8_0")
    ours = weights_of(load_gguf(exported.gguf, base.folder))
    theirs = weights_of(read_with_transformers(exported.gguf))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("quantisation", "steps"), [("f16", 2**11), ("q8_0", 2 * 127)])
def test_merging_gives_the_weights_that_peft_merges(
    tiny, architecture, quantisation, steps, tmp_path
):
    base = tiny(architecture)
    merged = weights_of(save_adapter(open_folder(base), tmp_path / "adapter"))
    exported = export_merged(
        base, tmp_path / "adapter", out=tmp_path / "m.gguf", quantisation=quantisation
    )
    read = weights_of(read_with_transformers(exported.gguf))
    assert exported.merged == 2 * 7
    for name, weight in merged.items():
        # Half a step of the type's grid, whose width follows the largest weight nearby; and
        # Q8_0 keeps the width itself as a 16-bit float.
        allowed = np.abs(weight).max() / steps * 1.2
        assert np.abs(read[name] - weight).max() <= allowed, name


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"lora_alpha": 3, "r": 6},
        {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3},
            "alpha_pattern": {"v_proj": 1},
        },
        {"rank_pattern": {"^model.layers.0.self_attn.k_proj": 1}, "use_rslora": True},
        {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
        {"init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
def test_scales_and_ranks_by_module_follow_peft(llama, settings, tmp_path):
    base_weights = weights_of(open_folder(llama))
    merged = weights_of(save_adapter(open_folder(llama), tmp_path, std=0.3, **settings))
    changes = read_lora(tmp_path)
    for name, weight in merged.items():
        change = changes.get(name.removesuffix(".weight"))
        ours = 0 if change is None else change.scale * (change.up @ change.down)
        np.testing.assert_allclose(base_weights[name] + ours, weight, atol=1e-5, err_msg=name)
    assert len(changes) == sum(not np.array_equal(merged[n], base_weights[n]) for n in merged)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_kept_in_half_precision_are_read(llama, dtype, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    save_adapter(open_folder(llama), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    halved = {name: value.to(getattr(torch, dtype)) for name, value in load_file(file).items()}
    save_file(halved, file)
    name = "model.layers.0.self_attn.q_proj"
    expected = halved[f"base_model.model.{name}.lora_A.weight"].float().numpy()
    assert np.array_equal(read_lora(tmp_path)[name].down, expected)


@pytest.mark.parametrize("quantisation", ["q8_0", "f16"])
@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q8_0, Kind.F16, Kind.F32, Kind.BF16])
def test_an_adapter_of_zeros_exports_the_base_byte_for_byte(kind, quantisation, tmp_path):
    file = write_tiny_gguf(tmp_path / "base.gguf", kind=kind)
    base = base_model(ModelConfig(base=str(file), cache_dir=str(tmp_path)))
    save_adapter(open_folder(base), tmp_path / "adapter", std=0)
    plain = export_base(base, tmp_path / "plain.gguf", quantisation=quantisation)
    merged = export_merged(
        base, tmp_path / "adapter", out=tmp_path / "merged.gguf", quantisation=quantisation
    )
    assert merged.gguf.read_bytes() == plain.gguf.read_bytes()
    assert (merged.sha256, merged.merged) == (plain.sha256, 0)


def test_base_and_merged_files_hold_the_same_types_and_only_matrices_are_requantised(
    llama, adapter, tmp_path
):
    for quantisation, kind in (("q8_0", Kind.Q8_0), ("f16", Kind.F16)):
        plain = export_base(llama, tmp_path / "plain.gguf", quantisation=quantisation)
        merged = export_merged(
            llama, adapter, out=tmp_path / "merged.gguf", quantisation=quantisation
        )
        types = {name: tensor.tensor_type for name, tensor in tensors_of(plain.gguf).items()}
        assert types == {n: t.tensor_type for n, t in tensors_of(merged.gguf).items()}
        assert {n for n, t in types.items() if t == Kind.F32} == {n for n in types if "norm" in n}
        assert set(types.values()) == {Kind.F32, kind}
        assert plain.size == plain.gguf.stat().st_size


def test_metadata_and_tokenizer_are_the_bases_own(llama, adapter, tmp_path):
    merged = export_merged(llama, adapter, out=tmp_path / "merged.gguf", quantisation="f16")
    before, after = (gguf.GGUFReader(path).fields for path in (llama.gguf, merged.gguf))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].contents() != after[name].contents()}
    assert changed == {"general.file_type"}
    assert after["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16


def test_matrices_that_q8_cannot_cut_into_blocks_become_f16(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_block_count(1)
    values = np.linspace(-1, 1, 4 * 40, dtype=np.float32).reshape(4, 40)
    writer.add_tensor("blk.0.ffn_up.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = stand_in(tmp_path / "odd.gguf")
    exported = export_base(base, tmp_path / "out.gguf", quantisation="q8_0")
    tensor = tensors_of(exported.gguf)["blk.0.ffn_up.weight"]
    assert tensor.tensor_type == Kind.F16
    assert np.array_equal(tensor.data, values.astype(np.float16))


def stand_in(file):
    from reactune.model.files import BaseModel

    return BaseModel(name="odd", folder=file.parent, gguf=file, digest="", licence="")


def test_progress_counts_every_tensor(llama, tmp_path):
    seen = []
    export_base(
        llama, tmp_path / "m.gguf", quantisation="q8_0", progress=lambda *step: seen.append(step)
    )
    count = len(tensors_of(llama.gguf))
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_a_killed_export_leaves_the_old_file_and_no_half_of_a_new_one(llama, tmp_path):
    out = tmp_path / "m.gguf"
    out.write_text("the old one")
    script = f"""
import os, signal
from pathlib import Path
from reactune.model.files import BaseModel
from reactune.release.gguf import export_base
base = BaseModel("tiny", Path({str(llama.folder)!r}), Path({str(llama.gguf)!r}), "", "")
def die(done, total):
    if done == 9:
        os.kill(os.getpid(), signal.SIGKILL)
export_base(base, Path({str(out)!r}), quantisation="q8_0", progress=die)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert out.read_text() == "the old one"
    export_base(llama, out, quantisation="q8_0")
    assert len(tensors_of(out)) == len(tensors_of(llama.gguf))
    assert list(tmp_path.iterdir()) == [out]


def test_exporting_needs_no_torch(llama, adapter, tmp_path):
    script = f"""
import sys
from pathlib import Path
from reactune.model.files import BaseModel
from reactune.release.gguf import export_merged
base = BaseModel("tiny", Path({str(llama.folder)!r}), Path({str(llama.gguf)!r}), "", "")
adapter, out = Path({str(adapter)!r}), Path({str(tmp_path / "m.gguf")!r})
export_merged(base, adapter, out=out, quantisation="q8_0")
sys.exit(sorted({{"torch", "transformers", "peft"}} & sys.modules.keys()) or 0)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding_A"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.filterwarnings("ignore:.*tie:UserWarning")
def test_what_is_more_than_plain_lora_is_refused_by_name(llama, settings, named, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        open_folder(llama), LoraConfig(**({"target_modules": ["q_proj"]} | settings))
    )
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ReleaseError, match=named):
        export_merged(llama, tmp_path, out=tmp_path / "m.gguf", quantisation="q8_0")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize("name", REFUSED)
def test_settings_beyond_plain_lora_are_refused_wherever_peft_keeps_them(adapter, name, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert name in config  # or PEFT has renamed it
    (folder / "adapter_config.json").write_text(json.dumps(config | {name: True}))
    with pytest.raises(ReleaseError, match=name):
        read_lora(folder)


def break_pair(tensors):
    tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")


def break_rank(tensors):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    tensors[name] = tensors[name][:, :2].copy()


def break_number(tensors):
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = np.nan


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_pair, "lora_B"),
        (break_rank, "rank 4"),
        (break_number, "NaN"),
        (dict.clear, "no LoRA"),
    ],
)
def test_a_damaged_adapter_is_refused(llama, adapter, damage, said, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(adapter, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ReleaseError, match=said):
        export_merged(llama, folder, out=tmp_path / "m.gguf", quantisation="q8_0")


def test_an_adapter_with_missing_or_cut_files_is_refused(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ReleaseError, match="broken"):
        read_lora(folder)
    weights.unlink()
    with pytest.raises(ReleaseError, match=r"adapter_model\.safetensors missing"):
        read_lora(folder)
    (folder / "adapter_config.json").write_text("{")
    weights.touch()
    with pytest.raises(ReleaseError, match="not JSON"):
        read_lora(folder)


def test_an_adapter_of_another_model_is_refused(tiny, adapter, tmp_path):
    with pytest.raises(ReleaseError, match="trained on another model"):
        export_merged(tiny("qwen3"), adapter, out=tmp_path / "m.gguf", quantisation="q8_0")


def test_an_adapter_on_a_weight_the_base_lacks_is_refused(llama, tmp_path):
    settings = {"target_modules": ["lm_head"]}  # tied to the embeddings in this model
    from peft import LoraConfig, get_peft_model

    with pytest.warns(UserWarning, match="tie"):
        get_peft_model(open_folder(llama), LoraConfig(**settings)).save_pretrained(
            tmp_path, save_embedding_layers=False
        )
    with pytest.raises(ReleaseError, match="absent"):
        export_merged(llama, tmp_path, out=tmp_path / "m.gguf", quantisation="q8_0")


def test_a_base_without_gguf_is_refused_with_advice(llama, tmp_path):
    with pytest.raises(ReleaseError, match="put the model's GGUF"):
        export_base(replace(llama, gguf=None), tmp_path / "m.gguf", quantisation="q8_0")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no readable GGUF"),
        (b"no GGUF at all, but long enough to hold a header", "no readable GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "architecture ''"),
    ],
)
def test_a_file_that_is_no_gguf_is_refused(content, said, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ReleaseError, match=said):
        export_base(stand_in(file), tmp_path / "out.gguf", quantisation="q8_0")


def test_a_cut_gguf_is_refused(llama, tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(llama.gguf.read_bytes()[:-5_000])
    with pytest.raises(ReleaseError, match="no readable GGUF"):
        export_base(stand_in(file), tmp_path / "out.gguf", quantisation="q8_0")


def test_another_architecture_is_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ReleaseError, match="'mamba'"):
        export_base(stand_in(tmp_path / "m.gguf"), tmp_path / "out.gguf", quantisation="q8_0")


def test_a_merge_that_overflows_is_refused(llama, tmp_path):
    save_adapter(open_folder(llama), tmp_path / "adapter", std=300.0)
    with pytest.raises(ReleaseError, match="beyond"):
        export_merged(llama, tmp_path / "adapter", out=tmp_path / "m.gguf", quantisation="f16")
    assert not list(tmp_path.glob("*m.gguf*"))


def test_loading_refuses_a_file_of_another_model(tiny, llama, tmp_path):
    with pytest.raises(ReleaseError, match="does not fit the base model"):
        load_gguf(tiny("gemma3").gguf, llama.folder)
    folder = shutil.copytree(llama.folder, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500_000.0
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ReleaseError, match="rope"):
        load_gguf(llama.gguf, folder)


def test_loading_refuses_a_file_that_lacks_or_adds_weights(llama, tmp_path):
    folder = shutil.copytree(llama.folder, tmp_path / "folder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": True}))
    with pytest.raises(ReleaseError, match=r"8 weights are missing.*q_proj\.bias"):
        load_gguf(llama.gguf, folder)


@given(st.sampled_from([(1, 2), (2, 4), (4, 6)]), st.integers(1, 3))
def test_rotary_rows_come_back_from_pairs_to_halves(shape, columns):
    heads, size = shape
    rows = np.arange(heads * size * columns, dtype=np.float32).reshape(heads * size, columns)
    paired = _interleave(rows, heads)
    np.testing.assert_array_equal(_in_halves(paired, heads), rows)
    # llama.cpp: the first rows of a head are the first rows of its two halves.
    assert paired[0].tolist() == rows[0].tolist()
    assert paired[1].tolist() == rows[size // 2].tolist()
    np.testing.assert_array_equal(_interleave(rows, 0), rows)
    np.testing.assert_array_equal(_in_halves(rows, 0), rows)


@pytest.mark.parametrize("tuned", [True, False])
def test_a_release_is_read_back_from_wherever_its_run_lies_now(
    llama, adapter, tmp_path, tuned, tiny_chat
):
    run = tmp_path / "run"
    folder, trained = run / "export", run / "train" / "adapter"
    shutil.copytree(adapter, trained)
    release = export_release(
        llama, tiny_chat, trained if tuned else None, folder, run_id="r1", settings=ExportConfig()
    )
    assert release.name == f"reactune-trial:{release.sha256[:12]}"
    assert (release.version, release.run_id, release.quantisation) == (0, "r1", "q8_0")
    assert release.sha256 == sha256_of(release.gguf)
    names = write_release(release)
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
    )
