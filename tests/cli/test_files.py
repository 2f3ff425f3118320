"""Files of rows on standard input: every kind, read more than once, and no copy left behind."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from cli_fixtures import row, stored
from reactune.data.readers import ENDINGS, ending_of_content

ROWS = [row(number) for number in range(5)]
JSONL = "".join(json.dumps(each) + "\n" for each in ROWS).encode()


def csv_bytes(delimiter=","):
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def parquet_bytes():
    """The rows as Parquet."""
    target = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), target)
    return target.getvalue()


CONTENTS = {
    "JSONL": JSONL,
    "JSONL with a BOM": b"\xef\xbb\xbf" + JSONL,
    "JSONL, gzip": gzip.compress(JSONL),
    "CSV": csv_bytes(),
    "CSV, semicolons": csv_bytes(";"),
    "CSV, gzip": gzip.compress(csv_bytes()),
    "Parquet": parquet_bytes(),
}


@pytest.fixture
def standard_input(monkeypatch):
    """Sets what stands there: bytes that can be read once."""

    def put(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))

    return put


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Lists what stands in the folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return lambda: list(folder.iterdir())


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_rows_of_every_kind_are_read_from_standard_input(
    call, here, standard_input, copies, content
):
    call("init")
    standard_input(content)
    code, out, err = call("ingest", "-")
    assert code == 0, err
    assert out.splitlines()[0] == "rows: 5 in, 5 kept, 0 rejected"
    assert stored(here, "SELECT count(*) FROM tip_scores") == [(5,)]
    assert copies() == []


def test_a_comparison_and_a_deidentification_read_standard_input(
    call, here, standard_input, copies
):
    rows = [{"arm": arm, "reaction": "done"} for arm in ("champion", "challenger")] * 30
    standard_input("".join(json.dumps(each) + "\n" for each in rows).encode())
    code, out, err = call("compare", "-")
    assert code == 0, err
    assert "30" in out
    standard_input(b'{"note": "write to anna@example.org"}\n')
    code, _, err = call("deidentify", "-", "--out", "safe.jsonl")
    assert code == 0, err
    assert "anna" not in (here / "safe.jsonl").read_text()
    assert copies() == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "rows: 0 in, 0 kept, 0 rejected"),
        (b"hello\nyou\n", "it has hello"),
        ("tip_id\n".encode("utf-16"), "UTF-16"),
        (b"(\xb5/\xfd rest", "Zstandard"),
        (b"PAR1 and no end", "standard-input.parquet"),
        (gzip.compress(JSONL)[:-20], "broken after line"),
    ],
)
def test_what_is_wrong_with_standard_input_is_one_line(call, standard_input, copies, content, what):
    call("init")
    standard_input(content)
    _, out, err = call("ingest", "-")
    assert what in out + err
    assert "Traceback" not in err
    assert sum(line.startswith("reactune: ") for line in err.splitlines()) <= 1
    assert copies() == []


def test_a_kill_leaves_nothing_of_standard_input_behind(here, copies):
    code = (
        "import sys, time, click\n"
        "from reactune.cli.files import RowsFile\n"
        "@click.command\n"
        "@click.argument('file', type=RowsFile())\n"
        "def hold(file):\n"
        '    assert file.read_bytes() == file.read_bytes() == b\'{"user_id": "anna"}\\n\'\n'
        "    print('read', flush=True)\n"
        "    time.sleep(60)\n"
        "hold(['-'])"
    )
    environment = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        child.stdin.write(b'{"user_id": "anna"}\n')
        child.stdin.close()
        assert child.stdout.readline() == b"read\n"
        child.kill()
    (folder,) = copies()
    (name,) = folder.iterdir()
    assert name.is_symlink()
    assert not name.exists()


def test_a_closed_standard_input_is_named(call, monkeypatch, copies):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = call("ingest", "-")
    assert code == 2
    assert "nothing stands there" in err
    assert copies() == []


def test_a_file_whose_name_is_a_dash_is_still_a_file(call, here):
    Path("-.jsonl").write_bytes(JSONL)
    call("init")
    assert call("ingest", "./-.jsonl")[0] == 0


@pytest.mark.parametrize("head", [b"\x1f\x8bno gzip", b"\x1f\x8b", b"", b"\xff", b"[{", b"{}"])
def test_every_content_gets_an_ending_that_is_known(head):
    assert ending_of_content(head) in ENDINGS


@pytest.mark.parametrize(
    "url", ["https://host/rows.jsonl?sig=hush", "s3://b/r.csv", "file:///r.csv"]
)
def test_a_url_in_place_of_a_file_is_named_with_what_to_do(call, url):
    for command in ("ingest", "compare", "deidentify", "score"):
        code, _, err = call(command, url)
        assert code == 2
        assert "is a URL" in err
        assert "curl -sL URL | reactune" in err
        assert "hush" not in err
