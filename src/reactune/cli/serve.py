"""Commands that stay up or show the whole thing: serve, demo."""

import sys
from pathlib import Path

import click

from reactune.cli.session import Session


@click.command
@click.pass_obj
def init(session: Session) -> None:
    """Write a commented reactune.toml and create the database.

    A settings file that is there already is left as it is; the database gets what it lacks.
    What `--set` says is written into a new file.

    \b
    $ reactune init
    $ reactune --set store.url=postgresql://localhost/tips init
    """
    from reactune.config.settings import CONFIG_NAME, commented_file, load
    from reactune.errors import hide_passwords
    from reactune.records import write_atomically
    from reactune.store.database import create_store

    file = session.file or Path(CONFIG_NAME)
    is_new = not file.exists()
    if is_new:
        write_atomically(file, commented_file(load(None, session.overrides)))
    config = load(file, session.overrides)
    create_store(config.store_url).dispose()
    click.echo(f"{file}: {'written' if is_new else 'there already, left as it is'}")
    click.echo(f"{hide_passwords(config.store_url)}: ready")


@click.command("config")
@click.pass_obj
def show_config(session: Session) -> None:
    """Print every setting that is in force, as TOML.

    Passwords in URLs are hidden.

    \b
    $ reactune --set train.method=kto config
    """
    from reactune.config.settings import resolved

    click.echo(resolved(session.config()), nl=False)


@click.command
@click.pass_obj
def doctor(session: Session) -> None:
    """Say what is missing on this machine.

    Exit code 1 if something that is needed is. Looks at versions, disk, memory, the key, the
    database, MLflow, the model server, and whether the base model is there and fits.

    \b
    $ reactune doctor
    """
    from reactune.doctor import examine

    findings = examine(session.config())
    for finding in findings:
        click.echo(finding.line())
    sys.exit(1 if any(finding.state == "missing" for finding in findings) else 0)


@click.command
@click.pass_obj
def serve(session: Session) -> None:
    """Answer requests for tips and take reactions, until stopped.

    \b
    $ reactune serve
    $ reactune --set serve.port=9000 serve
    """
    from reactune.web.server import serve_all

    serve_all(session.config())


@click.command
@click.option("--seed", type=int, default=1, show_default=True, help="Another one, other numbers.")
@click.option(
    "--cycles",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Times round the loop; each trains on what the one before earned. With 0, people only"
    " react, until there is enough to learn from.",
)
@click.option(
    "--tastes",
    default="default",
    show_default=True,
    help="What the audience likes; with none, reactions are coin flips.",
)
@click.option("--audience", metavar="MODULE:CLASS", help="Another audience than the built-in one.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Where the demo keeps everything; made if it is not there.",
)
def demo(seed: int, cycles: int, tastes: str, audience: str | None, folder: Path) -> None:
    """Show the whole loop on an audience with hidden tastes.

    Ends with a report as a page with pictures. Not scripted: another seed gives other numbers.

    \b
    $ reactune demo
    $ reactune demo --seed 2 --cycles 3
    """
    from reactune.demo.story import play_history, run_demo

    if cycles == 0:
        play_history(folder, seed=seed, tastes=tastes, audience=audience, say=click.echo)
        return
    run_demo(
        folder,
        seed=seed,
        cycles=cycles,
        tastes=tastes,
        audience=audience,
        say=click.echo,
    )


COMMANDS = (init, show_config, doctor, serve, demo)
