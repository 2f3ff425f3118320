"""Commands that stay up or show the whole thing: serve, demo."""

from pathlib import Path

import click

from reactune.cli.session import Session


@click.command
@click.pass_obj
def serve(session: Session) -> None:
    """Answer requests for tips and take reactions, until stopped.

    \b
    $ reactune serve
    $ reactune --set serve.port=9000 serve
    """
    from reactune.web.listening import serve_all

    serve_all(session.config())


@click.command
@click.option("--seed", type=int, default=1, show_default=True, help="Another one, other numbers.")
@click.option(
    "--cycles",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Times round the loop; each trains on what the one before earned. With 0, people only"
    " react, until there is enough to learn from.",
)
@click.option(
    "--tastes",
    default="default",
    show_default=True,
    help="What the audience likes; with none, reactions are coin flips.",
)
@click.option("--audience", metavar="MODULE:CLASS", help="Another audience than the built-in one.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Where the demo keeps everything; made if it is not there.",
)
def demo(seed: int, cycles: int, tastes: str, audience: str | None, folder: Path) -> None:
    """Show the whole loop on an audience with hidden tastes.

    Ends with a report as a page with pictures. Not scripted: another seed gives other numbers.

    \b
    $ reactune demo
    $ reactune demo --seed 2 --cycles 3
    """
    from reactune.demo.story import play_history, run_demo

    if cycles == 0:
        play_history(folder, seed=seed, tastes=tastes, audience=audience, say=click.echo)
        return
    run_demo(
        folder,
        seed=seed,
        cycles=cycles,
        tastes=tastes,
        audience=audience,
        say=click.echo,
    )


COMMANDS = (serve, demo)
