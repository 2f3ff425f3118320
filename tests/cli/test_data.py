"""Commands on reactions and texts: output, exit codes, and files left behind."""

import gzip
import json

import pytest

from cli_fixtures import row, stored, write_rows

NO_CONSENT = "no file has a column training_allowed: every row counts as allowed"


def test_ingest_keeps_all_rows_with_exit_code_0(call, here):
    call("init")
    file = here / "rows.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.writelines(json.dumps(row(number)) + "\n" for number in range(5))
    code, out, _ = call("ingest", file)
    assert (code, out.splitlines()) == (0, ["rows: 5 in, 5 kept, 0 rejected", NO_CONSENT])
    assert stored(here, "SELECT count(*) FROM tip_scores") == [(5,)]
    assert stored(here, "SELECT day, tips, positives FROM reaction_days") == [("2026-11-01", 5, 5)]


def test_ingest_reports_both_counts_and_lists_rejected_rows_without_their_text(call, here):
    call("init")
    bad = [row(2, dwell_ms=-1), row(3, reaction="loved"), row(4, tip_content="never say \0 this")]
    code, out, _ = call("ingest", write_rows(here / "rows.jsonl", [row(1), *bad]))
    assert code == 2
    assert out.splitlines()[0] == "rows: 4 in, 1 kept, 3 rejected"
    assert out.splitlines()[-2] == f"line and reason of each: {here}/rejects.jsonl"
    listed = (here / "rejects.jsonl").read_text()
    assert [json.loads(line)["line"] for line in listed.splitlines()] == [2, 3, 4]
    assert "never say" not in listed


def test_a_row_replaced_by_a_later_one_is_not_rejected(call, here):
    call("init")
    code, out, _ = call("ingest", write_rows(here / "rows.jsonl", [row(1), row(1, dwell_ms=5)]))
    assert code == 0
    assert out.splitlines() == [
        "rows: 2 in, 1 kept, 0 rejected",
        "1 of them replaced by a later row of the same tip_id",
        NO_CONSENT,
    ]
    assert stored(here, "SELECT dwell_ms FROM tip_scores") == [(5,)]


def test_no_user_id_is_stored(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(1, user_id="anna.schmidt")]))
    for file in here.glob("reactune.db*"):
        assert b"anna.schmidt" not in file.read_bytes()


def test_ingest_without_a_key_is_refused(call, here, monkeypatch):
    call("init")
    monkeypatch.delenv("REACTUNE_KEY")
    code, _, err = call("ingest", write_rows(here / "rows.jsonl", [row(1)]))
    assert code == 1
    assert "REACTUNE_KEY" in err
    assert stored(here, "SELECT count(*) FROM tip_scores") == [(0,)]


@pytest.mark.parametrize("dialect", ["sqlite", "postgres", "duckdb", "bigquery"])
def test_explain_prints_the_rule_of_the_magic_zone_in_any_dialect(call, dialect):
    code, out, _ = call("explain", "--dialect", dialect)
    assert code == 0
    assert "BETWEEN 15000 AND 120000" in out
    assert "BETWEEN 0 AND 4999" in out


def test_explain_follows_the_settings_and_the_sources_own_dialect(call):
    moved = ("--set", "labels.positive_dwell_ms=[9000, 90000]")
    assert "BETWEEN 9000 AND 90000" in call(*moved, "explain")[1]
    elsewhere = ("--set", "source.url=bigquery://project/set", "--set", "source.table=reactions")
    assert "`reactions`" in call(*elsewhere, "explain")[1]


NOTE = {"id": 1, "note": "Call me at +41 44 668 18 00 or write to anna@example.org."}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--out to write the file, or --spans"),
        (("--out", "notes.jsonl"), "is FILE itself"),
        (("--out", "safe.jsonl", "--workers", "0"), "--workers"),
    ],
)
def test_deidentify_refuses_options_that_do_not_fit(call, here, arguments, named):
    file = write_rows(here / "notes.jsonl", [NOTE])
    before = file.read_bytes()
    code, out, err = call("deidentify", file, *arguments)
    assert (code, out) == (2, "")
    assert named in err
    assert [path.read_bytes() for path in here.iterdir()] == [before]


def test_deidentify_writes_placeholders_and_reports_to_standard_error(call, here):
    file = write_rows(here / "notes.jsonl", [NOTE])
    code, out, err = call("deidentify", file, "--out", here / "safe.jsonl")
    assert (code, out) == (0, "")
    safe = json.loads((here / "safe.jsonl").read_text())
    assert safe["id"] == 1
    assert "anna@example.org" not in safe["note"]
    assert "668" not in safe["note"]
    assert "<EMAIL_1>" in safe["note"]
    assert "rows: 1 in, 1 kept, 0 left out" in err
    assert "1 EMAIL" in err


def test_spans_are_printed_without_the_text_unless_it_is_asked_for(call, here):
    file = write_rows(here / "notes.jsonl", [NOTE])
    _, out, _ = call("deidentify", file, "--spans", "-")
    spans = [json.loads(line) for line in out.splitlines()]
    assert {span["kind"] for span in spans} == {"EMAIL", "PHONE"}
    assert all(span["row"] == 0 or span["row"] == 1 for span in spans)
    assert "anna" not in out
    _, out, _ = call("deidentify", file, "--spans", "-", "--with-text")
    assert "anna@example.org" in {json.loads(line)["value"] for line in out.splitlines()}


def test_lines_that_are_no_rows_are_left_out_with_exit_code_2(call, here):
    file = here / "notes.jsonl"
    file.write_text(json.dumps(NOTE) + "\nno json\n[1, 2]\n", encoding="utf-8")
    code, _, err = call("deidentify", file, "--out", here / "safe.jsonl")
    assert code == 2
    assert "rows: 3 in, 1 kept, 2 left out" in err
    assert len((here / "safe.jsonl").read_text().splitlines()) == 1


def test_a_failed_list_of_spans_leaves_no_file_behind(call, here):
    file = here / "notes.csv"
    file.write_bytes(b'note\n"\xff\xfe broken"\n')
    code, _, err = call("deidentify", file, "--spans", here / "spans.jsonl")
    assert code == 1
    assert "notes.csv" in err
    assert [path.name for path in here.iterdir()] == ["notes.csv"]


def test_audit_without_labelled_reactions_says_what_to_do(call):
    call("init")
    code, out, _ = call("audit")
    assert (code, out) == (0, "no labelled reaction has a context; ingest some first\n")


def test_audit_shows_keys_and_shares_but_no_value(call, here):
    call("init")
    call("ingest", write_rows(here / "rows.jsonl", [row(number) for number in range(12)]))
    code, out, _ = call("audit", "--min-users", "5")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("time_of_day")]
    assert line.split()[1:4] == ["100%", "1", "12"]
    assert "morning" not in out
