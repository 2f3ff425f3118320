"""Commands that set up, check, serve and demonstrate: init, config, doctor, serve, demo."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from reactune.cli.session import Session, as_json, print_json


@click.command
@click.pass_obj
def init(session: Session) -> None:
    """Write a commented reactune.toml and create the database.

    An existing settings file is left as it is; the database gets the tables it lacks. A new file
    holds what `--set` says.

    \b
    $ reactune init
    $ reactune --set store.url=postgresql://localhost/tips init
    """
    from reactune.config.settings import CONFIG_NAME, commented_file, load
    from reactune.errors import ReactuneError, hide_passwords
    from reactune.records import write_atomically
    from reactune.store.database import create_store

    file = session.file or Path(CONFIG_NAME)
    is_new, is_new_folder = not file.exists(), not file.parent.exists()
    try:
        if is_new:
            write_atomically(file, commented_file(load(None, session.overrides)))
        config = load(file, session.overrides)
        create_store(config.store_url).dispose()
    except ReactuneError:
        # A file with settings that do not work would break every later command.
        if is_new:
            file.unlink(missing_ok=True)
        if is_new_folder and file.parent.is_dir():
            file.parent.rmdir()
        raise
    click.echo(f"{file}: {'written' if is_new else 'there already, left as it is'}")
    click.echo(f"{hide_passwords(config.store_url)}: ready")


@click.command("config")
@as_json
@click.pass_obj
def show_config(session: Session, as_json: bool) -> None:
    """Print every setting in force, as TOML.

    Passwords in URLs are hidden.

    \b
    $ reactune --set train.method=kto config
    """
    from reactune.config.settings import resolved, without_passwords

    if as_json:
        print_json(without_passwords(session.config()))
        return
    click.echo(resolved(session.config()), nl=False)


@click.command
@as_json
@click.pass_obj
def doctor(session: Session, as_json: bool) -> None:
    """Report what is missing on this machine.

    Exit code 1 if something needed is. Checks versions, disk, memory, the key, the database,
    MLflow, the model server, and whether the base model is there, fits, and can be asked by its
    chat template. `deploy --base` and the first stage of `run` check what they need of it.

    \b
    $ reactune doctor
    """
    from reactune.doctor import examine

    findings = examine(session.config())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            click.echo(finding.line())
    sys.exit(1 if any(finding.state == "missing" for finding in findings) else 0)


@click.command
@click.pass_obj
def serve(session: Session) -> None:
    """Answer requests for tips and record reactions, until stopped.

    \b
    $ reactune serve
    $ reactune --set serve.port=9000 serve
    """
    from reactune.environment import multiply_with_one_thread

    multiply_with_one_thread()
    from reactune.web.server import serve_all

    serve_all(session.config())


@click.command
@click.option("--seed", type=int, default=1, show_default=True, help="Seed of everything random.")
@click.option(
    "--cycles",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Cycles of the loop; each trains on the reactions of the one before. With 0, there are"
    " only reactions, as many as a training needs.",
)
@click.option(
    "--tastes",
    default="default",
    show_default=True,
    help="What the audience likes; with none, reactions are coin flips.",
)
@click.option("--audience", metavar="MODULE:CLASS", help="An audience instead of the built-in one.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder of the demo; made if missing.",
)
def demo(seed: int, cycles: int, tastes: str, audience: str | None, folder: Path) -> None:
    """Show the whole loop on an audience with hidden tastes.

    Ends with a report, a page with pictures. Nothing is scripted: numbers depend on the seed.

    \b
    $ reactune demo
    $ reactune demo --seed 2 --cycles 3
    """
    from reactune.demo.loop import run_demo

    run_demo(folder, seed=seed, cycles=cycles, tastes=tastes, audience=audience, say=click.echo)


COMMANDS = (init, show_config, doctor, serve, demo)
