"""Write docs/settings.md and docs/commands.md from the code; a test fails while they differ.

.venv/bin/python scripts/document.py
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click

from reactune.cli import commands
from reactune.cli.session import Session
from reactune.config.settings import described, sections

DOCS = Path(__file__).parent.parent / "docs"
WRITTEN = "<!-- Written by scripts/document.py (`make docs`); do not edit. -->\n"
WIDTH = 96


def settings_page() -> str:
    """Every section and key, with type, default and meaning."""
    lines = [
        "# Settings",
        "",
        WRITTEN,
        "One file, `reactune.toml`; `reactune init` writes one with every key commented out.",
        "Precedence: default, then the file, then `--set section.key=value`. A key that is not",
        "listed here is refused. `reactune config` prints what is in force.",
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


def pages() -> Iterator[tuple[Path, str]]:
    """Each generated page and what it must hold."""
    yield DOCS / "settings.md", settings_page()
    yield DOCS / "commands.md", commands_page()


if __name__ == "__main__":
    for file, text in pages():
        file.write_text(text, encoding="utf-8")
