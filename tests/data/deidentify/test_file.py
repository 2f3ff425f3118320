import csv
import gzip
import io
import json
import subprocess
import sys
import time
from datetime import date

import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
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
    assert "1 left out: not valid JSON" in stderr
    assert "1 left out: not a JSON object" in stderr
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
        ("a.jsonl.gz", "no gzip", (), "is not gzip, as its name says; rename it"),
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
    link, other = tmp_path / "link.jsonl", tmp_path / "b.jsonl"
    link.hardlink_to(file)
    assert run("deidentify", file)[0] == 2
    for name in (file, link):
        assert run("deidentify", file, "--out", name)[0] == 2
        assert run("deidentify", file, "--spans", name)[0] == 2
    assert run("deidentify", file, "--out", other, "--spans", other)[0] == 2
    with pytest.raises(DataError, match="is the file that is read; choose another name"):
        deidentify_file(file, link, privacy=PRIVACY)
    assert read_jsonl(file) == ROWS
    assert not other.exists()


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


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 9])
def test_chunks_number_their_rows_and_add_up_to_the_file(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(deidentify, "CHUNK_ROWS", 4)
    file = write_jsonl(tmp_path / "a.jsonl", [{"id": n, "note": "x"} for n in range(rows)])
    file.write_text(f"{file.read_text()}no json\n")
    chunks = list(deidentify.read_chunks(file, ["note"]))
    found = [json.loads(row)["id"] for chunk in chunks for row in chunk.rows]
    assert found == list(range(rows))
    assert [chunk.first for chunk in chunks] == [4 * n + 1 for n in range(len(chunks))]
    assert sum(chunk.refused.total() for chunk in chunks) == 1
    assert sum(chunk.size for chunk in chunks) == file.stat().st_size


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", 'id,note\n1,"open\n2,x\n', "line 2: cannot be read: not valid CSV; correct"),
        ("a.csv", "id,note\n1,x\n2\n", "line 3: cannot be read: wrong number of columns"),
        ("a.csv", "id,note\n1,x\n", "no column 'text'; it has id, note"),
        ("a.csv", "text,id\nCall Anna, she waits,1\n", "line 2: .* wrong number of columns"),
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


SECRETS = ("Anna Schmidt", "anna.schmidt@example.com", "4917012345678")


def deidentified(tmp_path, name, content, **options):
    """The file after `deidentify_file`, and the summary."""
    file, out = tmp_path / name, tmp_path / f"out-{name}"
    if isinstance(content, pa.Table):
        parquet.write_table(content, file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    summary = deidentify_file(file, out, privacy=PRIVACY, **options)
    return (parquet.read_table(out) if name.endswith("parquet") else out.read_bytes()), summary


def test_what_is_not_replaced_stays_byte_for_byte(tmp_path):
    same = (
        b'{"n": 1e400, "n": 1.50, "t" :  "x\\u00e9\\/", "big": 123456789012345678901234567890}\r\n'
        b'{ "nan": NaN,"half": "\\ud83d smile", "e": [ ] }\n'
    )
    changed = b'{"n": 1e400 , "n": 2,\t"to": "mail bo@x.org \\ud83d"}'
    after, _ = deidentified(tmp_path, "a.jsonl", same + changed)
    new = changed.replace(b"bo@x.org", b"<EMAIL_1>")
    assert after == same + new + b"\n"


def test_cells_that_are_not_replaced_stay_byte_for_byte(tmp_path):
    same = b'id;note;note\r\n1;"say ""hi""";1e400\r\n'
    after, _ = deidentified(tmp_path, "a.csv", same + b"2;ask bo@x.org;x\n3;tea;ask bo@y.org")
    assert after == same + b"2;ask <EMAIL_1>;x\n3;tea;ask <EMAIL_1>\n"


@pytest.mark.parametrize(
    ("row", "safe"),
    [
        ({"more": {"Anna Schmidt": 3}}, {"more": {"<PERSON_1>": 3}}),
        ({"anna.schmidt@example.com": 3}, {"<EMAIL_1>": 3}),
        ({"phone": 4917012345678, "n": 3}, {"phone": "<PHONE_1>", "n": 3}),
        ({"phoneNumbers": [4917012345678]}, {"phoneNumbers": ["<PHONE_1>"]}),
        ({"mobile": 4.917012345678e12}, {"mobile": "<PHONE_1>"}),
        ({"x": '[{"mail": "[\\"anna.schmidt@example.com\\"]"}]'},
         {"x": '[{"mail": "[\\"<EMAIL_1>\\"]"}]'}),
        ({"x": ' {"Anna Schmidt": 1}'}, {"x": ' {"<PERSON_1>": 1}'}),
        ({"note": "Call Anna today.", "Anna": 2},
         {"note": "Call <PERSON_1> today.", "<PERSON_1>": 2}),
    ],
)  # fmt: skip
def test_keys_numbers_and_json_within_a_text_are_looked_at(tmp_path, row, safe):
    after, _ = deidentified(tmp_path, "a.jsonl", json.dumps(row))
    assert json.loads(after) == safe


def test_a_text_nested_deeply_is_replaced_and_one_beyond_reading_costs_its_row(tmp_path):
    deep = '{"a": ' + "[" * 200 + '"anna.schmidt@example.com"' + "]" * 200 + "}\n"
    deeper = '{"a": ' + "[" * 100_000 + '"anna.schmidt@example.com"' + "]" * 100_000 + "}\n"
    after, summary = deidentified(tmp_path, "a.jsonl", deep + deeper + deep)
    assert after.decode() == deep.replace("anna.schmidt@example.com", "<EMAIL_1>") * 2
    assert summary.refused == {"not valid JSON": 1}


def test_an_oversized_line_costs_itself(tmp_path):
    line = '{"note": "ask bo@x.org"}\n'
    huge = '{"note": "' + "x" * 17_000_000 + '"}\n'
    after, summary = deidentified(tmp_path, "a.jsonl", line + huge + line)
    assert after.decode() == '{"note": "ask <EMAIL_1>"}\n' * 2
    assert summary.refused == {"oversized line": 1}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[("mail", "anna.schmidt@example.com")]], pa.map_(pa.string(), pa.string())),
        pa.array([[("Anna Schmidt", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([b"ask Anna Schmidt"], pa.binary()),
        pa.array([b'{"to": "Anna Schmidt"}'], pa.large_binary()),
        pa.array(["ask Anna Schmidt"], pa.string_view()),
        pa.array([["ask Anna Schmidt"]], pa.list_(pa.string(), 1)),
        pa.array(["ask Anna Schmidt"]).dictionary_encode(),
        pa.array([["ask Anna Schmidt"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array([{"a": "ask Anna Schmidt"}],
                 pa.struct([("a", pa.dictionary(pa.int32(), pa.string()))])),
        pa.array([["ask Anna Schmidt"]], pa.large_list(pa.string())),
        pa.array([[("k", {"to": "Anna Schmidt"})]],
                 pa.map_(pa.string(), pa.struct([("to", pa.string())]))),
        pa.array([[{"a": [{"b": {"c": "ask Anna Schmidt"}}]}]]),
        pa.array(['{"to": "Anna Schmidt"}'], pa.json_()),
        pa.array([[{"k": [("x", [b"4917012345678", b"call +49 170 1234567"])]}]],
                 pa.list_(pa.struct([("k", pa.map_(pa.string(), pa.list_(pa.binary())))]))),
    ],
)  # fmt: skip
def test_texts_of_every_arrow_type_are_replaced(tmp_path, column):
    is_fixed = pa.types.is_fixed_size_list(column.type)  # pyarrow does not read nulls of these
    other = column if is_fixed else pa.nulls(1, column.type)
    table = pa.table({"x": pa.chunked_array([column, other]), "n": [1, 2]})
    after, _ = deidentified(tmp_path, "a.parquet", table)
    assert after.schema.field("x").type == column.type
    assert is_fixed or after["x"].to_pylist()[1] is None
    said = repr(after["x"].to_pylist())
    assert not any(secret in said for secret in SECRETS)
    assert "_1>" in said
    raw = (tmp_path / "out-a.parquet").read_bytes()
    assert not any(secret.encode() in raw for secret in SECRETS)


def test_a_value_of_a_dictionary_that_no_row_has_is_not_written(tmp_path):
    column = pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array(["tea", "Anna Schmidt"]))
    after, _ = deidentified(tmp_path, "a.parquet", pa.table({"x": column}))
    assert after["x"].to_pylist() == ["tea", "tea"]
    assert b"Schmidt" not in (tmp_path / "out-a.parquet").read_bytes()


@pytest.mark.parametrize("of", ["file", "column", "nested"])
@pytest.mark.parametrize(
    "value", [b"made for anna.schmidt@example.com", b'{"by": ["Anna Schmidt"]}']
)
def test_personal_data_in_the_metadata_of_parquet_is_an_error(tmp_path, of, value):
    metadata = {"author": value}
    inner = pa.field("y", pa.string(), metadata=metadata if of == "nested" else None)
    field = pa.field("x", pa.struct([inner]), metadata=metadata if of == "column" else None)
    schema = pa.schema([field], metadata=metadata if of == "file" else None)
    table = pa.table([pa.array([{"y": "tea"}], field.type)], schema=schema)
    with pytest.raises(DataError, match="metadata of the file or a column holds"):
        deidentified(tmp_path, "a.parquet", table)
    deidentified(tmp_path, "a.parquet", table, columns=["x"])


def test_the_metadata_of_usual_tools_is_kept(tmp_path):
    pandas = (
        b'{"index_columns": ["__index_level_0__"], "columns": [{"name": "city", "pandas_type": \
"unicode", "numpy_type": "object"}], "creator": {"library": "pyarrow", "version": "21.0.0"}}'
    )
    notes = {"pandas": pandas, "huggingface": b'{"info": {"features": {"x": {"dtype": "string"}}}}'}
    table = pa.table({"x": ["tea"]}).replace_schema_metadata(notes)
    after, _ = deidentified(tmp_path, "a.parquet", table)
    assert after.schema.metadata == table.schema.metadata


@pytest.mark.parametrize(
    ("name", "column", "says"),
    [
        ("phone", pa.array([4917012345678]), "column 'phone' holds personal data of type int"),
        ("dateOfBirth", pa.array([date(1990, 2, 17)]), "data of type date, which can hold no"),
        ("x", pa.array([b"\xff\xfe"], pa.binary()), "row 1: column 'x' holds bytes that are no"),
        ("x", pa.array([b"anna@x.org"], pa.binary(10)), "fixed_size_binary.* no placeholder"),
        ("anna@x.org", pa.array(["x"]), "the name of column 1 looks like EMAIL"),
        ("x", pa.array([{"anna@x.org": 1}]), "the name of column 3 looks like EMAIL"),
    ],
)  # fmt: skip
def test_parquet_that_can_hold_no_placeholder_or_not_be_looked_into_is_an_error(
    tmp_path, name, column, says
):
    table = pa.table({name: column, "note": ["tea"]})
    with pytest.raises(DataError, match=says):
        deidentified(tmp_path, "a.parquet", table)
    assert [each.name for each in tmp_path.iterdir()] == ["a.parquet"]
    deidentified(tmp_path, "a.parquet", table, columns=["note"])


def test_a_type_of_another_tool_is_named(tmp_path):
    tensor = pa.fixed_shape_tensor(pa.int32(), (2,))
    storage = pa.array([[1, 2]], pa.list_(pa.int32(), 2))
    table = pa.table({"x": pa.ExtensionArray.from_storage(tensor, storage), "note": ["tea"]})
    with pytest.raises(
        DataError, match=r"column 'x' has the type extension.*, which is not looked"
    ):
        deidentified(tmp_path, "a.parquet", table)


def test_rows_of_parquet_that_do_not_change_keep_what_python_cannot_hold(tmp_path):
    kind = pa.struct([("note", pa.string()), ("at", pa.timestamp("us"))])
    times = pa.array([1, 2], pa.timestamp("us"))
    column = pa.StructArray.from_arrays(
        [pa.array(["tea", "ask bo@x.org"]), times], fields=list(kind)
    )
    after, _ = deidentified(tmp_path, "a.parquet", pa.table({"x": column}))
    assert after["x"].combine_chunks().field("at").equals(times)
    assert after["x"].to_pylist()[1]["note"] == "ask <EMAIL_1>"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("anna.schmidt@example.com,1\nbo@x.org,2\n", "the name of column 1 looks like EMAIL"),
        ("Call Anna Schmidt,1\ntea,2\n", "the name of column 1 looks like PERSON"),
        ("id,note\n".encode("utf-16"), "is UTF-16, not UTF-8"),
    ],
)
def test_a_csv_file_without_a_header_or_in_another_encoding_is_one_error(tmp_path, content, says):
    with pytest.raises(DataError, match=says):
        deidentified(tmp_path, "a.csv", content)
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    after, _ = deidentified(
        tmp_path, "a.csv", b"\xef\xbb\xbfnote,id\nask bo@x.org,1\n", columns=["note"]
    )
    assert after == b"note,id\nask <EMAIL_1>,1\n"


def test_half_a_character_costs_no_row_and_is_told_among_the_spans(tmp_path):
    file, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text('{"note": "ask Anna Schmidt \\ud83d"}\n{"\\udc00": "tea"}\n')
    code, stdout, _ = run("deidentify", file, "--out", out, "--spans", "-", "--with-text")
    assert code == 0
    assert out.read_text() == '{"note": "ask <PERSON_1> \\ud83d"}\n{"\\udc00": "tea"}\n'
    assert json.loads(stdout)["value"] == "Anna Schmidt"


PLANTED = {
    "Call Anna Schmidt about the lease.": ("Anna", "Schmidt"),
    "mail o'brien@example.com today": ("brien@", "example.com"),
    "my number is +49\u00a0170\u20111234567, thanks": ("1234567", "170"),
    "pay from DE89\u00a03704 0044 0532 0130 00 please": ("3704", "0532"),
    "card 4111-1111-1111-1111 expires": ("4111", "1111"),
    "ssh to 192.168.17.203 first": ("192", "203"),
}
leaves = st.sampled_from(list(PLANTED))
nested = st.recursive(
    leaves,
    lambda part: st.one_of(
        st.lists(part, min_size=1, max_size=3),
        st.dictionaries(st.one_of(leaves, st.just("note")), part, min_size=1, max_size=2),
        part.map(json.dumps),
        part.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1)),
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(nested, nested), min_size=1, max_size=3), ascii=st.booleans())
def test_nothing_that_was_planted_survives_in_any_format(tmp_path_factory, rows, ascii):
    texts = [[v if isinstance(v, str) else json.dumps(v, ensure_ascii=ascii) for v in row]
             for row in rows]  # fmt: skip
    lines = [
        json.dumps({"a": one, "more": {"b": other}}, ensure_ascii=ascii) for one, other in rows
    ]
    cells = io.StringIO()
    csv.writer(cells).writerows([["a", "b"], *texts])
    maps = pa.array([[(row[0], row[1].encode())] for row in texts],
                    pa.map_(pa.string(), pa.binary()))  # fmt: skip
    folder = tmp_path_factory.mktemp("planted")
    contents = {
        "a.jsonl": "\n".join(lines),
        "a.jsonl.gz": gzip.compress("\n".join(lines).encode()),
        "a.csv": cells.getvalue(),
        "a.parquet": pa.table({"x": maps, "y": [[{"z": row[0]}] for row in texts]}),
    }
    secrets = {each for parts in PLANTED.values() for each in parts}
    for name, content in contents.items():
        after, summary = deidentified(folder, name, content, keep_foreign=True)
        if isinstance(after, pa.Table):
            after = repr(after.to_pylist())
        else:
            after = (gzip.decompress(after) if name.endswith("gz") else after).decode()
        assert (summary.came_in, summary.went_out) == (len(rows), len(rows))
        assert [secret for secret in secrets if secret in after] == []


def test_usual_names_of_columns_are_taken_for_no_persons(tmp_path):
    names = (
        "Name;First Name;Unit Price;Grace Period;Mark;Order Date;Ship Mode;Chase Bank;March;E-mail;"
        "Street Address;Home Phone;Is Active;Team A;Will Attend;Time Of Day;UserName;Zip Code"
    )
    after, _ = deidentified(tmp_path, "a.csv", f"{names}\n{';' * names.count(';')}\n")
    assert after.decode().startswith(names)
    row = dict.fromkeys(names.split(";"), 1)
    assert json.loads(deidentified(tmp_path, "a.jsonl", json.dumps(row))[0]) == row
