"""Rows of any file under any column names: the three formats, and what is refused."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reactune.analysis.tables import Columns, Row, read_columns, read_rows, value_of
from reactune.config.sections import LabelConfig
from reactune.errors import DataError

RECORDS = [
    {"test": "1", "group": "a", "user": "u1", "at": "10:00", "reaction": "done", "n": 2},
    {"test": "1", "group": "b", "user": "u2", "at": "10:05", "reaction": "dismiss", "n": 1},
    {"test": "2", "group": "a", "user": "u3", "at": "10:10", "reaction": "liked", "n": 3},
]
COLUMNS = Columns(arm=("group",), unit="user", time="at", by="test", count="n")


def write_jsonl(file):
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))


def write_gzip(file):
    with gzip.open(file, "wt") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in RECORDS)


def write_csv(file):
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, RECORDS[0])
        writer.writeheader()
        writer.writerows(RECORDS)


def write_parquet(file):
    pq.write_table(pa.Table.from_pylist(RECORDS), file)


def rows_in(file, columns=COLUMNS, positive=("done",), labels=None):
    labels = labels or LabelConfig()
    return list(read_rows(file, columns, positive=frozenset(positive), labels=labels))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_jsonl),
        ("rows.jsonl.gz", write_gzip),
        ("rows.csv", write_csv),
        ("rows.parquet", write_parquet),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, write):
    file = tmp_path / name
    write(file)
    assert rows_in(file) == [
        Row(by="1", arm="a", unit="u1", time="10:00", tips=2, positives=2),
        Row(by="1", arm="b", unit="u2", time="10:05", tips=1, positives=0),
        Row(by="2", arm="a", unit="u3", time="10:10", tips=3, positives=0),
    ]


def test_several_reactions_can_be_positive_and_columns_can_be_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    write_jsonl(file)
    rows = rows_in(file, Columns(arm=("group",)), positive=("done", "liked"))
    assert [row.positives for row in rows] == [1, 0, 1]
    assert {(row.by, row.unit, row.time, row.tips) for row in rows} == {("", "", "", 1)}


def test_several_columns_make_one_arm(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"model": "x", "prompt": 2}\n{"model": "x", "prompt": null}\n')
    columns = Columns(arm=("model", "prompt"), reaction="model")
    assert [row.arm for row in rows_in(file, columns, positive=("x",))] == ["x | 2", "x | "]


def test_rows_whose_unit_is_the_text_of_a_missing_value_are_not_one_unit(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("arm,user,reaction\na,u1,done\nb,undefined,done\n")
    with pytest.raises(DataError, match="line 3: user = 'undefined' is the text of a missing"):
        rows_in(file, Columns(arm=("arm",), unit="user"))


def test_without_a_column_for_the_arm_each_row_is_one(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("shown,clicked\n10,1\n20,3\n")
    rows = rows_in(file, Columns(arm=(), tips="shown", positives="clicked"))
    assert [(row.tips, row.positives) for row in rows] == [(10, 1), (20, 3)]
    assert len({row.arm for row in rows}) == 2


def test_the_dwell_times_of_the_label_rule_apply_to_any_positive_reaction(tmp_path):
    file = tmp_path / "rows.jsonl"
    records = [{"arm": "a", "reaction": "liked", "ms": ms} for ms in (999, 1_000, 2_000, 2_001)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    labels = LabelConfig(positive_dwell_ms=(1_000, 2_000))
    rows = rows_in(file, Columns(dwell="ms"), positive=("liked",), labels=labels)
    assert [row.positives for row in rows] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plain", 3),
        ("object.key", 1),
        ("object.inner.deep", True),
        ("text.key", [1]),
        ("object.missing", None),
        ("plain.key", None),
        ("broken.key", None),
        ("text.key.deeper", None),
    ],
)
def test_a_dotted_name_is_a_key_of_an_object_or_of_json_text(name, value):
    values = {
        "plain": 3,
        "object": {"key": 1, "inner": {"deep": True}},
        "text": '{"key": [1]}',
        "broken": "{",
    }
    assert value_of(values, name) == value


@given(st.recursive(st.none() | st.integers(), lambda inner: st.dictionaries(st.just("k"), inner)))
def test_objects_and_their_json_text_are_read_alike(value):
    for name in ("root.k", "root.k.k"):
        assert value_of({"root": value}, name) == value_of({"root": json.dumps(value)}, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"arm": "a", "reaction": "done", "n": 1.5}', "line 1: n = 1.5 is not a count; give"),
        ('{"arm": "a", "reaction": "done", "n": null}', "n = None is not a number; correct or"),
        ('{"arm": "a", "reaction": "done", "n": NaN}', "line 1:"),
        ('{"arm": null, "reaction": "done", "n": 1}', "line 1: arm: no arm; remove such rows"),
        ("{broken", "line 1:"),
    ],
)
def test_an_invalid_row_is_refused_with_its_line_and_value(tmp_path, text, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(text + "\n")
    with pytest.raises(DataError) as caught:
        rows_in(file, Columns(count="n"))
    assert f"{file}, line 1" in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_column_names_the_command_that_was_called(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n1,2\n")
    assert [line.values for line in read_columns(file, ["a", "b"], command="ope")]
    with pytest.raises(DataError, match=r"no column 'c'; `reactune ope --help`.*the file has a, b"):
        list(read_columns(file, ["a", "c.key"], command="ope"))


def test_a_file_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        rows_in(tmp_path / "missing.jsonl")
