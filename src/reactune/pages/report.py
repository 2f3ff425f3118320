"""One page that tells a run: what reacted people made of two models, and how it came about.

Lays out what it is given; nothing is computed and no database opened here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from reactune.records import write_atomically


@dataclass(frozen=True)
class Section:
    """A headline, a sentence under it, pictures as SVG, and a table."""

    title: str
    text: str
    pictures: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Page:
    """A report: the verdict in one sentence, figures that matter most, and sections."""

    title: str
    verdict: str
    figures: Mapping[str, str]
    sections: Sequence[Section]


def write_report(page: Page, file: Path) -> None:
    """Write the page as one HTML file that needs nothing else, whole or not at all."""
    source = resources.files("reactune.pages").joinpath("report.html.jinja")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(source.read_text(encoding="utf-8"))
    text = template.render(page=page, svg=inline_svg)
    write_atomically(file, text)


def inline_svg(picture: str) -> Markup:
    """An SVG document as part of a page: from its root element on."""
    return Markup(picture[picture.index("<svg") :])
