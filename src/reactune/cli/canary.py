"""Commands about what is live: deploy, review, promote, rollback."""

from datetime import UTC, datetime

import click

from reactune.cli.session import Session, require_training


@click.command
@click.option("--version", type=click.IntRange(1), help="Version.  [default: the newest]")
@click.option(
    "--base",
    is_flag=True,
    help="Only see to it that something answers: put no version on trial.",
)
@click.pass_obj
def deploy(session: Session, version: int | None, base: bool) -> None:
    """Put a registered version before the first share of users.

    Where nothing is live yet, the base model becomes champion first.

    \b
    $ reactune deploy --version 3
    $ reactune deploy --base
    """
    from reactune import deployment

    if base and version is not None:
        raise click.UsageError("--base puts no version on trial: name one, or --base, not both")
    require_training()
    if base:
        click.echo(deployment.deploy_base(session.config()))
        return
    click.echo(deployment.deploy(session.config(), version, now=datetime.now(UTC)))


@click.command("review")
@click.pass_obj
def judge(session: Session) -> None:
    """Compare challenger and champion, and act on it.

    Promotes, rolls back, gives the challenger more, or waits, and stores why. May be called as
    often as one likes: the bounds hold however often they are read. Also brings the registry
    and the model server in line with what is live.

    \b
    $ reactune review
    """
    from reactune import review

    click.echo(review.review(session.config(), now=datetime.now(UTC)).line)


@click.command
@click.pass_obj
def promote(session: Session) -> None:
    """Make the challenger the champion by hand.

    \b
    $ reactune promote
    """
    from reactune import review

    click.echo(review.promote(session.config(), now=datetime.now(UTC)).line)


@click.command
@click.pass_obj
def rollback(session: Session) -> None:
    """Withdraw the challenger by hand.

    \b
    $ reactune rollback
    """
    from reactune import review

    click.echo(review.roll_back(session.config(), now=datetime.now(UTC)).line)


COMMANDS = (deploy, judge, promote, rollback)
