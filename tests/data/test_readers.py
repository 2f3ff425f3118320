"""Rows of files: what breaks a row breaks that row alone, what breaks the file is one error."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import zipfile
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from reactune.data.readers import (
    ENDINGS,
    Refused,
    check_columns,
    check_readable,
    csv_header,
    csv_separator,
    ending_of,
    kind_of,
    meaning_of,
    parquet_batches,
    parquet_schema,
    parse_json,
    plain_text,
    read,
    read_records,
    read_rows,
)
from reactune.errors import DataError
from reactune.records import NOT_UTF8

NAMES = {"tip_id": "id", "dwell_ms": "dwell", "training_allowed": "allowed", "kind": "kind"}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        data = content.encode() if isinstance(content, str) else content
        file = tmp_path / name
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return file

    return write


def results(file, **options):
    """Number, and values or refusal, of every line."""
    return [(line.number, line.refusal or dict(line.values)) for line in read_rows(file, **options)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_kind_of_a_file_follows_from_the_ending_of_its_name(tmp_path, ending):
    file = tmp_path / f"my.tips{ending.upper()}"
    assert ending_of(file) == ending
    assert (
        kind_of(file)
        == {"j": "jsonl", "n": "jsonl", "c": "csv", "t": "csv", "p": "parquet"}[ending[1]]
    )


@pytest.mark.parametrize("name", ["tips", "tips.xlsx", "tips.csv.zip", "jsonl", "tips.parquet.gz"])
def test_another_ending_is_refused_with_those_that_are_known(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: unknown kind of file; .* \.jsonl, .*\.parquet"):
        ending_of(tmp_path / name)


def test_a_file_is_checked_before_it_is_read(tmp_path, write):
    check_readable(write("a.csv", "id\n"))
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read: No such file.*check the name"):
        check_readable(tmp_path / "gone.csv")


def test_files_that_were_put_one_after_the_other_are_read(tmp_path):
    mark = codecs.BOM_UTF8
    (tmp_path / "a.csv").write_bytes(mark + b"tip_id, kind\nt1,f\n" + mark + b"tip_id,kind\nt2,f\n")
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"tip_id": "t1"}\n' + mark + b'{"tip_id": "t2"}')
    again, lines = (list(read_rows(tmp_path / name)) for name in ("a.csv", "a.jsonl"))
    assert [line.refusal for line in again] == ["", "the header again", ""]
    assert [line.values.get("tip_id") for line in again] == ["t1", None, "t2"]
    assert [line.values["tip_id"] for line in lines] == ["t1", "t2"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"tip_id,kind\rt1,f\rt2,f\r"),
        ("a.csv", b'"tip_id","kind"\r"t1","f"\r'),
        ("a.jsonl", b'{"tip_id": "t1"}\r{"tip_id": "t2"}\r'),
    ],
)
def test_lines_that_end_in_cr_alone_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: its lines end in CR alone, .*with LF or CRLF"):
        list(read_rows(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"tip_id,kind\r\nt1,f\r\n"),
        ("a.csv", b'"tip\rid",kind\nt1,f\n'),
        ("a.jsonl", b'{"tip_id":\r"t1",\r"kind": "a}\\r{"}\r\n'),
    ],
)
def test_a_cr_within_a_record_ends_no_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert len(list(read_rows(tmp_path / name))) == 1


def test_a_pipe_or_a_device_is_refused_at_once_whatever_its_name_says(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)  # whose opening would wait for somebody who writes
    (tmp_path / "link.jsonl").symlink_to(pipe)
    for path in (pipe, tmp_path / "link.jsonl", Path("/dev/null")):
        with pytest.raises(
            DataError, match=rf"{path.name}: is a pipe or a device.* to a file first"
        ):
            check_readable(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson"])
def test_every_bad_line_of_jsonl_costs_itself_alone(write, name):
    lines = [
        b'{"id": 1}', b"", b"no json", b"[1]", b'{"id": "\xff"}', b'{"id": "\0"}', b'{"id": NaN}',
        b'{"id": 1e999}', b'{"id": "' + b"x" * 200 + b'"}', b"[" * 90, b'{"id": 2}',
    ]  # fmt: skip
    file = write(name, b"\n".join(lines))
    assert results(file, max_line_bytes=100) == [
        (1, {"id": 1}),
        (3, "not valid JSON"),
        (4, "not a JSON object"),
        (5, NOT_UTF8),
        (6, "NUL byte"),
        (7, "non-finite number"),
        (8, "non-finite number"),
        (9, "oversized line"),
        (10, "not valid JSON"),
        (11, {"id": 2}),
    ]


def test_another_decoder_may_allow_what_is_no_finite_number(write):
    file = write("a.jsonl", '{"id": Infinity}\n')
    assert results(file, decoder=json.JSONDecoder()) == [(1, {"id": float("inf")})]


def test_a_byte_order_mark_is_no_part_of_the_first_row(write):
    assert results(write("a.jsonl", b"\xef\xbb\xbf" + b'{"id": 1}')) == [(1, {"id": 1})]
    assert results(write("a.csv", b"\xef\xbb\xbfid\n1\n")) == [(2, {"id": "1"})]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.jsonl.gz"])
def test_a_file_in_another_encoding_is_one_error_that_names_it(write, name, encoding):
    text = "id,note\n1,x\n" if name == "a.csv" else '{"id": 1}\n'
    message = rf"is {encoding[:6].upper()}, not UTF-8; save it as UTF-8"
    with pytest.raises(DataError, match=message):
        list(read_rows(write(name, text.encode(encoding))))


def test_a_row_of_latin_1_is_named_as_such(write):
    file = write("a.csv", "id,note\n1,caf\u00e9\n2,tea\n".encode("latin-1"))
    assert results(file) == [
        (2, "invalid UTF-8, perhaps Latin-1 or Windows-1252"),
        (3, {"id": "2", "note": "tea"}),
    ]


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("id;note\n1;a,b", ";"), ("id\tnote", "\t"), ("id,note\n1;2;3,4", ","), ("id", ","),
        ("", ","), ('"a,b,c";note', ";"), ("id|note\n1|a,b,c", "|"),
        ("sep=;\nid,a,b;note", ";"), ('"sep=\t"\r\nid\tnote', "\t"), ("SEP=|\nid", "|"),
    ],
)  # fmt: skip
def test_the_header_shows_what_separates_cells(write, text, separator):
    assert csv_separator(write("a.csv", text)) == separator


@pytest.mark.parametrize("line", ["sep=;", '"SEP=;"', "sep=; "])
def test_excels_line_before_the_header_is_no_row(write, line):
    file = write("a.csv", f"{line}\r\nid;note\r\n1;x,y\r\nsep=;2\r\n")
    assert csv_header(file) == ["id", "note"]
    assert results(file) == [(3, {"id": "1", "note": "x,y"}), (4, {"id": "sep=", "note": "2"})]
    assert [each.cells for each in read_records(file)][:2] == [("id", "note"), ("1", "x,y")]


@pytest.mark.parametrize("read", [read_rows, read_records])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1}, {"id": 2}]', r"is one JSON list; .* `jq -c '\.\[\]'`"),
        ('[\n  {\n    "id": 1\n  }\n]\n', "is one JSON list"),
        ('\n[\n{"id": 1},\n{"id": 2}\n]\n', "is one JSON list"),
        ('{\n  "id": 1\n}\n{\n  "id": 2\n}\n', "take several lines; .* `jq -c .`"),
    ],
)
def test_json_that_is_not_one_object_a_line_is_one_error(write, read, text, message):
    for name in ("a.json", "a.jsonl.gz"):
        with pytest.raises(DataError, match=message):
            list(read(write(name, text)))


@pytest.mark.parametrize("text", ["{", "[", '[1]\n{"id": 1}', '{\n{"id": 1}', '"x"', "[]"])
def test_a_broken_first_line_of_jsonl_costs_itself_alone(write, text):
    found = results(write("a.json", text))
    assert found[0][1] in ("not valid JSON", "not a JSON object")
    assert found[1:] in ([], [(2, {"id": 1})])


def zipped():
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("a.csv", "id,note\n")
    return memory.getvalue()


def parquet_bytes():
    memory = io.BytesIO()
    parquet.write_table(pa.table({"id": [1]}), memory)
    return memory.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (gzip.compress(b"id\n"), r"gzip, and no text as its name says; call it a\.csv\.gz"),
        (bz2.compress(b"id\n"), "bzip2"),
        (lzma.compress(b"id\n"), "xz"),
        (zipped(), "a zip archive or an Excel workbook, and no text .*; export it as text"),
        (parquet_bytes(), "Parquet"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, name):
    file = tmp_path / "a.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.csv: is {name}"):
        list(read_rows(file))
    with pytest.raises(DataError, match=r"a\.csv: is "):
        check_columns(file, ["id"], advice="")


def test_a_file_that_is_gzip_by_name_only_or_twice_is_named(tmp_path, write):
    plain = tmp_path / "a.jsonl.gz"
    plain.write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"is not gzip, as its name says; rename it"):
        list(read_rows(plain))
    with pytest.raises(DataError, match=r"is gzip, .*; unpack it once"):
        list(read_rows(write("b.jsonl.gz", gzip.compress(b'{"id": 1}\n'))))


def test_a_file_has_one_of_the_columns_or_is_one_error(write):
    file = write("a.jsonl", '{"x": 1}\n{"y": 2}\n')
    check_columns(file, ["y"], advice="")
    check_columns(write("b.jsonl", "no json\n"), ["y"], advice="")
    check_columns(write("b.csv", ""), ["y"], advice="")
    with pytest.raises(DataError, match=r"a\.jsonl: no column of a, b; it has x, y; map them"):
        check_columns(file, ["a", "b"], advice="map them")


def test_every_bad_record_of_csv_costs_itself_alone(write):
    file = write(
        "a.csv",
        b' id , note\n1,"two\nlines, ""quoted"""\n2\n3,a,b\n4,"open\n5,fine\n6,\xff\n\n7,end',
    )
    assert results(file) == [
        (2, {"id": "1", "note": 'two\nlines, "quoted"'}),
        (4, "wrong number of columns"),
        (5, "wrong number of columns"),
        (6, "not valid CSV"),
        (7, {"id": "5", "note": "fine"}),
        (8, NOT_UTF8),
        (10, {"id": "7", "note": "end"}),
    ]
    assert csv_header(file) == ["id", "note"]


def test_a_csv_file_without_lines_has_no_columns_and_a_broken_header_is_an_error(write):
    assert csv_header(write("empty.csv", "")) == []
    assert results(write("empty.csv", "")) == []
    broken = write("broken.csv", '"id\n1\n')
    for reader in (csv_header, results):
        with pytest.raises(DataError, match="line 1 is no CSV header: not valid CSV; write one"):
            reader(broken)


cells = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)


@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=6))
def test_what_the_csv_module_writes_is_read_back(rows, tmp_path_factory):
    text = io.StringIO()
    csv.writer(text).writerows([("a", "b"), *rows])
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_bytes(text.getvalue().encode())
    assert [(row.values["a"], row.values["b"]) for row in read_rows(file)] == rows


@given(rows=st.lists(st.dictionaries(cells, st.one_of(cells, st.integers(), st.none()))))
def test_what_the_json_module_writes_is_read_back(rows, tmp_path_factory):
    file = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    written = [row for row in rows if not any("\0" in str(part) for part in row.items())]
    assert [dict(row.values) for row in read_rows(file)] == written


def test_cells_of_csv_get_the_type_of_our_column(write):
    text = "id,dwell,allowed,other\n1,2000,true,x\n2,2000.0,0,x\n3,,,x\n4,2e3,maybe,x\n"
    lines = [dict(line.values) for line in read(write("a.csv", text), NAMES)]
    assert lines == [
        {"tip_id": "1", "dwell_ms": 2000, "training_allowed": True},
        {"tip_id": "2", "dwell_ms": 2000, "training_allowed": False},
        {"tip_id": "3", "dwell_ms": None, "training_allowed": None},
        {"tip_id": "4", "dwell_ms": "2e3", "training_allowed": "maybe"},
    ]


@pytest.mark.parametrize(
    ("value", "text", "meaning"),
    [
        (None, "", ""), (float("nan"), "", ""), (True, "true", "true"), ("T", "T", "true"),
        (1.0, "1", "1"), ("1.00", "1.00", "1"), (Decimal("2.00"), "2", "2"), (2.5, "2.5", "2.5"),
        (" Done\n", "Done", "done"), ("a  B", "a  B", "a b"), ("007.5", "007.5", "007.5"),
    ],
)  # fmt: skip
def test_values_that_mean_the_same_have_one_meaning(value, text, meaning):
    assert (plain_text(value), meaning_of(value)) == (text, meaning)


def test_values_of_jsonl_and_parquet_stay_as_they_are(write, tmp_path):
    rows = [{"id": 1, "dwell": 2.5, "other": "x"}, {"id": 2, "dwell": None, "other": "y"}]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    expected = [{"tip_id": 1, "dwell_ms": 2.5}, {"tip_id": 2, "dwell_ms": None}]
    for file in (write("a.jsonl", text), tmp_path / "b.parquet"):
        assert [dict(line.values) for line in read(file, NAMES)] == expected


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_positions_rise_to_the_size_of_the_file(tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    rows = [{"id": number} for number in range(2_500)]
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif ending == "csv":
        file.write_text("id\n" + "".join(f"{row['id']}\n" for row in rows))
    else:
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    positions = [line.position for line in read(file, {"tip_id": "id"})]
    assert len(positions) == len(rows)
    assert positions == sorted(positions)
    assert positions[-1] == pytest.approx(file.stat().st_size, abs=1)


def test_parquet_comes_in_numbered_batches_with_the_columns_that_are_wanted(tmp_path):
    table = pa.table({"id": list(range(7)), "note": ["x"] * 7})
    parquet.write_table(table, tmp_path / "a.parquet")
    batches = list(parquet_batches(tmp_path / "a.parquet", columns=["id", "none"], batch_rows=3))
    assert [batch.first for batch in batches] == [1, 4, 7]
    assert [batch.rows.column("id").to_pylist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(batch.rows.schema.names == ["id"] for batch in batches)
    assert parquet_schema(tmp_path / "a.parquet").names == ["id", "note"]


@pytest.mark.parametrize("reader", [parquet_schema, lambda file: list(parquet_batches(file))])
def test_what_is_no_parquet_is_refused_by_name(write, reader):
    with pytest.raises(DataError, match=r"a\.parquet: broken Parquet.*write it again"):
        reader(write("a.parquet", "PAR1 no"))


def test_a_list_of_fixed_size_is_read_or_named(tmp_path):
    pair = pa.list_(pa.string(), 2)
    for name, values in (("whole", [["a", "b"]]), ("nulls", [["a", "b"], None])):
        parquet.write_table(pa.table({"pair": pa.array(values, pair)}), tmp_path / name)
    (batch,) = parquet_batches(tmp_path / "whole")
    assert batch.rows.to_pylist() == [{"pair": ["a", "b"]}]
    with pytest.raises(DataError, match=r"nulls: .*; store column 'pair', .*, as a list"):
        list(parquet_batches(tmp_path / "nulls"))


def test_a_gzip_file_that_breaks_off_is_named_with_the_last_line(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(b'{"id": 1}\n' * 50_000)
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"broken after line \d+: .*; make it again"):
        list(read_rows(file))


def test_a_refusal_does_not_quote_the_text():
    with pytest.raises(Refused) as caught:
        parse_json('{"name": "Anna"')
    assert "Anna" not in str(caught.value)


def test_two_columns_of_one_name_are_one_error_and_nameless_ones_are_not(write):
    with pytest.raises(DataError, match=r"a\.csv: two columns are called 'note'; rename one"):
        list(read_rows(write("a.csv", "note,id,note\nx,1,y\n")))
    assert results(write("b.csv", "id,,\n1,,\n")) == [(2, {"id": "1", "": ""})]


def test_records_are_read_as_they_stand(write):
    csv = list(read_records(write("a.csv", 'a;a\r\n"1\n2";x\n3\n')))
    assert [(each.number, each.source, each.cells, each.refusal) for each in csv] == [
        (1, "a;a\r\n", ("a", "a"), ""),
        (2, '"1\n2";x\n', ("1\n2", "x"), ""),
        (4, "", ("3",), "wrong number of columns"),
    ]
    jsonl = list(
        read_records(write("a.jsonl", '{"n": NaN,  "n": 1e400}\n\n[]\n{"half": "\\ud83d"}'))
    )
    assert [(each.number, each.source, each.refusal) for each in jsonl] == [
        (1, '{"n": NaN,  "n": 1e400}\n', ""),
        (3, "", "not a JSON object"),
        (4, '{"half": "\\ud83d"}', ""),
    ]
