"""A report as one HTML file without scripts and links; all texts in it are escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from reactune.pages.pictures import themed
from reactune.pages.render import html, style_sheet
from reactune.records import write_atomically


@dataclass(frozen=True)
class Section:
    """A title, a text, pictures as SVG, and a table."""

    title: str
    text: str
    pictures: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Page:
    """A report: the verdict in one sentence, the main figures, and sections."""

    title: str
    verdict: str
    figures: Mapping[str, str]
    sections: Sequence[Section]


def write_report(page: Page, file: Path) -> None:
    """Write the page as one HTML file, completely or not at all."""
    text = html("report", page=page, svg=inline_svg, style=Markup(style_sheet()))
    write_atomically(file, text)


def inline_svg(picture: str) -> Markup:
    """The root element of an SVG document, to stand in a page, in the colours of its style."""
    return Markup(themed(picture[picture.index("<svg") :]))
