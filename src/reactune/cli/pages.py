"""Commands for people who would rather look than read: watch, report, completion."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reactune.cli.session import Session

if TYPE_CHECKING:
    import sqlalchemy as sa

    from reactune.config.settings import Config
    from reactune.pages.report import Report


@click.command
@click.option("--run", "run_id", help="A run: its stages, gate, reward, training and dataset.")
@click.option("--rollout", is_flag=True, help="The open rollout, or the one that ended last.")
@click.option(
    "--days",
    type=click.IntRange(1, 366),
    default=30,
    show_default=True,
    help="Without the others: reactions, rollout, runs and erasures of the last days.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write.",
)
@click.pass_obj
def report(session: Session, run_id: str | None, rollout: bool, days: int, out: Path) -> None:
    """Write what the pages show as one HTML file, for mail and archives.

    The file has no script, no link and no text of a tip. Pictures need the extra `pages`; without
    it the tables stand alone.

    \b
    $ reactune report
    $ reactune report --rollout --out rollout.html
    $ reactune report --run 20261123-101500-3f2a
    """
    if run_id is not None and rollout:
        raise click.UsageError("--run and --rollout are two reports: name one")
    from reactune.pages.report import write
    from reactune.store.database import opened_store, reading

    config, now = session.config(), datetime.now(UTC)
    with opened_store(config.store_url) as engine, reading(engine) as connection:
        made = _report(connection, config, run_id, rollout=rollout, days=days, now=now)
    write(made, out, now=now)
    click.echo(f"{made.title}: {out}")


def _report(
    connection: "sa.Connection",
    config: "Config",
    run_id: str | None,
    *,
    rollout: bool,
    days: int,
    now: datetime,
) -> "Report":
    from reactune.pages import archive

    if run_id is not None:
        return archive.run_report(connection, run_id)
    if rollout:
        return archive.rollout_report(connection, config, now=now)
    return archive.period_report(connection, config, days=days, now=now)


@click.command
@click.option(
    "--every",
    type=click.FloatRange(0.5),
    default=5.0,
    show_default=True,
    help="Seconds between two readings of the database.",
)
@click.pass_obj
def watch(session: Session, every: float) -> None:
    """Show the overview of the pages in this terminal, until Ctrl-C.

    Once, where the output is no terminal.

    \b
    $ reactune watch
    """
    from contextlib import suppress

    from rich.console import Console, RenderableType
    from rich.live import Live

    from reactune.pages.overview import overview
    from reactune.pages.terminal import screen
    from reactune.store.database import opened_store, reading
    from reactune.store.labels import label_rule
    from reactune.store.summaries import latest_days

    config, console = session.config(), Console()
    rule = label_rule(config.labels)
    with opened_store(config.store_url) as engine:

        def current() -> RenderableType:
            with reading(engine) as connection:
                latest = latest_days(connection, rule)
                return screen(overview(connection, config, latest, now=datetime.now(UTC)))

        if not console.is_terminal:
            console.print(current())
            return
        with (
            suppress(KeyboardInterrupt),
            Live(current(), console=console, screen=True, auto_refresh=False) as live,
        ):
            while True:
                time.sleep(every)
                live.update(current(), refresh=True)


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    $ reactune completion bash > ~/.local/share/bash-completion/completions/reactune
    $ reactune completion zsh > ~/.zfunc/_reactune
    $ reactune completion fish > ~/.config/fish/completions/reactune.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, shell  # click knows the three
    root = context.find_root().command
    click.echo(kind(root, {}, "reactune", "_REACTUNE_COMPLETE").source())


COMMANDS = (watch, report, completion)
