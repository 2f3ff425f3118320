"""The commands of `reactune backend`: environments of trainers that cannot live in ours."""

import click

from reactune.cli.session import Session


@click.group
def backend() -> None:
    """Install and list what can train besides TRL.

    \b
    $ reactune backend install unsloth
    $ reactune backend list
    """


@backend.command("install")
@click.argument("name", type=click.Choice(["unsloth", "axolotl"]))
@click.pass_obj
def install_backend(session: Session, name: str) -> None:
    """Make the environment of a back-end: gigabytes, minutes.

    Repeating it does nothing where the environment is whole; after a kill, repeat it. Where it
    is put is said by `train.backend_folder`.

    \b
    $ reactune backend install unsloth
    """
    from reactune.train.installing import install

    install(name, session.config().train, say=click.echo)


@backend.command("list")
@click.pass_obj
def list_backends(session: Session) -> None:
    """Say which back-ends are installed, and where.

    \b
    $ reactune backend list
    """
    from reactune.train.installing import states

    for line in states(session.config().train):
        click.echo(line)


COMMANDS = (backend,)
