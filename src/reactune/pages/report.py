"""A report as one HTML file, for mail and archives: no link, no script, every text is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from reactune.pages.render import html, style_sheet
from reactune.pages.tables import Section, Words, moment
from reactune.records import write_atomically

NO_TEXT = "counts and figures only, no text of a tip"


@dataclass(frozen=True)
class Report:
    """What a file shows; `words` are the three answers on top, if it is about a rollout.

    `note` stands at the end, and says whether there are texts of tips in it.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    words: Words | None = None
    note: str = NO_TEXT


def write(report: Report, file: Path, *, now: datetime | None = None) -> None:
    """Write a report as one HTML file, completely or not at all; `now` is named in it, if given."""
    text = html(
        "file",
        title=report.title,
        lead=report.lead,
        sections=report.sections,
        words=report.words,
        note=report.note,
        style=Markup(style_sheet()),
        now=moment(now) if now else "",
    )
    write_atomically(file, text.lstrip())
