"""What a page is made of: figures, tables that can be copied as CSV, and pictures with a table."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from reactune.pages.pictures import Spec

Tone = Literal["good", "bad", "wait", "none"]
NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet would compute a cell


@dataclass(frozen=True)
class Link:
    """A cell that leads to another page."""

    text: str
    href: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Mark:
    """A state in a word, which its tone colours."""

    text: str
    tone: Tone = "none"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Rows under a head; `name` is that of its CSV file. Cells are texts, numbers, links, marks.

    In texts, what stands between backticks is code, unless they are verbatim.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""
    empty: str = "Nothing yet."
    is_verbatim: bool = False

    def csv(self) -> str:
        """The table as CSV; no cell is a formula to a spreadsheet."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow(self.head)
        writer.writerows([[_plain(cell) for cell in row] for row in self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class Picture:
    """A picture, what it shows in one sentence, and the table of its numbers."""

    spec: Spec
    caption: str
    table: Table


@dataclass(frozen=True)
class Figure:
    """A number with its name, and perhaps how far it is: a value from 0 to 1."""

    name: str
    value: str
    note: str = ""
    part: float | None = None


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()

    def all_tables(self) -> tuple[Table, ...]:
        """Its tables, those of its pictures first."""
        return (*(each.table for each in self.pictures), *self.tables)


@dataclass(frozen=True)
class Words:
    """Three answers for somebody who knows nothing of statistics. `proposal` waits for a person."""

    tone: Tone
    answer: str
    sure: str
    next: str
    proposal: str = ""


def find_table(sections: Iterable[Section], name: str) -> Table | None:
    """The table of this name in a page."""
    tables = (table for section in sections for table in section.all_tables())
    return next((each for each in tables if each.name == name), None)


def moment(at: datetime | None) -> str:
    """A time in UTC to the minute; a dash for none."""
    return NONE if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def percent(share: float, digits: int = 1) -> str:
    """A share of 0 to 1 in per cent."""
    return f"{100 * share:.{digits}f} %"


def points(difference: float | None, digits: int = 2) -> str:
    """A difference of two shares in percentage points; a dash where it is not known."""
    return NONE if difference is None else f"{100 * difference:+.{digits}f}".replace("-", MINUS)


def plural(number: int, word: str) -> str:
    """A number with its word: `1 tip`, `2 tips`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def short(text: str, length: int = 12) -> str:
    """The beginning of a digest."""
    return text[:length]


def pairs(rows: Sequence[tuple[str, Any]], name: str, title: str) -> Table:
    """A table of names and values."""
    return Table(name, title, ("what", "value"), tuple(rows))


def _plain(cell: Any) -> Any:
    if isinstance(cell, int | float):
        return cell
    text = "" if cell is None else str(cell)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text.replace(MINUS, "-"))
    except ValueError:
        return False
    return True
