"""Commands about what is live: deploy, review, promote, rollback."""

from datetime import UTC, datetime

import click

from reactune.cli.session import Session


@click.command
@click.option("--version", type=click.IntRange(1), help="Version.  [default: the newest]")
@click.pass_obj
def deploy(session: Session, version: int | None) -> None:
    """Put a registered version before the first share of users.

    \b
    $ reactune deploy --version 3
    """
    from reactune import pipeline

    click.echo(pipeline.deploy(session.config(), version))


@click.command
@click.pass_obj
def review(session: Session) -> None:
    """Compare challenger and champion, and act on it.

    Promotes, rolls back, gives the challenger more, or waits, and stores why. May be called as
    often as one likes: the bounds hold however often they are read. Also brings the registry
    and the model server in line with what is live.

    \b
    $ reactune review
    """
    from reactune import pipeline

    click.echo(pipeline.review(session.config(), now=datetime.now(UTC)).line)


@click.command
@click.pass_obj
def promote(session: Session) -> None:
    """Make the challenger the champion by hand.

    \b
    $ reactune promote
    """
    from reactune import pipeline

    click.echo(pipeline.promote(session.config()))


@click.command
@click.pass_obj
def rollback(session: Session) -> None:
    """Withdraw the challenger by hand.

    \b
    $ reactune rollback
    """
    from reactune import pipeline

    click.echo(pipeline.roll_back(session.config()))


COMMANDS = (deploy, review, promote, rollback)
