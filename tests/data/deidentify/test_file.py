import csv
import gzip
import json
import subprocess
import sys
import time

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from reactune.cli import commands
from reactune.cli.session import Session
from reactune.config.sections import PrivacyConfig
from reactune.data.deidentify import file as deidentify
from reactune.data.deidentify.file import deidentify_file
from reactune.errors import DataError

PRIVACY = PrivacyConfig()
ROWS = [
    {"id": 1, "note": "Call Anna Schmidt at 202-555-0143.", "more": {"who": ["Anna Schmidt", 7]}},
    {"id": 2, "note": "Drink a glass of water.", "more": None},
    {"id": 3, "note": "Mail bo@x.org about it.", "more": {"json": '{"to": "bo@x.org"}'}},
]
SAFE = [
    {"id": 1, "note": "Call <PERSON_1> at <PHONE_1>.", "more": {"who": ["<PERSON_1>", 7]}},
    {"id": 2, "note": "Drink a glass of water.", "more": None},
    {"id": 3, "note": "Mail <EMAIL_1> about it.", "more": {"json": '{"to": "<EMAIL_1>"}'}},
]


def run(*arguments):
    result = CliRunner().invoke(commands, [str(each) for each in arguments], obj=Session())
    return result.exit_code, result.stdout, result.stderr


def write_jsonl(path, rows):
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read_jsonl(path):
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".ndjson.gz"])
def test_texts_at_any_depth_of_jsonl_get_placeholders_that_agree_within_a_row(tmp_path, ending):
    file, out = write_jsonl(tmp_path / f"a{ending}", ROWS), tmp_path / f"b{ending}"
    code, stdout, stderr = run("deidentify", file, "--out", out)
    assert (code, stdout) == (0, "")
    assert read_jsonl(out) == SAFE
    assert "rows: 3 in, 3 kept, 0 left out" in stderr
    assert "2 PERSON" in stderr


def test_other_columns_of_parquet_keep_values_types_and_metadata(tmp_path):
    table = pa.table(
        {
            "n": pa.array([1, 2], pa.int16()),
            "at": pa.array([1, 2], pa.timestamp("ns")),
            "note": pa.array(["ask Anna Schmidt", None], pa.large_string()),
            "tags": pa.array([["bo@x.org", "x"], []], pa.list_(pa.string())),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
        }
    ).replace_schema_metadata({"owner": "us"})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert run("deidentify", tmp_path / "a.parquet", "--out", tmp_path / "b.parquet")[0] == 0
    after = parquet.read_table(tmp_path / "b.parquet")
    assert after.schema.equals(table.schema)
    assert after.schema.metadata[b"owner"] == b"us"
    assert after.drop_columns(["note", "tags"]).equals(table.drop_columns(["note", "tags"]))
    assert after["note"].to_pylist() == ["ask <PERSON_1>", None]
    assert after["tags"].to_pylist() == [["<EMAIL_1>", "x"], []]


def test_only_named_columns_of_csv_are_changed(tmp_path):
    (tmp_path / "a.csv").write_text('who,note\nbo@x.org,"mail ""bo@x.org"", now\nplease"\n')
    code, *_ = run(
        "deidentify", tmp_path / "a.csv", "--out", tmp_path / "b.csv", "--column", "note"
    )
    assert code == 0
    with (tmp_path / "b.csv").open(newline="") as lines:
        assert list(csv.reader(lines)) == [
            ["who", "note"],
            ["bo@x.org", 'mail "<EMAIL_1>", now\nplease'],
        ]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_cells_stay_separated_as_they_were(tmp_path, separator):
    file, out = tmp_path / "a.csv", tmp_path / "b.csv"
    file.write_text(f"id{separator}note\n1{separator}mail anna@example.com\n")
    deidentify_file(file, out, privacy=PrivacyConfig())
    assert out.read_text().splitlines() == [f"id{separator}note", f"1{separator}mail <EMAIL_1>"]


def test_spans_tell_where_without_the_text_unless_asked(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    code, stdout, _ = run("deidentify", file, "--spans", "-")
    assert code == 0
    assert "Anna" not in stdout
    assert "bo@x.org" not in stdout
    spans = [json.loads(line) for line in stdout.splitlines()]
    for span in spans:
        assert 0 < span.pop("score") <= 1
    assert spans[0] == {
        "row": 1, "column": "note", "text": 0, "kind": "PERSON", "start": 5, "end": 17,
    }  # fmt: skip
    code, *_ = run("deidentify", file, "--spans", tmp_path / "s.jsonl", "--with-text")
    assert code == 0
    assert [each["value"] for each in read_jsonl(tmp_path / "s.jsonl")] == [
        "Anna Schmidt", "202-555-0143", "Anna Schmidt", "bo@x.org", "bo@x.org",
    ]  # fmt: skip


def test_lines_that_are_no_rows_and_rows_in_other_languages_are_left_out_and_counted(tmp_path):
    file = write_jsonl(
        tmp_path / "a.jsonl", [*ROWS, {"note": "Ruf heute deine Schwester Anna an."}]
    )
    file.write_text(f"{file.read_text()}no json\n[1]\n\n")
    code, _, stderr = run("deidentify", file, "--out", tmp_path / "b.jsonl")
    assert code == 2
    assert read_jsonl(tmp_path / "b.jsonl") == SAFE
    assert "rows: 6 in, 3 kept, 3 left out" in stderr
    assert "2 no JSON object" in stderr
    assert "1 left out: a language that no model is configured for" in stderr
    kept = run("deidentify", file, "--out", tmp_path / "c.jsonl", "--keep-foreign")
    assert "rows: 6 in, 4 kept, 2 left out" in kept[2]


def test_two_processes_write_what_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(deidentify, "CHUNK_ROWS", 4)
    file = write_jsonl(tmp_path / "a.jsonl", [{**ROWS[n % 3], "id": n} for n in range(22)])
    for workers in (1, 2):
        deidentify_file(file, tmp_path / f"{workers}.jsonl", privacy=PRIVACY, workers=workers)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert [row["id"] for row in read_jsonl(tmp_path / "2.jsonl")] == list(range(22))


@pytest.mark.parametrize(
    ("name", "text", "options", "says"),
    [
        ("a.txt", "x", (), "unknown kind of file"),
        ("a.jsonl", '{"x": "y"}\n', ("--column", "note"), "no row has a column 'note'"),
        ("a.parquet", "PAR1 no", (), "broken Parquet"),
        ("a.jsonl.gz", "no gzip", (), "broken after line 0: Not a gzipped file"),
        ("a.jsonl", "\xff\xff", (), "line 1: cannot be read: invalid UTF-8, perhaps Latin-1"),
        ("a.jsonl", "\xff\xfe", (), "is UTF-16, not UTF-8; save it as UTF-8"),
    ],
)
def test_what_cannot_be_done_is_one_error_and_no_file(tmp_path, name, text, options, says):
    file, out = tmp_path / name, tmp_path / f"out-{name}"
    file.write_text(text, encoding="latin-1")
    result = CliRunner().invoke(
        commands, ["deidentify", str(file), "--out", str(out), *options], obj=Session()
    )
    assert isinstance(result.exception, DataError)
    assert str(file) in str(result.exception)
    assert says in str(result.exception)
    assert list(tmp_path.iterdir()) == [file]


def test_neither_out_nor_spans_and_writing_over_the_file_are_calls_that_make_no_sense(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert run("deidentify", file)[0] == 2
    assert run("deidentify", file, "--out", file)[0] == 2
    assert read_jsonl(file) == ROWS


def test_a_killed_run_leaves_no_half_file(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ROWS * 40_000)
    out = tmp_path / "b.jsonl"
    command = [
        sys.executable,
        "-c",
        "from reactune.cli import main; main()",
        "deidentify",
        file,
        "--out",
        out,
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (started := list(tmp_path.glob(".b.jsonl*"))) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert started
    assert not out.exists()


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="[{"), max_size=6)
scalars = st.one_of(texts, st.integers(), st.booleans(), st.none())
values = st.recursive(
    scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(texts, part, max_size=3)
)


@given(value=values)
def test_texts_put_back_unchanged_give_the_same_value(value):
    found = [text.value for text in deidentify.texts_in("note", value)]
    rest = iter(found)
    assert deidentify.with_texts(value, rest) == value
    assert next(rest, None) is None


def test_texts_are_found_within_json_within_a_text():
    value = {"a": ["x", 7, {"b": '{"c": "y", "d": [1, "z"]}'}], "e": "[1, 2", "f": "{}"}
    found = [text.value for text in deidentify.texts_in("note", value)]
    assert found == ["x", "y", "z", "[1, 2"]
    changed = deidentify.with_texts(value, iter(["1", "2", "3", "4"]))
    assert changed == {"a": ["1", 7, {"b": '{"c": "2", "d": [1, "3"]}'}], "e": "4", "f": "{}"}


def test_what_is_nested_too_deep_is_neither_read_nor_changed():
    value = "secret"
    for _ in range(deidentify.MAX_DEPTH + 1):
        value = [value]
    assert list(deidentify.texts_in("note", value)) == []
    assert deidentify.with_texts(value, iter([])) == value


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 9])
def test_chunks_number_their_rows_and_add_up_to_the_file(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(deidentify, "CHUNK_ROWS", 4)
    file = write_jsonl(tmp_path / "a.jsonl", [{"id": n, "note": "x"} for n in range(rows)])
    file.write_text(f"{file.read_text()}no json\n")
    chunks = list(deidentify.read_chunks(file, ["note"]))
    assert [row["id"] for chunk in chunks for row in chunk.whole] == list(range(rows))
    assert [chunk.first for chunk in chunks] == [4 * n + 1 for n in range(len(chunks))]
    assert sum(chunk.unreadable for chunk in chunks) == 1
    assert sum(chunk.size for chunk in chunks) == file.stat().st_size
    assert all(set(row) == {"note"} for chunk in chunks for row in chunk.values)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", 'id,note\n1,"open\n2,x\n', "line 2: cannot be read: not valid CSV; correct"),
        ("a.csv", "id,note\n1,x\n2\n", "line 3: cannot be read: wrong number of columns"),
        ("a.csv", "id,note\n1,x\n", "no row has a column 'text'; it has id, note"),
    ],
)
def test_no_row_of_a_csv_file_is_lost_silently(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    columns = ["text"] if "column 'text'" in says else []
    with pytest.raises(DataError, match=says):
        deidentify_file(tmp_path / name, tmp_path / "b.csv", privacy=PRIVACY, columns=columns)
    assert not (tmp_path / "b.csv").exists()


def test_a_number_that_json_does_not_know_is_kept(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"note": "bo@x.org", "n": NaN}\n')
    deidentify_file(tmp_path / "a.jsonl", tmp_path / "b.jsonl", privacy=PRIVACY)
    assert (tmp_path / "b.jsonl").read_text() == '{"note": "<EMAIL_1>", "n": NaN}\n'


def test_the_file_that_is_written_is_of_the_kind_that_is_read(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=r"b\.csv: must be of the same kind as .*a\.jsonl; give it"):
        deidentify_file(file, tmp_path / "b.csv", privacy=PRIVACY)
    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]
