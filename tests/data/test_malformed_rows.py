"""Malformed rows into every command that reads rows: counted or named, never a traceback."""

import contextlib
import io
import json
import re
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cli_fixtures import KEY, row, stored, write_rows
from loop_fixtures import SECRET, copy_of_trained
from reactune.cli import main

MALFORMED = 10_000  # rows of the slow tests
ROWS = 10  # a file
ONCE = {
    "database": None, "deadline": None, "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip
FIELDS = (*row(1), "arm", "text", "other")
ODD = (
    '"\\ud83d"', '"\\u0000"', "NaN", "1e999", "-Infinity", "9" * 5_000, "-1", "0.5", "null", "[]",
    "{}", "[" * 3_000, "tru", '"', "", '"' + "x" * 30_000 + '"', '"\\u202e"', "true", '" "',
    '"2026-13-45"', '"0000-00-00T00:00:00Z"', '"9999-12-31T23:59:59+23:59"', '"{\\"a\\": NaN}"',
    '{"$date": "x"}', '{"$date": {"$numberLong": "9e9"}}', '"[]"', "1" + "0" * 30, '"=1+1"',
)  # fmt: skip


@st.composite
def lines(draw):
    """A right row with a field replaced, dropped, doubled or cut; or any bytes."""
    way = draw(st.integers(0, 6))
    if way == 0:
        return draw(st.binary(max_size=80)).replace(b"\n", b"")
    fields = {**row(draw(st.integers(0, 9))), "arm": draw(st.sampled_from("ab"))}
    name = draw(st.sampled_from(FIELDS))
    value = draw(st.sampled_from(ODD) | st.text(max_size=12).map(json.dumps))
    parts = [f'"{each}": {json.dumps(old)}' for each, old in fields.items() if each != name]
    if way != 1:
        parts.insert(draw(st.integers(0, len(parts))), f'"{name}": {value}')
    if way == 2:
        parts.append(f'"{name}": {json.dumps(fields.get(name))}')
    raw = ("{" + ", ".join(parts) + "}").encode("utf-8", "surrogatepass").replace(b"\n", b" ")
    if way == 3:
        return raw[: draw(st.integers(0, len(raw)))]
    if way == 4:
        at = draw(st.integers(0, len(raw)))
        return raw[:at] + draw(st.binary(min_size=1, max_size=3)).replace(b"\n", b"") + raw[at:]
    return raw


@st.composite
def files(draw):
    """Name and bytes of a file of such rows, JSONL or the same bytes as cells of CSV."""
    rows = draw(st.lists(lines(), min_size=1, max_size=ROWS))
    if draw(st.integers(0, 3)):
        return "rows.jsonl", b"".join(each + b"\n" for each in rows)
    mark = draw(st.sampled_from([b",", b";", b"\t"]))
    head = mark.join(each.encode() for each in row(1)) + b"\n"
    return "rows.csv", head + b"".join(each.replace(b", ", mark) + b"\n" for each in rows)


def call(*arguments):
    """The command line in this process; what it raised is an error of the test."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        main([str(each) for each in arguments])
    code, said = caught.value.code, err.getvalue()
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said
    assert code in (0, 1, 2, 3), said
    if code == 1:
        assert said.splitlines()[-1].startswith("reactune: "), said
    return code, out.getvalue(), said


def read_malformed(folder, examples, *commands_of):
    """Every command on so many files; a right row among them is stored whatever stands beside."""
    numbers, kept = count(), []

    @settings(max_examples=examples, **ONCE)
    @given(files())
    def read(made):
        name, content = made
        number = next(numbers)
        (folder / name).write_bytes(content)
        write_rows(folder / "right.jsonl", [row(f"right-{number}")])
        code, out, _ = call("ingest", folder / "right.jsonl", folder / name)
        if code != 1:
            came, went, refused = map(int, re.search(
                r"rows: ([\d,]+) in, ([\d,]+) kept, ([\d,]+) rejected", out
            ).groups())  # fmt: skip
            replaced = re.search(r"^(\d+) of them replaced", out, re.MULTILINE)
            assert came == went + refused + int(replaced[1] if replaced else 0), out
            kept.append(f"tip-right-{number}")
        for arguments in commands_of:
            out_file = folder / f"out{(folder / name).suffix}"
            words = {"FILE": folder / name, "OUT": out_file}
            if call(*(words.get(each, each) for each in arguments))[0] == 1:
                assert not out_file.exists()
            out_file.unlink(missing_ok=True)

    read()
    assert len(kept) > examples / 4
    found = {each for (each,) in stored(folder, "SELECT tip_id FROM tip_scores")}
    assert set(kept) <= found


READERS = (
    ("compare", "FILE"),
    ("compare", "FILE", "--unit", "user_id", "--dwell", "dwell_ms", "--looks", "many"),
    ("ope", "FILE", "--propensity", "dwell_ms", "--target", "dwell_ms", "--reward", "dwell_ms"),
    ("deidentify", "FILE", "--out", "OUT", "--workers", "1"),
)


def test_malformed_rows_are_counted_and_cost_no_other_row(tmp_path, monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    call("init")
    read_malformed(tmp_path, 12, *READERS)


@pytest.mark.slow
def test_thousands_of_malformed_rows_are_counted_and_cost_no_other_row(tmp_path, monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    copy_of_trained(tmp_path)
    monkeypatch.chdir(tmp_path)
    read_malformed(tmp_path, MALFORMED // ROWS, *READERS, ("score", "FILE", "--out", "OUT"))
