"""Write from the code what the documents say of it; a test fails while they differ.

    .venv/bin/python scripts/document.py

The pages of settings, commands, HTTP requests and Python, the map of the code in the README, and in
docs/architecture.md the table and the picture of the floors.
"""

import ast
import re
import tempfile
import textwrap
import tomllib
from collections.abc import Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import click

from reactune.cli import commands
from reactune.cli.session import Session
from reactune.config.sections import ServeConfig
from reactune.config.settings import described, sections
from reactune.privacy.hashing import HashingKey
from reactune.service.state import open_service
from reactune.store.database import create_store
from reactune.web.access import APP, PUBLIC, SCOPES_OF
from reactune.web.api import create_app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "reactune"
WRITTEN = "<!-- Written by scripts/document.py (`make docs`); do not edit. -->\n"
WIDTH = 96
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
IMPORTED: dict[str, tuple[str, ...]] = {
    "reactune.client.http": (
        "Client", "AsyncClient", "ClientTip", "ServiceError", "UnsendableError",
    ),
    "reactune.client.router": ("Router", "Decision"),
    "reactune.client.openfeature": ("ReactuneProvider",),
    "reactune.privacy.hashing": ("HashingKey", "load_hashing_key"),
    "reactune.records": (
        "Rollout", "Exposure", "ModelVersion", "Example", "Prompt", "Sampling", "Completion",
        "Runtime", "Estimate", "Counts",
    ),
    "reactune.demo.audience": ("Audience", "Visit", "Response", "load_audience"),
    "reactune.errors": (
        "ReactuneError", "ConfigError", "DataError", "AwayError", "PrivacyError", "TrainingError",
        "ReleaseError", "CanaryError",
    ),
}  # fmt: skip
"""What programs of others may import, by module."""


def settings_page() -> str:
    """Every section and key, with type, default and meaning."""
    lines = [
        "# Settings",
        "",
        WRITTEN,
        "One file, `reactune.toml`; `reactune init` writes one with every key commented out.",
        "Precedence: default, then the file, then `--set section.key=value`. A key that is not",
        "listed here is refused. Relative paths start at the folder of the file, and `~` is the",
        "home of who runs the command. `reactune config` prints what is in force.",
        "",
    ]
    for name, rows in groupby(described(), key=lambda row: row[0]):
        lines += [f"## `[{name}]`", "", " ".join((sections()[name].__doc__ or "").split()), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for _, key, kind, default, meaning in rows:
            cells = (f"`{key}`", kind, f"`{default}`", meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """The help of the group and of every command."""
    settings = {**commands.context_settings, "terminal_width": WIDTH}
    with click.Context(commands, info_name="reactune", obj=Session(), **settings) as group:
        lines = ["# Commands", "", WRITTEN, "```", commands.get_help(group), "```", ""]
        for name, command in sorted(commands.commands.items()):
            lines += _described(name, command, group)
    return "\n".join(lines)


def _described(name: str, command: click.Command, parent: click.Context) -> list[str]:
    """The help of a command, and of those below it."""
    with click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH) as context:
        lines = [f"## `{context.command_path}`", "", "```", command.get_help(context), "```", ""]
        if isinstance(command, click.Group):
            for below, other in command.commands.items():
                lines += _described(below, other, context)
    return lines


def http_page() -> str:
    """Every request of the API, as the service itself describes it."""
    api = openapi()
    lines = [
        "# HTTP requests",
        "",
        WRITTEN,
        "What the service answers, as it states itself at `/openapi.json`. How to use it, refusals",
        "and what happens when something breaks are in [the service](service.md).",
        "",
    ]
    for path, methods in api["paths"].items():
        for method, request in methods.items():
            lines += _request(method.upper(), path, request, api["components"]["schemas"])
    return "\n".join(lines)


def openapi() -> dict[str, Any]:
    """The description of the API; a service that answers nobody gives it."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_store(f"sqlite:///{folder}/reactune.db")
        none = cast(Any, None)  # neither a template nor a model server is asked
        key = HashingKey(b"no user is hashed with this key here")
        service = open_service(engine, chat=none, runtime=none, key=key, settings=ServeConfig())
        described_api = create_app(service).openapi()
        service.recorder.close()
        engine.dispose()
    return described_api


def _request(method: str, path: str, request: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    """Scope, parameters, body and answer of one request."""
    scopes = sorted(SCOPES_OF.get((method, path), APP))
    who = "none" if path in PUBLIC else " or ".join(f"`{scope}`" for scope in scopes)
    lines = [f"## `{method} {path}`", "", request["description"], "", f"Scope: {who}.", ""]
    rows = [
        (each["name"], each["in"], each.get("required", False), each["schema"])
        for each in request.get("parameters", ())
    ]
    body = request.get("requestBody", {}).get("content", {}).get("application/json", {})
    for name in _names_in(body):
        needed = schemas[name].get("required", ())
        fields = schemas[name].get("properties", {})
        rows += [(field, "body", field in needed, each) for field, each in fields.items()]
    if rows:
        lines += ["| name | in | required | type | meaning |", "|---|---|---|---|---|"]
        for field, place, is_needed, schema in rows:
            meaning = " ".join(schema.get("description", "").split())
            cells = (f"`{field}`", place, "yes" if is_needed else "", _kind(schema), meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    for status, answer in request["responses"].items():
        if status.startswith("2"):
            parts = _names_in(answer)
            fields = [f"`{f}`" for name in parts for f in schemas[name].get("properties", {})]
            lines += [f"Answer: {status}{' with ' + ', '.join(fields) if fields else ''}.", ""]
    return lines


def _names_in(part: dict[str, Any]) -> list[str]:
    """The schemas that a part of the description refers to first."""
    content = part.get("content", {}).get("application/json", part)
    reference = content.get("schema", {}).get("$ref", "")
    return [reference.rpartition("/")[2]] if reference else []


def _kind(schema: dict[str, Any]) -> str:
    """The type of a field in a word or two."""
    if "enum" in schema:
        return " or ".join(f"`{each}`" for each in schema["enum"])
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_kind, schema["anyOf"])))
    return str(schema.get("type", "any"))


def python_page() -> str:
    """Classes and functions that programs of others may import, from their source."""
    lines = [
        "# Python",
        "",
        WRITTEN,
        "What an app may import. `Client`, `AsyncClient` and `Router` are in `reactune` itself,",
        "and `ReactuneProvider` is in `reactune.openfeature_provider`. Every error is a",
        "`ReactuneError` with one line for people. Whatever is not on this page may change in any",
        "version. How to use it is in [the service](service.md).",
        "",
    ]
    for module, names in IMPORTED.items():
        tree = ast.parse(source_of(module))
        found = {
            node.name: node
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        lines += [f"## `{module}`", "", *_prose(ast.get_docstring(tree))]
        for name in names:
            lines += _documented(found[name])
    return "\n".join(lines)


def source_of(module: str) -> str:
    """The source text of a module of ours."""
    file = PACKAGE / Path(*module.split(".")[1:]).with_suffix(".py")
    return file.read_text(encoding="utf-8")


def _documented(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """A class with its fields and methods, or a function."""
    if isinstance(node, ast.FunctionDef):
        return [f"### `{node.name}`", "", *_signature(node), *_prose(ast.get_docstring(node))]
    lines = [f"### `{node.name}`", ""]
    methods = [each for each in node.body if isinstance(each, FUNCTIONS)]
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    shown = [ast.unparse(each) for each in fields if not ast.unparse(each.target).startswith("_")]
    if shown:
        lines += ["```python", *shown, "```", ""]
    for each in methods:
        if each.name == "__init__":
            lines += _signature(each, name=node.name)
    lines += _prose(ast.get_docstring(node))
    for each in methods:
        if not each.name.startswith("_"):
            lines += [f"#### `{node.name}.{each.name}`", "", *_signature(each)]
            lines += _prose(ast.get_docstring(each))
    return lines


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, *, name: str = "") -> list[str]:
    """How a function is called, as code; without `self`."""
    decorators = [f"@{ast.unparse(each)}" for each in node.decorator_list]
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    arguments = re.sub(r"(?<=\S)=(?=\S)", " = ", arguments)
    answer = f" -> {ast.unparse(node.returns)}" if node.returns and not name else ""
    start = "async def " if isinstance(node, ast.AsyncFunctionDef) else "def " if not name else ""
    call = f"{start}{name or node.name}({arguments}){answer}"
    wrapped = textwrap.wrap(call, WIDTH, subsequent_indent="    ", break_long_words=False)
    return ["```python", *decorators, *wrapped, "```", ""]


def _prose(docstring: str | None) -> list[str]:
    """A docstring as Markdown: what it raises as a list."""
    if not docstring:
        return []
    text, _, raises = docstring.partition("\nRaises:\n")
    lines = [*text.strip().splitlines(), ""]
    if raises:
        parts = re.split(r"\n    (?=\w)", f"\n{raises}")
        errors = [" ".join(part.split()).partition(": ") for part in parts if part.strip()]
        lines += ["Raises:", "", *(f"* `{name}`: {why}" for name, _, why in errors), ""]
    return lines


def floors() -> list[list[str]]:
    """The packages and modules of each floor, from the top down, as the import linter has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = project["tool"]["importlinter"]["contracts"]
    return [floor.split(" | ") for floor in contract["layers"]]


def place(name: str) -> str:
    """Path of a package or module below src/reactune."""
    path = name.replace(".", "/")
    return f"{path}/" if (PACKAGE / path).is_dir() else f"{path}.py"


def first_sentence(name: str) -> str:
    """What a package or module guarantees: the first line of its docstring."""
    file = PACKAGE / place(name) / ("__init__.py" if place(name).endswith("/") else "")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def code_map() -> str:
    """The packages and the modules of the root with their first sentences, from the top down."""
    names = list(dict.fromkeys(name.partition(".")[0] for floor in floors() for name in floor))
    rows = (f"| [`{place(n)}`](src/reactune/{place(n)}) | {first_sentence(n)} |" for n in names)
    return "\n".join(["| in `src/reactune` | what it guarantees |", "|---|---|", *rows])


def floor_table() -> str:
    """The floors, counted from the ground up."""
    lines = ["| floor | packages and modules |", "|---|---|"]
    for number, names in zip(range(len(floors()), 0, -1), floors(), strict=True):
        lines.append(f"| {number} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines)


def floor_picture() -> str:
    """The floors as SVG: a row a floor, a box a package (blue) or a module (grey)."""
    height, gap, left = 30, 12, 46
    parts, right = [], 0.0
    for row, names in enumerate(floors()):
        top, across = gap + row * (height + gap), float(left)
        parts.append(f'<text x="12" y="{top + 20}" fill="#6b7280">{len(floors()) - row}</text>')
        for name in names:
            width = 18 + 7.9 * len(name)
            colour = "#dbeafe" if place(name).endswith("/") else "#f3f4f6"
            parts.append(
                f"<g><title>{escape(first_sentence(name))}</title>"
                f'<rect x="{across:.0f}" y="{top}" width="{width:.0f}" height="{height}" rx="5"'
                f' fill="{colour}" stroke="#9ca3af"/><text x="{across + width / 2:.0f}"'
                f' y="{top + 20}" text-anchor="middle" fill="#111827">{name}</text></g>'
            )
            across += width + gap
        right = max(right, across)
    size = f"{right:.0f} {gap + len(floors()) * (height + gap)}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-size="13"'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([f'{head} font-family="monospace">', ground, *parts, "</svg>", ""])


def between_markers(file: Path, **parts: str) -> str:
    """The text of a file with each part anew between the comments that name it."""
    text = file.read_text(encoding="utf-8")
    for name, part in parts.items():
        before, start, rest = text.partition(f"<!-- {name}: written by `make docs` -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not end:
            raise ValueError(f"{file} has no comments around {name}; put them back")
        text = f"{before}{start}\n{part}\n\n{end}{after}"
    return text


def pages() -> Iterator[tuple[Path, str]]:
    """Each page that is written here, wholly or in part, and what it must hold."""
    yield DOCS / "settings.md", settings_page()
    yield DOCS / "commands.md", commands_page()
    yield DOCS / "http.md", http_page()
    yield DOCS / "python.md", python_page()
    yield ROOT / "README.md", between_markers(ROOT / "README.md", map=code_map())
    architecture = DOCS / "architecture.md"
    yield architecture, between_markers(architecture, floors=floor_table())
    yield DOCS / "images" / "architecture.svg", floor_picture()


if __name__ == "__main__":
    for file, text in pages():
        file.write_text(text, encoding="utf-8")
