"""Commands that change nothing: compare a file, plan a rollout, evaluate logged choices."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reactune.cli.files import RowsFile
from reactune.cli.session import Session, as_json, in_one_line, print_json

if TYPE_CHECKING:
    from reactune.analysis.offpolicy import Evaluation


REFUSED = 3
PICTURE = click.Path(path_type=Path, dir_okay=False)
NUMBER = click.FloatRange(min=0, min_open=True)
PICTURE_OPTION = click.option(
    "--picture", type=PICTURE, help="Draw it into this file, .svg or .png."
)


@click.command
@click.argument("file", type=RowsFile())
@click.option("--arm", multiple=True, help="Column of the arm; several make one.  [default: arm]")
@click.option("--rows-are-arms", is_flag=True, help="Every row is an arm, with its counts.")
@click.option(
    "--champion", default="", help="Arm compared with.  [default: champion, or the first]"
)
@click.option("--unit", default="", help="Column of the unit of assignment, such as the user.")
@click.option("--by", default="", help="Column whose values are compared separately.")
@click.option("--reaction", default="reaction", show_default=True, help="Column of the reaction.")
@click.option("--positive", multiple=True, help="Reaction that counts.  [default: done]")
@click.option("--dwell", default="", help="Column of the dwell time: the label rule applies to it.")
@click.option("--count", default="", help="Column of the number of tips that a row stands for.")
@click.option("--tips", default="", help="Column of counted tips, instead of reactions.")
@click.option("--positives", default="", help="Column of counted positives, with --tips.")
@click.option("--time", default="", help="Column that orders rows, for a file that grows.")
@click.option(
    "--share",
    "shares",
    multiple=True,
    metavar="ARM=SHARE",
    help="Share an arm was assigned by; may be repeated.  [default: all alike]",
)
@click.option(
    "--looks",
    type=click.Choice(["once", "many"]),
    default="once",
    show_default=True,
    help="Whether the file is read once, or again whenever it has grown.",
)
@click.option(
    "--planned", type=click.IntRange(1), default=5_000, show_default=True,
    help="Units at which bounds are tightest, with --looks many; fix it before the first reading.",
)  # fmt: skip
@PICTURE_OPTION
@as_json
@click.pass_obj
def compare(
    session: Session,
    /,
    file: Path,
    arm: tuple[str, ...],
    rows_are_arms: bool,
    champion: str,
    positive: tuple[str, ...],
    shares: tuple[str, ...],
    looks: str,
    planned: int,
    picture: Path | None,
    as_json: bool,
    **columns: str,
) -> None:
    """Compare the arms of any file of reactions.

    JSONL (also .gz), CSV or Parquet (- is standard input), one row a tip or one row a count; `a.b`
    names the key b in column a. Values are compared by what they mean: `Done` is `done`, `1` is
    1.0, `t` is true; a missing key is a null. Exit code 0: compared, whatever the result; 2: a
    positive or the champion is in no row; 3: a comparison was refused, because units and shares do
    not match, units met several arms, or an arm is missing. With --json: a list of comparisons,
    whose differences and bounds are in positives per tip, not in points.

    \b
    $ reactune compare exposures.jsonl.gz --unit unit_key --time shown_at --looks many
    $ reactune compare tests.parquet --by test --rows-are-arms --tips shown --positives clicks
    """
    from reactune.analysis import compare as comparing
    from reactune.analysis.tables import Columns, UnknownValueError
    from reactune.pages import pictures

    if bool(columns["tips"]) != bool(columns["positives"]):
        raise click.UsageError("--tips and --positives go together")
    if rows_are_arms and (arm or columns["unit"]):
        raise click.UsageError("--rows-are-arms goes with neither --arm nor --unit")
    if picture is not None:
        pictures.check_ending(picture)
    settings = session.config()
    options = comparing.Options(
        positive=frozenset(positive or ("done",)),
        champion=champion,
        shares=comparing.parse_shares(shares),
        looks="many" if looks == "many" else "once",
        alpha=settings.canary.alpha,
        srm_alpha=settings.canary.srm_alpha,
        planned_units=planned,
    )
    named = Columns(arm=() if rows_are_arms else arm or ("arm",), **columns)
    try:
        trials = comparing.compare_file(file, named, options, settings.labels)
    except UnknownValueError as error:
        raise click.UsageError(in_one_line(str(error))) from error
    if as_json:
        print_json([comparing.facts_of(trial) for trial in trials])
    else:
        click.echo("\n".join(map(in_one_line, comparing.report(trials))))
    if picture is not None:
        rows = comparing.intervals_of(trials)
        drawn = pictures.intervals("difference in points", rows, reference=0)
        pictures.save(drawn, picture)
    sys.exit(REFUSED if any(trial.refusal for trial in trials) else 0)


@click.command
@click.option("--baseline", type=NUMBER, help="Champion's positives per tip.  [default: recent]")
@click.option("--lift", type=NUMBER, default=0.03, show_default=True, help="Difference to detect.")
@click.option("--power", type=NUMBER, default=0.8, show_default=True, help="Chance to detect it.")
@click.option("--units-per-day", type=NUMBER, help="Units a day.  [default: recent]")
@click.option("--tips-per-unit", type=NUMBER, help="Tips per unit.  [default: recent]")
@PICTURE_OPTION
@as_json
@click.pass_obj
def plan(
    session: Session,
    baseline: float | None,
    lift: float,
    power: float,
    units_per_day: float | None,
    tips_per_unit: float | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Compute how many tips and days a rollout takes.

    For shares of 5 to 50 % and for the ramp of the settings, at the traffic of the last two weeks
    in the database, if there is one.

    \b
    $ reactune plan --baseline 0.2 --lift 0.03
    $ reactune plan --baseline 0.2 --units-per-day 500 --json
    """
    from reactune.analysis import plan as planning
    from reactune.pages import pictures

    if picture is not None:
        pictures.check_ending(picture)
    config = session.config()
    traffic = planning.assumed_traffic(
        planning.recent_traffic(config, now=datetime.now(UTC)),
        baseline=baseline,
        units_per_day=units_per_day,
        tips_per_unit=tips_per_unit,
    )
    options = planning.plan_options(config.canary, traffic, lift, power=power)
    if as_json:
        print_json(planning.plan_facts(options, traffic, lift, settings=config.canary))
    else:
        click.echo("\n".join(planning.plan_lines(options, traffic, lift, settings=config.canary)))
    if picture is not None:
        drawn = pictures.plans(planning.axis_of(options), planning.bars_of(options))
        pictures.save(drawn, picture)


@click.command
@click.argument("file", type=RowsFile())
@click.option("--reward", default="reward", show_default=True, help="Column of the reward.")
@click.option("--largest", type=NUMBER, default=1.0, show_default=True, help="Largest reward.")
@click.option("--propensity", default="propensity", show_default=True,
              help="Column of the logged policy's probability of its choice.")  # fmt: skip
@click.option("--target", "targets", multiple=True, help="Column of a new policy's probability of "
              "that choice; several are ranked.")  # fmt: skip
@click.option("--choice", default="", help="Column of the candidates (choice_json), instead: what "
              "a choice at random and the best by its bound would have earned.")  # fmt: skip
@click.option("--policy", default="", help="Column that names each row's policy, instead.")
@click.option("--from", "logged", default="", help="Policy whose log is used.")
@click.option("--to", "new", default="", help="Policy to evaluate; its chances are counted.")
@click.option("--action", default="", help="Column of the choice.")
@click.option("--given", multiple=True, help="Column of the context; may be repeated.")
@click.option("--most-weight", type=NUMBER, default=float("inf"), help="Largest ratio of new to "
              "logged chance that can occur, if known: tightens the upper bound.")  # fmt: skip
@click.option(
    "--clip", type=NUMBER, default=float("inf"), help="Clip weights here.  [default: not]"
)
@as_json
@click.pass_obj
def ope(
    session: Session,
    file: Path,
    reward: str,
    largest: float,
    propensity: str,
    targets: tuple[str, ...],
    choice: str,
    policy: str,
    logged: str,
    new: str,
    action: str,
    given: tuple[str, ...],
    most_weight: float,
    clip: float,
    as_json: bool,
) -> None:
    """Estimate the reward of another policy from a log of choices.

    Inverse propensity, self-normalised and doubly robust estimates, with bounds that hold at any
    length of the log. This may veto or rank, and never promotes. Exit code 0: evaluated; 3: the
    log is too small for a conclusion on one of the policies.

    \b
    $ reactune ope log.jsonl --target new_chance
    $ reactune ope tips.parquet --reward done --choice choice_json
    $ reactune ope log.parquet --policy policy --from random --to ours --action item --given place
    """
    from reactune.analysis import offpolicy
    from reactune.analysis.tables import UnknownValueError

    ways = sum(map(bool, (targets, choice, policy)))
    if ways != 1 or (policy and not (logged and new and action)):
        raise click.UsageError(
            "name the new policy in one way: --target COLUMN, --choice COLUMN, or --policy with "
            "--from, --to and --action"
        )
    alpha, known = session.config().canary.alpha, ""
    columns = offpolicy.Rewards(reward, propensity, largest, most_weight)
    if policy:
        chosen = offpolicy.Policies(policy, logged, new, action, given)
        try:
            log, earned = offpolicy.read_policies(file, chosen, columns)
        except UnknownValueError as error:
            raise click.UsageError(in_one_line(str(error))) from error
        logs = {new: log}
        known = f"{new} earned {earned.mean():.5f} of {len(earned):,} answers in this file"
    elif choice:
        logs, without = offpolicy.read_choices(file, choice, columns)
        known = f"{without:,} rows without a choice among several are left out" if without else ""
    else:
        logs = offpolicy.read_targets(file, targets, columns)
    evaluations = {
        name: offpolicy.evaluate(each, alpha=alpha, clip=clip) for name, each in logs.items()
    }
    if as_json:
        print_json(_facts(evaluations, known))
    else:
        _report(evaluations, known)
    is_unknown = any(each.conclusion == "unknown" for each in evaluations.values())
    sys.exit(REFUSED if is_unknown else 0)


def _report(evaluations: "dict[str, Evaluation]", known: str) -> None:
    from reactune.analysis.offpolicy import lines_of

    for name, each in evaluations.items():
        for line in lines_of(name, each):
            click.echo(in_one_line(line))
    if known:
        click.echo(in_one_line(known))
    if len(evaluations) > 1:
        ranked = f"ranked by lower bound: {', '.join(_ranked(evaluations)) or 'none'}"
        click.echo(in_one_line(ranked))


def _facts(evaluations: "dict[str, Evaluation]", known: str) -> dict[str, Any]:
    return {
        "policies": {name: asdict(each) for name, each in evaluations.items()},
        "ranked": _ranked(evaluations),
        "note": known,
    }


def _ranked(evaluations: "dict[str, Evaluation]") -> list[str]:
    """Names of the allowed policies, the highest lower bound first."""
    from reactune.analysis.offpolicy import rank

    names = list(evaluations)
    return [names[n] for n in rank(list(evaluations.values()))]


COMMANDS = (compare, plan, ope)
