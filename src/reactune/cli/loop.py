"""Commands that go round the loop: run, stage, status, evaluate."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from reactune.cli.session import Session, require_training
from reactune.records import STAGES

WAITING_OPTION = click.option(
    "--waiting-exit-code",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    help="Exit code where there is nothing to do (Airflow skips on 99): too little to learn from, a"
    " run that ended before this stage, nobody on trial, another verdict.",
)


@click.command
@click.option("--run", "run_id", help="Run to go on with.  [default: an interrupted one, or a new]")
@WAITING_OPTION
@click.pass_obj
def run(session: Session, run_id: str | None, waiting_exit_code: int) -> None:
    """Train a challenger, and put it before the first users.

    Does what is not done yet: after a kill, call it again. One line per stage says what came
    in, what went out, and what was refused. Too few examples, or a model that is not good
    enough, is an end, not an error.

    \b
    $ reactune run
    $ reactune run --run 20261123-101500-3f2a
    """
    require_training()
    from reactune import pipeline

    manifest = pipeline.run(session.config(), run_id=run_id, say=click.echo)
    sys.exit(waiting_exit_code if manifest.outcome == "waiting" else 0)


@click.command
@click.argument("name", type=click.Choice(STAGES))
@click.option("--run", "run_id", required=True, help="Run that the stage belongs to.")
@WAITING_OPTION
@click.pass_obj
def stage(session: Session, name: str, run_id: str, waiting_exit_code: int) -> None:
    """Do one stage of a run, unless it is done already.

    The stage `extract` starts the run where there is none of that name yet. A scheduler thus
    needs to hand on nothing but the name: date, time and a number, so that names sort by time.

    \b
    $ reactune stage extract --run 20261123-101500-3f2a
    $ reactune stage dataset --run 20261123-101500-3f2a
    """
    require_training()
    from reactune import pipeline

    manifest = pipeline.run_one_stage(session.config(), name, run_id, say=click.echo)
    nothing_to_do = manifest.outcome == "waiting" or manifest.stage != name
    sys.exit(waiting_exit_code if nothing_to_do else 0)


@click.command
@click.pass_obj
def status(session: Session) -> None:
    """Say what is live, and what the next run waits for.

    \b
    $ reactune status
    """
    from reactune.status import status as lines_of

    for line in lines_of(session.config(), now=datetime.now(UTC)):
        click.echo(line)


@click.command
@click.option(
    "--pairs",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSONL of {kind, context, chosen, rejected}.",
)
@click.option(
    "--model",
    required=True,
    metavar="base|champion|challenger|RUN_ID",
    help="Model that is asked which of two it would rather write.",
)
@click.pass_obj
def evaluate(session: Session, pairs: Path, model: str) -> None:
    """Say how often a model prefers the better of two texts.

    With a 95 % interval. Pairs whose texts the model was trained on are refused.

    \b
    $ reactune evaluate --pairs pairs.jsonl --model challenger
    """
    from reactune.pairs import evaluate_pairs

    click.echo(evaluate_pairs(session.config(), pairs, model).line)


COMMANDS = (run, stage, status, evaluate)
