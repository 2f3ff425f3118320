import csv
import io
from datetime import UTC, datetime, timedelta, timezone

import pytest

from reactune.pages.tables import Link, Mark, Section, Table, find_table, moment, percent, points


def read(table):
    return list(csv.reader(io.StringIO(table.csv(), newline="")))


def table(*rows, name="t"):
    return Table(name, "Title", ("a", "b"), tuple(rows))


def test_a_table_is_the_same_as_csv():
    rows = [("one, two", 1), ('say "yes"', 2.5), ("line\nbreak", None)]
    assert read(table(*rows)) == [
        ["a", "b"], ["one, two", "1"], ['say "yes"', "2.5"], ["line\nbreak", ""],
    ]  # fmt: skip


def test_links_and_marks_are_their_texts():
    found = read(table((Link("run 1", "/runs/1"), Mark("done", "good"))))
    assert found[1] == ["run 1", "done"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3", "\t=1"])
def test_no_cell_is_a_formula_to_a_spreadsheet(text):
    assert read(table((text, "")))[1][0] == f"'{text}"


@pytest.mark.parametrize("text", ["-2.5", "+3", "\N{MINUS SIGN}0.31", "plain"])
def test_numbers_and_words_stay_as_they_are(text):
    assert read(table((text, "")))[1][0] == text


def test_a_table_is_found_by_its_name():
    sections = [
        Section("one", tables=(table(name="x"),)),
        Section("two", tables=(table(name="y"),)),
    ]
    assert find_table(sections, "y") is sections[1].tables[0]
    assert find_table(sections, "z") is None


def test_numbers_read_as_people_write_them():
    assert percent(0.1234) == "12.3 %"
    assert points(0.0123) == "+1.23"
    assert points(-0.0123) == "\N{MINUS SIGN}1.23"
    assert points(None) == "\N{EN DASH}"
    east = timezone(timedelta(hours=2))
    assert moment(datetime(2026, 3, 4, 1, 30, tzinfo=east)) == "2026-03-03 23:30"
    assert moment(datetime(2026, 3, 4, 1, 30, tzinfo=UTC)) == "2026-03-04 01:30"
