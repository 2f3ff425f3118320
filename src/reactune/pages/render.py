"""Templates to HTML: every text is escaped, an unknown name is an error, and there is no script."""

import re
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reactune import __version__
from reactune.pages.pictures import inline
from reactune.pages.tables import Link, Mark

CODE = re.compile(r"`([^`]+)`")


def html(template: str, **context: Any) -> str:
    """A page from a template of this package."""
    return _environment().get_template(f"{template}.html.jinja").render(**context)


@cache
def style_sheet() -> str:
    """The style sheet of all pages, light and dark."""
    return resources.files("reactune.pages").joinpath("pages.css").read_text(encoding="utf-8")


def with_code(text: object) -> Markup:
    """A text with what stands between backticks as code; all of it is escaped."""
    return Markup(CODE.sub(r"<code>\1</code>", str(escape(text))))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reactune.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": with_code, "lower_first": _lower_first}
    environment.tests |= {
        "link": lambda value: isinstance(value, Link),
        "mark": lambda value: isinstance(value, Mark),
    }
    environment.globals |= {"draw": inline, "version": __version__}
    return environment


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
