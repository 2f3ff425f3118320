"""Commands of the loop: run, stage, status, evaluate, score, review, promote and rollback."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reactune.cli.files import RowsFile
from reactune.cli.session import Session, as_json, print_json, require_training
from reactune.records import REVIEW_STEPS, STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reactune.config.settings import Config

SOME_REFUSED, NOTHING_LEARNED = 2, 3  # exit codes of `score` and `evaluate`

WAITING_OPTION = click.option(
    "--waiting-exit-code",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    help="Exit code if there is nothing to do (Airflow skips on 99): too few examples, a run that"
    " ended before this stage, no challenger, another verdict.",
)


@click.command
@click.option("--run", "run_id", help="Run to continue.  [default: an interrupted or a new one]")
@WAITING_OPTION
@click.pass_obj
def run(session: Session, run_id: str | None, waiting_exit_code: int) -> None:
    """Train a challenger, and give it the first share of tips.

    Does the stages that are not done yet: after a kill, call it again. One line a stage reports
    rows in, rows out, and what was refused. Too few examples, or a model that fails the gate,
    end the run without an error.

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

    The stage `extract` starts the run if there is none of that name yet, so a scheduler passes
    only the name: date, time and a number, so that names sort by time.

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
@as_json
@click.pass_obj
def status(session: Session, as_json: bool) -> None:
    """Report what is live, and what the next run waits for.

    With --json it says what the overview of the pages says, from the database alone.

    \b
    $ reactune status
    $ reactune status --json
    """
    if as_json:
        print_json(_status(session.config()))
        return
    from reactune.status import status as lines_of

    for line in lines_of(session.config(), now=datetime.now(UTC)):
        click.echo(line)


def _status(config: "Config") -> "Mapping[str, Any]":
    from reactune.pages.archive import state_of
    from reactune.store.database import opened_store, reading

    with opened_store(config.store_url) as engine, reading(engine) as connection:
        return state_of(connection, config, now=datetime.now(UTC))


@click.command
@click.option(
    "--pairs",
    required=True,
    type=RowsFile(),
    help="JSONL (.gz), CSV or Parquet of {kind, context, chosen, rejected}; - is standard input.",
)
@click.option(
    "--model",
    default="champion",
    show_default=True,
    metavar="base|champion|challenger|RUN_ID",
    help="Version whose preference is measured.",
)
@as_json
@click.pass_obj
def evaluate(session: Session, pairs: Path, model: str, as_json: bool) -> None:
    """Measure how often a version prefers the better of two texts.

    Four lines with 95 % intervals: its generator by mean log-probability and by the gain over the
    base, its reward model, and what the service goes by. Pairs whose texts it was trained on are
    refused. Exit code 0: all rows are pairs; 2: some are not, and are listed with their line.

    \b
    $ reactune evaluate --pairs pairs.jsonl
    $ reactune evaluate --pairs pairs.jsonl --model challenger
    """
    from reactune.evaluate.pairs import evaluate_pairs

    result = evaluate_pairs(session.config(), pairs, model)
    if as_json:
        print_json(asdict(result))
    else:
        click.echo("\n".join(result.lines))
    for row in result.bad_rows:
        click.echo(f"{pairs}, line {row.line}: {row.reason}", err=True)
    sys.exit(SOME_REFUSED if result.bad_rows else 0)


@click.command
@click.argument("file", type=RowsFile())
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSONL (also .gz), CSV or Parquet to write.  [default: JSONL on standard output]",
)
@click.option(
    "--run", "run_id", help="Run whose reward model is used.  [default: the champion's, the newest]"
)
@click.pass_obj
def score(session: Session, file: Path, out: Path | None, run_id: str | None) -> None:
    """Predict how much people will like the texts of a file.

    FILE is JSONL (also .gz), CSV or Parquet of {kind, context, text}; - is standard input. Each row
    is written with its `reward` (a log-odds: of two texts in one context the difference is that of
    being preferred) and its `lower_bound`. Exit code 0: all rows were scored; 2: some could not be,
    and are listed with their line; 3: no run has learned a reward yet.

    \b
    $ reactune score tips.jsonl --out scored.jsonl
    """
    require_training()
    from reactune.evaluate import rewards
    from reactune.progress import progress_bar

    config = session.config()
    run_id = run_id or rewards.live_or_newest(config)
    model = rewards.reward_of_run(config, run_id) if run_id else None
    if run_id is None or model is None:
        click.echo("no reward is learned yet: `reactune run` learns one from reactions", err=True)
        sys.exit(NOTHING_LEARNED)
    refused = 0

    def scored(
        progress: "Callable[[int], object]" = lambda done: None,
    ) -> "Iterator[Mapping[str, Any]]":
        nonlocal refused
        for row in rewards.score_file(config, model, file, run_id=run_id, progress=progress):
            if row.refusal:
                refused += 1
                click.echo(f"{file}, line {row.number}: {row.refusal}", err=True)
            else:
                yield row.values

    if out is not None:
        with progress_bar("score", total=None, unit="tip") as bar:
            rewards.write_scored(scored(bar.update), out)
    else:
        for values in scored():
            click.echo(rewards.json_line(values))
    sys.exit(SOME_REFUSED if refused else 0)


@click.group
def backend() -> None:
    """Install and list trainers besides TRL.

    \b
    $ reactune backend install unsloth
    $ reactune backend list
    """


@backend.command("install")
@click.argument("name", type=click.Choice(["unsloth", "axolotl"]))
@click.pass_obj
def install_backend(session: Session, name: str) -> None:
    """Make the environment of a back-end: gigabytes, minutes.

    Repeating it does nothing if the environment is complete; after a kill, repeat it.
    `train.backend_folder` is its place.

    \b
    $ reactune backend install unsloth
    """
    from reactune.train.backends import install

    install(name, session.config().train, say=click.echo)


@backend.command("list")
@as_json
@click.pass_obj
def list_backends(session: Session, as_json: bool) -> None:
    """List the back-ends, and where they are installed.

    \b
    $ reactune backend list
    """
    from reactune.train.backends import states

    found = states(session.config().train)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    for each in found:
        where = f", {each.folder}" if each.folder else ""
        todo = f"; run `{each.install}`" if each.install else ""
        click.echo(f"{each.name:8} {each.state}{where}{todo}")


@click.command
@click.option("--version", type=click.IntRange(1), help="Version.  [default: the newest]")
@click.option(
    "--base",
    is_flag=True,
    help="Make the base model champion if nothing is live; open no rollout.",
)
@click.pass_obj
def deploy(session: Session, version: int | None, base: bool) -> None:
    """Give a registered version the first share of tips.

    If nothing is live yet, the base model becomes champion first.

    \b
    $ reactune deploy --version 3
    $ reactune deploy --base
    """
    from reactune import deployment

    if base and version is not None:
        raise click.UsageError("--base opens no rollout: name a version, or --base, not both")
    require_training()
    config = session.config()
    if deployment.champion(config) is None:
        _require_base(config)
    if base:
        click.echo(deployment.deploy_base(config))
        return
    click.echo(deployment.deploy(config, version, now=datetime.now(UTC)))


def _require_base(config: "Config") -> None:
    """See that the base can be exported, registered and served, before any of it is done."""
    from reactune import doctor
    from reactune.model.files import base_model
    from reactune.model.prompt import load_chat

    base = base_model(config.model)
    chat = load_chat(base.folder, config.prompt, privacy=config.privacy)
    doctor.require_ready(config, base, chat, trains=False)


@click.command("review")
@click.argument("step", required=False, type=click.Choice(REVIEW_STEPS))
@click.option("--id", "review_id", help="Review that the step belongs to.")
@WAITING_OPTION
@as_json
@click.pass_obj
def judge(
    session: Session,
    step: str | None,
    review_id: str | None,
    waiting_exit_code: int,
    as_json: bool,
) -> None:
    """Compare challenger and champion, and act on it.

    Promotes, rolls back, raises the challenger's share, or waits, and records the reason. Call it
    as often as you like: the bounds hold at every reading. It also repairs the registry and the
    model server if they differ from what is live.

    For a scheduler, one STEP at a time, each done once: compare, decide, and then all of
    promote, rollback and wait, of which only the decided one acts. The id is written as the name
    of a run.

    \b
    $ reactune review
    $ reactune review compare --id 20261123-101500-3f2a
    """
    if (step is None) != (review_id is None):
        raise click.UsageError("STEP and --id go together; without both, all steps are done")
    if as_json and step is not None:
        raise click.UsageError("--json goes with a whole review, not with one STEP")
    now = datetime.now(UTC)
    if step is None or review_id is None:
        from reactune import review

        done = review.review(session.config(), now=now)
        if as_json:
            print_json(asdict(done))
        else:
            click.echo(done.line)
        return
    from reactune.review import run_step

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
    help="Only stop it, in under a second; the next review updates registry and model server.",
)
@click.pass_obj
def rollback(session: Session, at_once: bool) -> None:
    """Roll the challenger back by hand.

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
    # Needs only the database: it must work while MLflow and the model server do not.
    from reactune.canary import rollout
    from reactune.records import Reason
    from reactune.store.database import opened_store, reading
    from reactune.store.queries import current_rollout

    with opened_store(config.store_url) as engine:
        with reading(engine) as connection:
            live = current_rollout(connection)
        if live is None or live.challenger is None:
            return "no challenger is live: nothing to stop"
        why = Reason("hand", "stopped", {}, datetime.now(UTC))
        after = rollout.roll_back(engine, live, why)
    return f"stopped: version {after.champion} answers everybody"


COMMANDS = (run, stage, status, evaluate, score, deploy, judge, promote, rollback, backend)
