import json
import shutil
import struct

import numpy as np
import pytest

from gguf_fixtures import save_adapter
from reactune.errors import ReleaseError
from reactune.release.merge import REFUSED, merge, stored_tensors, weight_files

# PEFT asks transformers by an old name, and warns of what is trained beside LoRA.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny Llama in five files, with an index."""
    return write_base(tmp_path_factory.mktemp("base"), max_shard_size="60KB")


def write_base(folder, *, dtype="float32", tied=False, **options):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder, **options)
    return folder


def open_folder(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(open_folder(base), folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_alpha": 3, "r": 6},
        {
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 3},
            "alpha_pattern": {"v_proj": 1},
        },
        {"rank_pattern": {"^model.layers.0.self_attn.k_proj": 1}, "use_rslora": True},
        {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_weight_is_what_peft_makes_of_the_whole_model(tmp_path, settings, dtype):
    import torch

    base = write_base(tmp_path / "base", dtype=dtype, max_shard_size="60KB")
    expected = save_adapter(open_folder(base), tmp_path / "adapter", std=0.3, **settings)
    count = merge(base, tmp_path / "adapter", tmp_path / "merged")
    ours, theirs = open_folder(tmp_path / "merged").state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    before = open_folder(base).state_dict()
    assert count == sum(not torch.equal(before[name], theirs[name]) for name in theirs)


def test_what_does_not_change_is_linked_and_what_changes_is_float32(tmp_path):
    base = write_base(tmp_path / "base", dtype="bfloat16", max_shard_size="60KB")
    save_adapter(open_folder(base), tmp_path / "adapter", target_modules=["q_proj"])
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    tensors = stored_tensors(tmp_path / "merged")
    assert {name for name, each in tensors.items() if each.kind == "F32"} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)
    }
    written = {each.file for name, each in tensors.items() if "q_proj" in name}
    assert {file for file in weight_files(tmp_path / "merged") if not file.is_symlink()} == written
    assert (tmp_path / "merged" / "config.json").resolve() == base / "config.json"
    merge(base, None, tmp_path / "plain")
    assert all(path.is_symlink() for path in (tmp_path / "plain").iterdir())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_peft_cannot_merge_into_the_weights_is_refused_by_name(
    base, settings, named, tmp_path
):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        open_folder(base), LoraConfig(**({"target_modules": ["q_proj"]} | settings))
    )
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ReleaseError, match=named):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_settings_beyond_lora_are_refused_wherever_peft_keeps_them(base, adapter, name, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert name in config  # or PEFT has renamed it
    (folder / "adapter_config.json").write_text(json.dumps(config | {name: True}))
    with pytest.raises(ReleaseError, match=name):
        merge(base, folder, tmp_path / "merged")


def break_pair(tensors):
    tensors.pop(f"{LAYER}.lora_B.weight")


def break_rank(tensors):
    name = f"{LAYER}.lora_B.weight"
    tensors[name] = tensors[name][:, :2].copy()


def break_number(tensors):
    tensors[f"{LAYER}.lora_A.weight"][0, 0] = np.nan


def add_layer(tensors):
    tensors[f"{LAYER.replace('.0.', '.7.')}.lora_A.weight"] = np.zeros((4, 64), np.float32)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_pair, "lora_B"),
        (break_rank, "does not fit"),
        (break_number, "NaN"),
        (add_layer, "unknown"),
        (dict.clear, "missing"),
    ],
)
def test_a_damaged_adapter_is_refused(base, adapter, damage, said, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(adapter, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ReleaseError, match=said):
        merge(base, folder, tmp_path / "merged")


def test_an_adapter_with_missing_or_cut_files_is_refused(base, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ReleaseError, match="broken"):
        merge(base, folder, tmp_path / "merged")
    weights.unlink()
    with pytest.raises(ReleaseError, match=r"adapter_model\.safetensors missing"):
        merge(base, folder, tmp_path / "merged")
    (folder / "adapter_config.json").write_text("{")
    weights.touch()
    with pytest.raises(ReleaseError, match="broken"):
        merge(base, folder, tmp_path / "merged")


@pytest.mark.parametrize(
    ("targets", "said"), [(["lm_head"], "no weights"), (["embed_tokens"], "shares")]
)
def test_a_head_that_is_tied_to_the_embeddings_cannot_change_alone(targets, said, tmp_path):
    base = write_base(tmp_path / "base", tied=True)
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(open_folder(base), LoraConfig(target_modules=targets))
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ReleaseError, match=said):
        merge(base, tmp_path / "adapter", tmp_path / "merged")


def test_a_weight_that_is_kept_in_eight_bits_is_refused(base, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(write_base(tmp_path / "base"), tmp_path / "copy")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    save_adapter(open_folder(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(ReleaseError, match="F8_E4M3"):
        merge(folder, tmp_path / "adapter", tmp_path / "merged")


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def write_nonsense(file):
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")


@pytest.mark.parametrize("damage", [cut, write_nonsense])
def test_a_base_with_a_broken_file_is_refused(damage, tmp_path):
    folder = write_base(tmp_path / "base")
    damage(folder / "model.safetensors")
    with pytest.raises(ReleaseError, match="no whole safetensors"):
        stored_tensors(folder)


def test_a_base_that_lacks_a_part_is_refused(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "copy")
    first = weight_files(folder)[0]
    first.unlink()
    with pytest.raises(ReleaseError, match=f"lacks {first.name}"):
        stored_tensors(folder)
