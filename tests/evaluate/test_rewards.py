"""`reactune score`: rows with their rewards, bad rows by their line, and nothing learned yet."""

import csv
import gzip
import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loop_fixtures import SECRET, copy_of_trained, install, reactions
from reactune.cli import main
from reactune.errors import DataError
from reactune.evaluate.rewards import (
    json_line,
    live_or_newest,
    reward_of_run,
    score_file,
    write_scored,
)
from reactune.reward.model import load, save
from reactune.runs.folders import all_runs


def texts(count=12):
    return [
        {
            "id": row["tip_id"],
            "kind": "focus",
            "context": {"time_of_day": "night"},
            "text": row["tip_content"],
        }
        for row in reactions(count, first=7_000)
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return copy_of_trained(tmp_path_factory.mktemp("installation"))


def scored(config, file):
    run_id = live_or_newest(config)
    return list(score_file(config, reward_of_run(config, run_id), file, run_id=run_id))


def write_jsonl(file, rows):
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def write_csv(file, rows):
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "context": json.dumps(row["context"])} for row in rows)
    return file


def write_parquet(file, rows):
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def test_what_people_like_has_the_higher_reward_and_each_a_lower_bound(config, tmp_path):
    rows = scored(config, write_jsonl(tmp_path / "t.jsonl", texts()))
    assert [row.values["id"] for row in rows] == [each["id"] for each in texts()]
    liked, disliked = ([row.values["reward"] for row in rows[n::2]] for n in (0, 1))
    assert min(liked) > max(disliked)
    assert all(row.values["lower_bound"] < row.values["reward"] for row in rows)


def test_all_formats_give_the_same_rewards(config, tmp_path):
    files = (
        write_jsonl(tmp_path / "t.jsonl", texts()),
        write_jsonl(tmp_path / "t.jsonl.gz", texts()),
        write_csv(tmp_path / "t.csv", texts()),
        write_parquet(tmp_path / "t.parquet", texts()),
    )
    found = [[(r.values["id"], r.values["reward"]) for r in scored(config, f)] for f in files]
    assert found[0] == found[1] == found[2] == found[3]
    rows = [row.values for row in scored(config, files[0])]
    for name in ("o.jsonl", "o.jsonl.gz", "o.csv", "o.parquet"):
        write_scored(rows, tmp_path / name)
        again = scored(config, tmp_path / name)
        assert [row.values["reward"] for row in again] == [row["reward"] for row in rows]


BAD = [
    ({"kind": "focus", "context": {}}, "lacks text"),
    ({"kind": "", "context": {}, "text": "a"}, "kind must be a text"),
    ({"kind": "focus", "context": {}, "text": 7}, "text must be a text"),
    ({"kind": "focus", "context": [], "text": "a"}, "context must be an object"),
    ({"kind": "focus", "context": "{", "text": "a"}, "context is no JSON"),
    ({"kind": "focus", "context": {"time_of_day": [1]}, "text": "a"}, "holds list"),
    ({"kind": "focus", "context": {}, "text": "half \ud83d"}, "lone surrogate"),
    ({"kind": "focus", "context": {}, "text": "a", "half \ud83d": 1}, "lone surrogate"),
]


def test_bad_rows_are_listed_by_their_line_and_the_others_scored(
    config, tmp_path, monkeypatch, capsys
):
    file = write_jsonl(tmp_path / "t.jsonl", [texts()[0], *(row for row, _ in BAD), texts()[1]])
    with file.open("a") as lines:
        lines.write("no json\n")
    monkeypatch.chdir(config.folder)
    with pytest.raises(SystemExit) as caught:
        main(["score", str(file), "--out", str(tmp_path / "out.jsonl")])
    assert caught.value.code == 2
    listed = capsys.readouterr().err.splitlines()
    listed = [line for line in listed if line.startswith(str(file))]
    assert len(listed) == len(BAD) + 1
    for line, number, (_, reason) in zip(listed, range(2, 10), BAD, strict=False):
        assert line.startswith(f"{file}, line {number}: ")
        assert reason in line
    assert listed[-1] == f"{file}, line 11: not valid JSON"
    out = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in out] == [each["id"] for each in texts()[:2]]


def test_a_number_that_json_does_not_have_is_null():
    row = {"a": float("nan"), "b": [float("-inf"), "NaN"], "c": "caf\u00e9"}
    assert json.loads(json_line(row)) == {"a": None, "b": [None, "NaN"], "c": "caf\u00e9"}


def test_rows_go_to_standard_output(config, tmp_path, monkeypatch, capsys):
    file = write_jsonl(tmp_path / "t.jsonl", texts(4))
    monkeypatch.chdir(config.folder)
    (run,) = all_runs(config.run_root)
    with pytest.raises(SystemExit) as caught:
        main(["score", str(file), "--run", run.name])
    assert caught.value.code == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(row) - {"reward", "lower_bound"} for row in rows] == [set(texts()[0])] * 4


def test_nothing_learned_yet_is_one_line(tmp_path, monkeypatch, capsys):
    install(tmp_path)
    file = write_jsonl(tmp_path / "t.jsonl", texts(2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    with pytest.raises(SystemExit) as caught:
        main(["score", str(file)])
    assert caught.value.code == 3
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no reward is learned yet" in err


def test_a_reward_of_another_base_is_refused(config, tmp_path):
    (run,) = all_runs(config.run_root)
    shutil.copytree(run / "reward", tmp_path / "reward")

    save(replace(load(run / "reward"), base_digest="f" * 64), tmp_path / "reward")
    file = write_jsonl(tmp_path / "t.jsonl", texts(2))
    with pytest.raises(DataError, match="base model of digest ffffffffffff"):
        list(score_file(config, load(tmp_path / "reward"), file, run_id=run.name))


def test_a_run_that_is_not_there_is_refused_by_name(config):
    with pytest.raises(DataError, match="no run 'nope'"):
        reward_of_run(config, "nope")
