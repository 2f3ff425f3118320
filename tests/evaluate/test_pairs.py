"""Preference accuracy on a file of pairs: the number itself, and which pairs do not count."""

import csv
import gzip
import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loop_fixtures import SECRET, copy_of_trained, install, reactions
from reactune import deployment
from reactune.cli import main
from reactune.errors import DataError
from reactune.evaluate.pairs import evaluate_pairs, read_pairs
from reactune.model.files import base_model
from reactune.runs.folders import all_runs

FIRST_FRESH = 5_000


def as_pairs(count, *, first=FIRST_FRESH):
    """Pairs of tips that no training has seen, unless `first` says so."""
    rows = reactions(2 * count, first=first)
    return [
        {
            "kind": "focus",
            "context": {"time_of_day": ["morning", "night"][number % 2]},
            "chosen": liked["tip_content"],
            "rejected": disliked["tip_content"],
        }
        for number, (liked, disliked) in enumerate(zip(rows[::2], rows[1::2], strict=True))
    ]


@pytest.fixture
def write(tmp_path):
    def write_pairs(pairs):
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        return file

    return write_pairs


@pytest.fixture
def went_through(tmp_path):
    return copy_of_trained(tmp_path / "installation")


def mean_log_probability(model, tokenizer, pair, tip):
    """Of a tip's tokens and the stop token, after the prompt as the chat template has it."""
    import torch

    prompt = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTip?\n\n"
        f"Time of day: {pair['context']['time_of_day']}<|im_end|>\n<|im_start|>assistant\n"
    )
    start = tokenizer(prompt, add_special_tokens=False).input_ids
    ids = tokenizer(f"{prompt}{tip}<|im_end|>", add_special_tokens=False).input_ids
    assert ids[: len(start)] == start
    with torch.no_grad():
        all_logs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    logs = [all_logs[place - 1, ids[place]].item() for place in range(len(start), len(ids))]
    return sum(logs) / len(logs), sum(logs)


def test_accuracy_of_the_base_is_that_of_a_direct_computation(tmp_path, write):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = install(tmp_path)
    pairs = as_pairs(24)
    found = evaluate_pairs(config, write(pairs), "base")
    folder = base_model(config.model).folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    won = [
        mean_log_probability(model, tokenizer, pair, pair["chosen"])[0]
        > mean_log_probability(model, tokenizer, pair, pair["rejected"])[0]
        for pair in pairs
    ]
    assert 0 < sum(won) < len(won)
    assert found.accuracy.value == sum(won) / len(won)
    assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high
    assert (found.pairs, found.refused, found.gain_accuracy) == (24, 0, None)


def test_the_tuned_model_prefers_what_people_like(went_through, write):
    file = write(as_pairs(12))
    (run,) = all_runs(went_through.run_root)
    for name in ("challenger", run.name):
        found = evaluate_pairs(went_through, file, name)
        assert found.accuracy.value == found.gain_accuracy.value == 1.0
        assert found.refused == 0
        # Pairs of two contexts, all right: the exact interval of two.
        assert found.lines[:2] == (
            f"{name}: generator by mean log-probability: 1.000 [0.158, 1.000]; 12 pairs",
            f"{name}: generator by gain over the base: 1.000 [0.158, 1.000]; 12 pairs",
        )
    champion = evaluate_pairs(went_through, file, "champion")
    assert champion.gain_accuracy is None
    assert champion.accuracy == evaluate_pairs(went_through, file, "base").accuracy


def test_pairs_with_texts_of_the_dataset_are_refused_and_counted(went_through, write):
    fresh = as_pairs(3)
    seen = as_pairs(3, first=0)
    shouted = {**fresh[0], "chosen": seen[0]["chosen"].upper()}
    spaced = {**fresh[1], "rejected": "  " + seen[1]["rejected"].replace(" ", " \t ") + "\n"}
    file = write([*fresh, *seen, shouted, spaced])
    found = evaluate_pairs(went_through, file, "challenger")
    assert (found.pairs, found.refused) == (3, 5)
    assert "; 3 pairs, 5 refused (in the training data)" in found.lines[0]
    # The base was trained on none of them.
    base = evaluate_pairs(went_through, file, "base")
    assert (base.pairs, base.refused) == (8, 0)


def test_when_all_pairs_were_seen_there_is_nothing_to_say(went_through, write):
    with pytest.raises(DataError, match="all 2 pairs hold texts that challenger was trained on"):
        evaluate_pairs(went_through, write(as_pairs(2, first=0)), "challenger")


def test_a_model_that_is_not_there_is_refused_by_name(tmp_path, went_through, write):
    file = write(as_pairs(2))
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = install(empty)
    with pytest.raises(DataError, match="there is no champion; `reactune status`"):
        evaluate_pairs(nothing, file, "champion")
    with pytest.raises(DataError, match="no run 'nope'"):
        evaluate_pairs(nothing, file, "nope")


GOOD = json.dumps({"kind": "focus", "context": {}, "chosen": "a", "rejected": "b"})


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "not valid JSON; a pair has kind, context, chosen, rejected"),
        ('["a", "b"]', "not a JSON object; a pair has"),
        ('{"kind": "focus", "chosen": "a"}', "lacks context, rejected; a pair has"),
        (GOOD.replace('"b"', "7"), "rejected must be a text"),
        (GOOD.replace('"a"', '" "'), "chosen must be a text"),
        (GOOD.replace("{}", "[]"), "context must be an object"),
        (GOOD.replace("{}", '"{"'), "context is no JSON"),
        (GOOD.replace('"a"', '"a\\ud83d"'), "lone surrogate"),
        (GOOD.replace("{}", '{"a": "\\udc00"}'), "lone surrogate"),
        (GOOD.replace("{}", '{"a": NaN}'), "non-finite number"),
        (GOOD.replace('"b"', '"a"'), "chosen and rejected are the same text"),
    ],
)
def test_a_line_that_is_no_pair_is_named_by_its_number(tmp_path, line, what):
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"pairs\.jsonl, line 3: {what}"):
        read_pairs(file)


def test_rows_that_are_no_pairs_are_listed_and_the_others_are_measured(
    tmp_path, monkeypatch, capsys
):
    config = install(tmp_path)
    lines = [json.dumps(pair) for pair in as_pairs(6)]
    nested = GOOD.replace("{}", '{"time_of_day": {"a": {"b": 1}}}')
    lines[2:2] = ["{", GOOD.replace('"b"', "7"), nested]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(config.folder)
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--pairs", "pairs.jsonl", "--model", "base"])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out.splitlines()[0].endswith("; 6 pairs")
    listed = [line for line in err.splitlines() if line.startswith("pairs.jsonl, line ")]
    assert listed[:2] == [
        "pairs.jsonl, line 3: not valid JSON",
        "pairs.jsonl, line 4: rejected must be a text",
    ]
    assert listed[2].startswith("pairs.jsonl, line 5: ")
    assert len(listed) == 3


def test_a_file_without_pairs_or_without_text_is_refused(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n\n")
    with pytest.raises(DataError, match="holds no pairs"):
        read_pairs(file)
    file.write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="line 1: invalid UTF-8, perhaps Latin-1"):
        read_pairs(file)


def test_pairs_may_stand_in_a_file_of_any_kind(tmp_path):
    rows = [json.loads(GOOD), {**json.loads(GOOD), "context": {"note": "a,b"}, "chosen": "x"}]
    flat = [{**row, "context": json.dumps(row["context"])} for row in rows]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pq.write_table(pa.Table.from_pylist(flat), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    for name in ("a.jsonl.gz", "a.parquet", "a.csv"):
        found = read_pairs(tmp_path / name)
        assert [(each.context, each.chosen) for each in found] == [
            ({}, "a"),
            ({"note": "a,b"}, "x"),
        ]


def test_texts_may_hold_any_character_that_json_allows(tmp_path):
    # Some of these end a line for Python, but not in JSONL.
    odd = "one\u2028two\u0085three\x0cfour"
    pair = json.dumps({**json.loads(GOOD), "chosen": odd}, ensure_ascii=False)
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{pair}\n{GOOD}\n", encoding="utf-8")
    assert [each.chosen for each in read_pairs(file)] == [odd, "a"]
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [each.chosen for each in read_pairs(file)] == [odd, "a"]


def test_repeating_pairs_of_a_context_makes_nothing_more_certain(tmp_path, write):
    config = install(tmp_path)
    pairs = [
        {**pair, "context": {"time_of_day": f"{number} am"}}
        for number, pair in enumerate(as_pairs(12))
    ]
    once = evaluate_pairs(config, write(pairs), "base")
    thrice = evaluate_pairs(config, write(pairs * 3), "base")
    assert thrice.pairs == 3 * once.pairs
    assert asdict(thrice.accuracy) == pytest.approx(asdict(once.accuracy))
    assert once.accuracy.low < once.accuracy.value < once.accuracy.high


def test_one_pair_says_little(tmp_path, write):
    config = install(tmp_path)
    found = evaluate_pairs(config, write(as_pairs(1)), "base")
    low, high = found.accuracy.low, found.accuracy.high
    assert (low, high) in ((0.025, 1.0), (0.0, 0.975))


def test_the_reward_ranks_what_people_like_and_the_service_goes_by_it(went_through, write):
    (run,) = all_runs(went_through.run_root)
    file = write(as_pairs(12))
    for name in ("challenger", run.name):
        found = evaluate_pairs(went_through, file, name)
        assert found.reward_accuracy.value == found.served_accuracy.value == 1.0
        assert found.lines[2:] == (
            f"{name}: reward model: 1.000 [0.158, 1.000]; 12 pairs",
            f"{name}: system as served, by reward's lower bound: 1.000 [0.158, 1.000]; 12 pairs",
        )
    base = evaluate_pairs(went_through, file, "base")
    assert base.reward_accuracy is None
    assert base.served_accuracy == base.accuracy
    assert base.lines[1] == "base: generator by gain over the base: none: it is the base; 12 pairs"
    assert base.lines[2] == "base: reward model: none learned yet; 12 pairs"
    assert base.lines[3].startswith("base: system as served, by mean log-probability: 0.")


def test_a_run_that_trained_no_generator_has_the_base_with_its_reward(went_through, write):
    (run,) = all_runs(went_through.run_root)
    (run / "train" / "manifest.json").unlink()
    found = evaluate_pairs(went_through, write(as_pairs(6)), run.name)
    assert found.gain_accuracy is None
    assert found.reward_accuracy.value == 1.0
    (run / "reward" / "manifest.json").unlink()
    with pytest.raises(DataError, match="has no trained adapter"):
        evaluate_pairs(went_through, write(as_pairs(6)), run.name)


def test_the_command_line_prints_the_accuracy(went_through, write, monkeypatch, capsys):
    monkeypatch.chdir(went_through.folder)
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--pairs", str(write(as_pairs(4)))])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("generator by mean", "generator by gain", "reward model", "system as served")
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"champion: {name}")
    with pytest.raises(SystemExit):
        main(["evaluate", "--pairs", str(write(as_pairs(4))), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["pairs"], facts["refused"]) == ("champion", 4, 0)
    assert facts["accuracy"].keys() == {"value", "low", "high"}
    assert f"{facts['served_accuracy']['value']:.3f} [" in lines[3]
    assert deployment.current(went_through).challenger == 2
