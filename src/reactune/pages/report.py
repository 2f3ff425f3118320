"""A report as one HTML file without scripts and links; all texts in it are escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from reactune.records import write_atomically


@dataclass(frozen=True)
class Section:
    """A title, a text, plots as SVG, and a table."""

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
    source = resources.files("reactune.pages").joinpath("report.html.jinja")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(source.read_text(encoding="utf-8"))
    text = template.render(page=page, svg=inline_svg)
    write_atomically(file, text)


def inline_svg(picture: str) -> Markup:
    """The root element of an SVG document, to stand in a page."""
    return Markup(picture[picture.index("<svg") :])
