"""The overview for a terminal, as tables and panels of rich."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from reactune.pages.overview import Overview

STYLES = {"good": "green", "bad": "red", "wait": "yellow", "none": "default"}
BAR_WIDTH = 20


def screen(overview: Overview) -> RenderableType:
    """The three answers, the steps of the loop, and what is due."""
    said = overview.words
    answer = Text(said.answer, style=f"bold {STYLES[said.tone]}")
    answers = Group(answer, Text(said.sure), Text(said.next))
    parts = [
        Panel(answers, title="Is the new model better?", title_align="left"),
        Panel(_steps(overview), title="Where the loop stands", title_align="left"),
    ]
    if overview.due:
        parts.append(Panel(_due(overview), title="What is due", title_align="left"))
    return Group(*parts)


def _steps(overview: Overview) -> Table:
    table = Table.grid(padding=(0, 2))
    for step in overview.steps:
        bar = ""
        if step.part is not None:
            full = round(step.part * BAR_WIDTH)
            bar = "\u2588" * full + "\u2591" * (BAR_WIDTH - full)
        style = "bold" if step.is_now else ""
        table.add_row(Text(step.name, style=style), Text(step.value, style=style), bar, step.note)
    return table


def _due(overview: Overview) -> Table:
    table = Table.grid(padding=(0, 2))
    for each in overview.due:
        table.add_row(Text(each.word, style=STYLES[each.tone]), Text(each.text))
    return table
