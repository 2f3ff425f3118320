"""Commands that weigh without acting: plan a rollout."""

from datetime import UTC, datetime
from pathlib import Path

import click

from reactune.cli.session import Session

PICTURE = click.Path(path_type=Path, dir_okay=False)
NUMBER = click.FloatRange(min=0, min_open=True)
PICTURE_OPTION = click.option(
    "--picture", type=PICTURE, help="Draw it into this file, .svg or .png."
)


@click.command
@click.option("--baseline", type=NUMBER, help="Champion's positives per tip.  [default: recent]")
@click.option("--lift", type=NUMBER, default=0.03, show_default=True, help="Difference to find.")
@click.option("--power", type=NUMBER, default=0.8, show_default=True, help="Chance to find it.")
@click.option("--units-per-day", type=NUMBER, help="Units a day.  [default: recent]")
@click.option("--tips-per-unit", type=NUMBER, help="Tips a unit gets.  [default: recent]")
@PICTURE_OPTION
@click.pass_obj
def plan(
    session: Session,
    baseline: float | None,
    lift: float,
    power: float,
    units_per_day: float | None,
    tips_per_unit: float | None,
    picture: Path | None,
) -> None:
    """Say how many tips and days a rollout takes.

    For shares of 5 to 50 % and for the ramp of the settings, at the traffic of the last two weeks
    in the database, where there is one.

    \b
    $ reactune plan --baseline 0.2 --lift 0.03
    """
    from reactune import forecast, pictures

    if picture is not None:
        pictures.check_ending(picture)
    config = session.config()
    traffic = forecast.assumed_traffic(
        forecast.recent_traffic(config, now=datetime.now(UTC)),
        baseline=baseline,
        units_per_day=units_per_day,
        tips_per_unit=tips_per_unit,
    )
    options = forecast.plan_options(config.canary, traffic, lift, power=power)
    for line in forecast.plan_lines(options, traffic, lift, settings=config.canary):
        click.echo(line)
    if picture is not None:
        pictures.save_plans(picture, forecast.axis_of(options), forecast.bars_of(options))


COMMANDS = (plan,)
