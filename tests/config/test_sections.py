"""Limits, types and meanings of single settings, and how the sections fit together."""

import math
import tomllib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import KINDS, ModelConfig, PrivacyConfig, TrainConfig
from reactune.config.settings import Config, commented_file, described, load, sections
from reactune.errors import ConfigError


def limits():
    """Each number with a limit: section, key, JSON Schema."""
    for name, section in sections().items():
        for key, schema in section.model_json_schema()["properties"].items():
            if {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys():
                yield name, key, schema


@pytest.mark.parametrize("name", ["", "a.b.c.d", "a..b", ".a", "a."])
def test_a_table_is_named_in_at_most_three_words(name):
    with pytest.raises(ConfigError, match=r"source.table.*SCHEMA.TABLE"):
        load(None, (f"source.table={name}",))
    assert load(None, ("source.table=lake.app.tips",)).source.table == "lake.app.tips"


def test_a_number_outside_its_limits_is_refused_with_its_name_and_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = 0
    for name, key, schema in limits():
        step = 1 if schema["type"] == "integer" else 1e-9
        outside = [
            *(schema[word] - step for word in ("minimum",) if word in schema),
            *(schema[word] + step for word in ("maximum",) if word in schema),
            *(schema[word] for word in ("exclusiveMinimum", "exclusiveMaximum") if word in schema),
        ]
        for value in outside:
            with pytest.raises(ConfigError) as caught:
                load(None, (f"{name}.{key}={value}",))
            assert f"{name}.{key} = {value}" in str(caught.value)
            refused += 1
    assert refused > 60


def test_a_number_on_its_limit_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fits_alone = {"labels.negative_dwell_below_ms", "canary.share"}  # others limit these further
    for name, key, schema in limits():
        for word in ("minimum", "maximum"):
            if word in schema and f"{name}.{key}" not in fits_alone:
                config = load(None, (f"{name}.{key}={schema[word]}",))
                assert getattr(getattr(config, name), key) == schema[word]


@pytest.mark.parametrize("value", ["true", "'8'", "8.5", "[8]", "{ a = 1 }", "nan"])
def test_a_value_of_another_type_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"prompt\.context_keys"):
        load(
            None,
            (f"prompt.context_keys={value}",) if value != "[8]" else ("prompt.context_keys=[8]",),
        )


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("kinds", ["PERSON", "SHOESIZE"]), ("models", {"en": 1}), ("rare_keys", "city")],
)
def test_what_privacy_replaces_is_checked_when_it_is_read(key, wrong):
    with pytest.raises(ValueError, match=key):
        PrivacyConfig(**{key: wrong})


def test_by_default_all_that_names_a_person_is_replaced():
    kinds = set(PrivacyConfig().kinds)
    assert {"PERSON", "EMAIL", "PHONE", "ADDRESS", "IBAN", "ID", "BIRTHDATE"} <= kinds
    assert kinds < set(KINDS)


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=4))
def test_shares_of_a_rollout_only_grow(share, ramp):
    steps = [share, *ramp]
    grows = all(before < after for before, after in pairwise(steps))
    if grows:
        assert Config(canary={"share": share, "ramp": ramp}).canary.ramp == tuple(ramp)
    else:
        with pytest.raises(ValueError, match="each step above the one before"):
            Config(canary={"share": share, "ramp": ramp})


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_split_is_three_shares_that_sum_to_one(split):
    if min(split) > 0 and math.isclose(sum(split), 1, abs_tol=1e-10):
        assert Config(dataset={"split": split}).dataset.split == tuple(split)
    else:
        with pytest.raises(ValueError, match="three shares above 0 that sum to 1"):
            Config(dataset={"split": split})


@given(st.integers(1, 9), st.integers(2, 64))
def test_every_process_gets_two_rows_of_a_batch_or_more_and_all_the_same(processes, batch):
    train = {"launcher": "torchrun", "processes": processes, "batch_size": batch}
    if batch % processes == 0 and batch // processes >= 2:
        assert Config(train=train).train.processes == processes
    else:
        with pytest.raises(ValueError, match=r"train\.batch_size"):
            Config(train=train)


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10))
def test_no_dwell_time_is_of_a_positive_and_of_a_negative(low, high, below):
    labels = {"positive_dwell_ms": [low, high], "negative_dwell_below_ms": below}
    if below <= low <= high:
        found = Config(labels=labels).labels
        positives = set(range(found.positive_dwell_ms[0], found.positive_dwell_ms[1] + 1))
        assert positives.isdisjoint(range(found.negative_dwell_below_ms))
    else:
        with pytest.raises(ValueError, match="negative_dwell_below_ms"):
            Config(labels=labels)


def test_a_cache_folder_is_absolute_and_the_users_own_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert ModelConfig(cache_dir="mine").cache_folder == tmp_path / "mine"
    assert ModelConfig().cache_folder == tmp_path / "caches" / "reactune"


def test_workers_of_one_url_share_a_name_for_their_copies_and_others_do_not(tmp_path):
    def root_of(url):
        return Config(run={"root": url}, model={"cache_dir": str(tmp_path)}).run_root

    assert root_of("s3://a/runs") == root_of("s3://a/runs/") != root_of("s3://b/runs")
    assert root_of("s3://a/runs").parent == tmp_path
    assert root_of("runs").name == "runs"


def test_types_and_ranges_are_described_as_they_are_checked():
    rows = {f"{section}.{key}": kind for section, key, kind, *_ in described()}
    assert rows["train.lora_rank"] == "integer, ≥ 1"
    assert rows["canary.alpha"] == "number, > 0, < 0.5"
    assert rows["serve.port"] == "integer, ≥ 0, ≤ 65535"
    assert rows["train.method"] == '"auto" or "sft" or "kto" or "dpo"'
    assert (rows["prompt.context_keys"], rows["prompt.instructions"]) == ("list", "table")


def test_no_line_of_the_written_file_is_of_another_section(tmp_path):
    text = commented_file(Config(train=TrainConfig(lora_rank=4), folder=tmp_path))
    assert tomllib.loads(text) == {
        name: ({"lora_rank": 4} if name == "train" else {}) for name in sections()
    }
    heads = [line.split("]")[0] + "]" for line in text.splitlines() if line.startswith("[")]
    assert heads == [f"[{name}]" for name in sections()]


@pytest.mark.parametrize("written", ["2026-02-03", '"2026-02-03"'])
def test_a_day_may_be_written_as_toml_has_it_or_as_a_text(written):
    assert load(None, (f"prompt.date={written}",)).prompt.date == "2026-02-03"


@pytest.mark.parametrize("written", ["2026-02-30", '"today"', "7"])
def test_what_is_no_day_is_refused_with_its_value(written):
    with pytest.raises(ConfigError, match=r"prompt\.date = "):
        load(None, (f"prompt.date={written}",))
