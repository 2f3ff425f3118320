"""Commands about what is live: deploy, review, promote, rollback."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from reactune.cli.loop import WAITING_OPTION
from reactune.cli.session import Session, require_training
from reactune.records import REVIEW_STEPS

if TYPE_CHECKING:
    from reactune.config import Config


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
@click.argument("step", required=False, type=click.Choice(REVIEW_STEPS))
@click.option("--id", "review_id", help="Review that the step belongs to.")
@WAITING_OPTION
@click.pass_obj
def judge(
    session: Session, step: str | None, review_id: str | None, waiting_exit_code: int
) -> None:
    """Compare challenger and champion, and act on it.

    Promotes, rolls back, gives the challenger more, or waits, and stores why. May be called as
    often as one likes: the bounds hold however often they are read. Also brings the registry
    and the model server in line with what is live.

    For a scheduler, one STEP at a time, each done once: compare, decide, and then all of
    promote, rollback and wait, of which those have nothing to do that were not decided. The id
    is written as the name of a run.

    \b
    $ reactune review
    $ reactune review compare --id 20261123-101500-3f2a
    """
    if (step is None) != (review_id is None):
        raise click.UsageError("STEP and --id go together; without both, all steps are done")
    now = datetime.now(UTC)
    if step is None or review_id is None:
        from reactune import review

        click.echo(review.review(session.config(), now=now).line)
        return
    from reactune.review_steps import run_step

    had_work = run_step(session.config(), step, review_id, now=now, say=click.echo)
    sys.exit(0 if had_work else waiting_exit_code)


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
@click.option(
    "--now",
    "at_once",
    is_flag=True,
    help="Only stop it, in under a second; the next review tells registry and model server.",
)
@click.pass_obj
def rollback(session: Session, at_once: bool) -> None:
    """Withdraw the challenger by hand.

    \b
    $ reactune rollback
    $ reactune rollback --now
    """
    if at_once:
        click.echo(_stop(session.config()))
        return
    from reactune import review

    click.echo(review.roll_back(session.config(), now=datetime.now(UTC)).line)


def _stop(config: "Config") -> str:
    # Needs the database alone: it must work where neither MLflow nor a model server does.
    from reactune.canary import rollout
    from reactune.store import current_rollout, opened_store, reading

    with opened_store(config.store_url) as engine:
        with reading(engine) as connection:
            live = current_rollout(connection)
        if live is None or live.challenger is None:
            return "no challenger is live: nothing to stop"
        after = rollout.roll_back(
            engine, live, actor="hand", reason="stopped", numbers={}, now=datetime.now(UTC)
        )
    return f"stopped: version {after.champion} answers everybody"


COMMANDS = (deploy, judge, promote, rollback)
