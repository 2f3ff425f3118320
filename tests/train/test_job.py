"""A job on disk, the order in which its rows are trained, and how far a killed training got."""

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.config.sections import TrainConfig
from reactune.errors import TrainingError
from reactune.train.job import (
    COLUMNS,
    METHODS,
    SCHEMA,
    in_training_order,
    is_json,
    keep_lines_until,
    last_checkpoint,
    read_job,
    read_rows,
    tokens_of,
    write_job,
)
from reactune.train.trainer import plan_job

SETTINGS = TrainConfig(batch_size=2, epochs=2.0)
ROWS = {
    "sft": [{"prompt_ids": [1, 2], "completion_ids": [3]}] * 4,
    "kto": [{"prompt_ids": [1], "completion_ids": [3], "label": n % 2 == 0} for n in range(4)],
    "dpo": [{"prompt_ids": [1], "chosen_ids": [3, 4], "rejected_ids": [5]}] * 4,
}


def rows_of(count, *, labels=False):
    draw = random.Random(count)
    return [
        {
            "prompt_ids": [number] * draw.randint(40, 120),
            "completion_ids": [1] * draw.randint(5, 30),
            **({"label": number % 3 == 0} if labels else {}),
        }
        for number in range(count)
    ]


def ids(rows):
    return [row["prompt_ids"][0] for row in rows]


def batches_of(rows, size):
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def padded(rows, size):
    return sum(len(b) * max(map(tokens_of, b)) for b in batches_of(rows, size))


def test_every_epoch_holds_every_row_once_and_each_in_another_order():
    rows = rows_of(100)
    ordered = ids(in_training_order(rows, steps=75, batch_size=4, seed=1))
    epochs = batches_of(ordered, 100)
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(("steps", "batch_size"), [(1, 8), (7, 3), (40, 8)])
def test_as_many_rows_come_as_the_steps_read(steps, batch_size):
    ordered = in_training_order(rows_of(21), steps=steps, batch_size=batch_size, seed=1)
    assert len(ordered) == steps * batch_size


def test_the_seed_decides_and_nothing_else():
    rows = rows_of(50)
    orders = [ids(in_training_order(rows, steps=6, batch_size=8, seed=s)) for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_padding_is_a_fraction_of_what_a_random_order_pads():
    rows = rows_of(400)
    real = sum(map(tokens_of, rows))
    shuffled = random.Random(0).sample(rows, len(rows))
    ordered = in_training_order(rows, steps=50, batch_size=8, seed=1)
    assert padded(ordered, 8) - real < 0.35 * (padded(shuffled, 8) - real)


def test_batches_of_unlike_length_follow_each_other():
    ordered = in_training_order(rows_of(400), steps=50, batch_size=8, seed=1)
    lengths = [max(map(tokens_of, batch)) for batch in batches_of(ordered, 8)]
    ups = sum(later > earlier for earlier, later in pairwise(lengths))
    assert 15 < ups < 35


def test_liked_and_disliked_rows_share_every_batch_though_one_kind_is_longer():
    rows = rows_of(240, labels=True)
    for row in rows:
        row["completion_ids"] = [1] * (100 if row["label"] else 5)
    ordered = in_training_order(rows, steps=30, batch_size=8, seed=1)
    liked = Counter(sum(row["label"] for row in batch) for batch in batches_of(ordered, 8))
    assert set(liked) <= {1, 2, 3, 4}


def job_of(method):
    return plan_job(
        method, ROWS[method], base_folder=Path("base"), settings=SETTINGS, dtype="float32",
        max_seconds=60,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_a_job_is_read_as_it_was_written_with_the_columns_of_its_method(tmp_path, method):
    job = job_of(method)
    path = write_job(tmp_path / "new", job, [{**row, "more": 1} for row in ROWS[method]])
    assert path == tmp_path / "new" / "job.json"
    assert read_job(path) == job
    rows = read_rows(path.parent, job)
    assert len(rows) == job.steps * job.batch_size
    assert {tuple(row) for row in rows} == {COLUMNS[method]}
    assert rows == in_training_order(ROWS[method], steps=4, batch_size=2, seed=SETTINGS.seed)


def test_a_job_without_rows_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no rows to train 'dpo' on"):
        write_job(tmp_path / "new", job_of("dpo"), [])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("method", "rows", "lacking"),
    [("kto", "sft", "label"), ("dpo", "sft", "chosen_ids, rejected_ids")],
)
def test_rows_of_another_method_are_refused_with_the_columns_they_lack(
    tmp_path, method, rows, lacking
):
    with pytest.raises(TrainingError, match=f"rows for '{method}' lack {lacking}"):
        write_job(tmp_path, job_of(method), ROWS[rows])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is no training job"),
        ("[]", "is no training job"),
        ('{"schema": 1}', "is no training job"),
        (None, "is no training job"),
    ],
)
def test_a_file_that_is_no_job_is_refused_with_its_name(tmp_path, text, reason):
    file = tmp_path / "job.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(TrainingError, match=rf"job\.json {reason}: .+"):
        read_job(file)


def test_a_job_of_another_schema_is_refused_with_both_numbers(tmp_path):
    file = tmp_path / "job.json"
    file.write_text(json.dumps(asdict(replace(job_of("sft"), schema=SCHEMA + 1))))
    with pytest.raises(TrainingError, match=f"schema {SCHEMA + 1}; this trainer reads {SCHEMA}"):
        read_job(file)


def test_a_pair_counts_its_prompt_twice():
    assert tokens_of(ROWS["sft"][0]) == 3
    assert tokens_of(ROWS["kto"][0]) == 2
    assert tokens_of(ROWS["dpo"][0]) == 2 * 1 + 2 + 1


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 20), st.integers(0, 3))
def test_no_row_comes_twice_before_every_row_came_once(count, batch_size, steps, seed):
    rows = rows_of(count)
    ordered = ids(in_training_order(rows, steps=steps, batch_size=batch_size, seed=seed))
    assert len(ordered) == steps * batch_size
    times = Counter(ordered)
    assert max(times.values()) - min(times[number] for number in range(count)) <= 1


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step, state in ((9, "{}"), (25, "{}"), (100, '{"step": 1')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-200").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-25")


def test_progress_after_the_checkpoint_and_a_half_written_line_are_dropped(tmp_path):
    file = tmp_path / "progress.jsonl"
    keep_lines_until(file, 3)
    assert not file.exists()
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n{"step": 5, "lo')
    keep_lines_until(file, 3)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    keep_lines_until(file, 0)
    assert file.read_text() == ""


@pytest.mark.parametrize(("text", "whole"), [("{}", True), ("", False), ('{"a": ', False)])
def test_a_file_that_was_cut_is_no_json(tmp_path, text, whole):
    (tmp_path / "state.json").write_text(text)
    assert is_json(tmp_path / "state.json") is whole
