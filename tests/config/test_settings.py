"""Settings: what is in force, what is refused, and the files that say so."""

import os
import re
import string
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import SourceConfig, StoreConfig
from reactune.config.settings import (
    REMOVED,
    Config,
    absolute_sqlite_url,
    commented_file,
    deciding,
    described,
    load,
    resolved,
    sections,
    sqlite_file,
    without_passwords,
)
from reactune.data import ingest
from reactune.data.dataset import rules
from reactune.errors import ConfigError
from reactune.evaluate import gate
from reactune.model.files import locate
from reactune.pii import detectors
from reactune.release.converter import converter_folder, find_quantiser
from reactune.train import trainer
from reactune.train.backends import folder_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text):
    file = folder / "reactune.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_without_a_file_the_defaults_are_in_force(here):
    config = load()
    assert config == Config(folder=here)
    assert (config.train.lora_rank, config.labels.positive_dwell_ms) == (16, (15_000, 120_000))


def test_the_file_of_the_current_folder_is_read(here):
    write(here, "[train]\nlora_rank = 4\n")
    assert load().train.lora_rank == 4


def test_set_wins_over_the_file_and_the_file_over_defaults(here):
    file = write(here, "[train]\nlora_rank = 4\nlora_alpha = 8\n")
    config = load(file, ("train.lora_rank=8", "train.method=kto"))
    train = config.train
    assert (train.lora_rank, train.lora_alpha, train.method) == (8, 8, "kto")
    assert train.learning_rate == Config().train.learning_rate


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=2", "train", "epochs", 2.0),
        ("canary.ramp=[0.2, 0.4]", "canary", "ramp", (0.2, 0.4)),
        ("prompt.instructions={meal = 'Cook'}", "prompt", "instructions", {"meal": "Cook"}),
        ("prompt.system=", "prompt", "system", ""),
        ("prompt.system=be brief = be kind", "prompt", "system", "be brief = be kind"),
        ('store.url="sqlite:///x.db"', "store", "url", "sqlite:///x.db"),
        ("store.url=sqlite:///x.db", "store", "url", "sqlite:///x.db"),
    ],
)
def test_set_takes_toml_or_plain_text(here, override, section, key, value):
    assert getattr(getattr(load(None, (override,)), section), key) == value


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train]\nlora_rnk = 4", "train.lora_rnk"),
        ("[trian]\nlora_rank = 4", "trian"),
        ("lora_rank = 4", "lora_rank"),
        ("[train]\nlora_rank = 0", "train.lora_rank = 0"),
        ("[train]\nmethod = 'ppo'", "train.method = 'ppo'"),
        ("[canary]\nshare = 1.5", "canary.share = 1.5"),
        ("[dataset]\nsplit = [0.5, 0.1, 0.1]", "split"),
        ("[labels]\npositive_dwell_ms = [4000, 120000]", "positive_dwell_ms"),
        ("[canary]\nramp = [0.5, 0.25]", "canary.ramp"),
        ("[train]\nprocesses = 2", "train.launcher"),
        ("[train]\nlauncher = 'torchrun'\nprocesses = 3", "train.batch_size = 8"),
        ("[train]\nlauncher = 'torchrun'\nprocesses = 8", "train.batch_size = 8"),
        ("folder = '/'", "folder"),
        ("train = 3", "train"),
        ("[train", "TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(here, text, named):
    file = write(here, text)
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        load(file)
    assert "reactune.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_that_no_longer_exist_are_read_with_one_warning_for_each_file(here, caplog):
    file = write(here, "[gate]\nmax_pairs = 1500\nseed = 5\n[train]\nbeta = 0.3\nlora_rank = 4\n")
    assert load(file).train.lora_rank == load(file).train.lora_rank == 4
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"{file}: settings without effect, delete them: gate.max_pairs = 1500 (in force: no "
        "limit), gate.seed = 5 (in force: 7), train.beta = 0.3 (in force: 0.1)"
    )


def test_a_removed_setting_given_by_set_is_warned_of(here, caplog):
    assert load(None, ("gate.few_shot=11", "train.lora_rank=4")).train.lora_rank == 4
    (record,) = caplog.records
    assert record.getMessage().startswith("--set: ")
    assert "gate.few_shot = 11 (in force: 3)" in record.getMessage()


def test_the_warning_names_the_values_that_the_readers_use():
    in_force = {
        "ingest.batch_rows": ingest.BATCH_ROWS,
        "dataset.max_imbalance": rules.MAX_IMBALANCE,
        "dataset.near_duplicate": rules.NEAR_DUPLICATE,
        "dataset.burst_seconds": rules.BURST_SECONDS,
        "dataset.constant_dwell_reactions": rules.CONSTANT_DWELL_REACTIONS,
        "dataset.constant_dwell_spread": rules.CONSTANT_DWELL_SPREAD,
        "dataset.max_share_of_kind": rules.MAX_SHARE_OF_KIND,
        "train.lora_dropout": trainer.LORA_DROPOUT,
        "train.beta": trainer.BETA,
        "gate.few_shot": gate.FEW_SHOT,
        "gate.seed": gate.SEED,
    }
    assert in_force | {"gate.max_pairs": "no limit"} == REMOVED


def test_nothing_that_protects_people_or_decides_a_rollout_was_removed():
    assert {name.partition(".")[0] for name in REMOVED}.isdisjoint({"privacy", "labels", "canary"})
    assert {f"{section}.{key}" for section, key, *_ in described()}.isdisjoint(REMOVED)


@pytest.mark.parametrize("override", ["train", "train.lora_rank", "lora_rank=3", "=3", ".a=3"])
def test_a_set_that_is_no_setting_is_refused_with_the_form_it_should_have(here, override):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load(None, (override,))


def test_a_key_in_place_of_a_section_is_refused_whatever_set_says(here):
    file = write(here, "train = 3")
    with pytest.raises(ConfigError, match=r"\[train\]"):
        load(file, ("train.lora_rank=4",))


def test_a_file_that_is_asked_for_must_be_there(here):
    with pytest.raises(ConfigError, match="reactune init"):
        load(here / "other.toml")


def test_nothing_can_be_changed_once_it_is_read():
    with pytest.raises(ValueError, match="frozen"):
        Config().train.lora_rank = 3


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "app"
    folder.mkdir()
    write(folder, "[run]\nroot = 'out'\n")
    monkeypatch.chdir(tmp_path)
    config = load(Path("app/reactune.toml"))
    assert config.run_root == folder / "out"
    assert config.store_url == f"sqlite:///{folder}/reactune.db"
    assert config.tracking_uri == f"sqlite:///{folder}/mlflow.db"


PLACES = {
    "run.root": ("{}", lambda config: config.run_root),
    "store.url": ("sqlite:///{}", lambda config: sqlite_file(config.store_url)),
    "registry.tracking_uri": ("sqlite:///{}", lambda config: sqlite_file(config.tracking_uri)),
    "model.cache_dir": ("{}", lambda config: config.model.cache_folder),
    "model.base": ("{}", lambda config: locate(config.model)),
    "prompt.template": ("{}", lambda config: config.prompt.path(config.prompt.template)),
    "train.backend_folder": ("{}", lambda config: folder_of("axolotl", config.train).parent),
    "export.converter": ("{}", lambda config: converter_folder(config.export)),
    "export.quantiser": ("{}/llama-quantize", lambda config: find_quantiser(config.export).parent),
}


@pytest.mark.parametrize("name", ["a b", "100%", "a%20b", "what?", "a#1", "[x]*", "it's", "ü", "~"])
@pytest.mark.parametrize("prefix", ["sqlite:///", "sqlite+pysqlite:///"])
def test_a_database_lies_beside_the_settings_whatever_their_folder_is_called(
    tmp_path, name, prefix
):
    folder = tmp_path / name
    folder.mkdir()
    url = absolute_sqlite_url(f"{prefix}my%20tips.db?timeout=7", folder)
    assert sqlite_file(url) == folder / "my tips.db"
    found = sa.make_url(url)
    assert (found.database, dict(found.query)) == (str(folder / "my tips.db"), {"timeout": "7"})
    assert absolute_sqlite_url(url, tmp_path) == url


@pytest.mark.parametrize("start", ["", "./", "../app/", "~/", "absolute"])
@pytest.mark.parametrize("key", PLACES)
def test_every_path_starts_at_the_file_or_at_home_wherever_a_command_is_called(
    tmp_path, monkeypatch, key, start
):
    app, home, elsewhere = (tmp_path / name for name in ("app", "home", "elsewhere"))
    for folder in (app / "here", home / "here", elsewhere):
        folder.mkdir(parents=True)
        (folder / "convert_hf_to_gguf.py").touch()
        (folder / "llama-quantize").touch(mode=0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    named, found = PLACES[key]
    section, _, name = key.partition(".")
    text = named.format(str(app / "here") if start == "absolute" else f"{start}here")
    config = load(write(app, f"[{section}]\n{name} = '{text}'\n"))
    assert Path(found(config)).resolve() == (home if start == "~/" else app) / "here"
    assert getattr(getattr(config, section), name) == text  # as it is recorded


def test_a_program_without_a_path_is_one_of_the_search_path(tmp_path, monkeypatch):
    (tmp_path / "ours").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    config = load(write(tmp_path, "[export]\nquantiser = 'ours'\n"))
    assert find_quantiser(config.export) == tmp_path / "ours"


def test_a_folder_that_finds_names_is_found_from_the_file_on(tmp_path, monkeypatch):
    for name in ("finder", "names"):  # the built-in model goes before a folder of its name
        (tmp_path / name).mkdir()
    monkeypatch.chdir("/")
    opened = []
    monkeypatch.setattr(detectors, "_name_finder", lambda model, _: opened.append(model))
    config = load(write(tmp_path, "[privacy.models]\nen = 'finder'\nde = 'names'\n"))
    detectors.open_detector(config.privacy)
    assert opened == [str(tmp_path / "finder"), "names"]


@pytest.mark.parametrize(
    "url", ["sqlite:////data/x.db", "sqlite:///:memory:", "postgresql://host/tips"]
)
def test_other_urls_stay_as_they_are(tmp_path, url):
    assert Config(folder=tmp_path, store=StoreConfig(url=url)).store_url == url


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:secret@host:5432/db", "postgresql://h/db?user=me&password=secret"],
)
def test_what_is_recorded_of_settings_holds_no_password(url):
    config = Config(store=StoreConfig(url=url), source=SourceConfig(url=url))
    for shown in (
        resolved(config),
        str(without_passwords(config)),
        str(deciding(config, ["source"])),
    ):
        assert "secret" not in shown
        assert url.partition("secret")[0] in shown


def test_the_written_file_changes_nothing(here):
    file = write(here, commented_file(Config()))
    assert load(file) == Config(folder=here)


def test_the_written_file_shows_every_default_as_it_would_be_written(here):
    shown = re.sub(r"^# (?=\w+ = )", "", commented_file(Config()), flags=re.MULTILINE)
    tables = tomllib.loads(shown)
    assert {name: set(keys) for name, keys in tables.items()} == {
        name: set(section.model_fields) for name, section in sections().items()
    }
    assert load(write(here, shown)) == Config(folder=here)


def test_the_written_file_keeps_what_was_chosen(here):
    chosen = load(None, ("train.lora_rank=4", "prompt.instructions={'my kind' = 'Say \"hi\"'}"))
    file = write(here, commented_file(chosen))
    assert load(file) == chosen


def test_what_config_prints_can_be_read_back(here):
    chosen = load(None, ("canary.ramp=[0.2, 0.4]", "serve.port=9"))
    assert load(write(here, resolved(chosen))) == chosen
    assert "port = 9 # default: 8765\n" in resolved(chosen)


def test_every_section_and_every_key_says_what_it_means():
    for section, key, kind, _, meaning in described():
        assert meaning.endswith("."), f"{section}.{key}"
        assert kind, f"{section}.{key}"
    assert all(section.__doc__ for section in sections().values())


def test_no_key_is_made_for_a_secret():
    names = [key for _, key, *_ in described()]
    assert [n for n in names if re.search("secret|password|token$|salt", n)] == []


texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
tables = st.dictionaries(texts | st.text(string.ascii_letters), texts, max_size=3)


@given(texts, tables, st.lists(texts, max_size=3), st.floats(0, 2, allow_subnormal=False))
def test_whatever_is_chosen_is_written_as_toml_and_read_back_the_same(text, table, keys, number):
    chosen = Config(
        prompt={"system": text, "instructions": table, "context_keys": keys},
        serve={"temperature": number, "good_tips": {text: keys}},
    )
    for written in (commented_file(chosen), resolved(chosen)):
        found = Config(**tomllib.loads(written))
        assert found.prompt.model_dump(exclude={"instructions"}) == chosen.prompt.model_dump(
            exclude={"instructions"}
        )
        assert dict(found.prompt.instructions) == table
        assert found.serve == chosen.serve


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_settings_are_utf_8_whatever_the_locale(tmp_path, mark):
    file = tmp_path / "reactune.toml"
    file.write_bytes(mark + '[serve]\ngood_tips = { k = ["Caf\u00e9?"] }\n'.encode())
    code = (
        "import sys; from pathlib import Path; from reactune.config.settings import load\n"
        "print(ascii(load(Path(sys.argv[1])).serve.good_tips['k']))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, file], env=os.environ | locale, capture_output=True, text=True
    )
    assert done.stdout == "('Caf\\xe9?',)\n", done.stderr


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-16", "is UTF-16, not UTF-8; save it as UTF-8"), ("latin-1", "line 2: .*Latin-1")],
)
def test_settings_in_another_encoding_are_named_as_such(tmp_path, encoding, message):
    file = tmp_path / "reactune.toml"
    file.write_bytes('[serve]\ngood_tips = { k = ["Caf\u00e9?"] }\n'.encode(encoding))
    with pytest.raises(ConfigError, match=message):
        load(file)
