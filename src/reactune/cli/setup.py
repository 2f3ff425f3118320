"""Commands before anything runs: init, config, doctor."""

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
    from reactune.config import CONFIG_NAME, hide_passwords, load
    from reactune.database import create_store
    from reactune.records import write_atomically
    from reactune.template import commented_file

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
    from reactune.template import resolved

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


COMMANDS = (init, show_config, doctor)
