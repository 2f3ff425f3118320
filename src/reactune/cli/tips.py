"""Commands about tips and their reactions: ingest, explain."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reactune.cli.session import Session

if TYPE_CHECKING:
    from reactune.records import Counts

SOME_REJECTED = 2


@click.command
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--rejects",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where line and reason of rejected rows go.  [default: rejects.jsonl beside the settings]",
)
@click.pass_obj
def ingest(session: Session, files: tuple[Path, ...], rejects: Path | None) -> None:
    """Read tips and reactions from files.

    JSONL (also .gz), CSV or Parquet. User ids are hashed at the door. A tip_id that is known is
    updated, so a file may be read again. Exit code 0: all rows were kept; 2: some were
    rejected, the others are kept.

    \b
    $ reactune ingest scores.jsonl.gz
    """
    from tqdm import tqdm

    from reactune.data.ingest import ingest as read_into
    from reactune.database import opened_store
    from reactune.keyring import load_keyring

    config = session.config()
    keyring = load_keyring(config.privacy, os.environ)
    rejects = rejects or config.folder / "rejects.jsonl"
    size = sum(file.stat().st_size for file in files)
    with (
        opened_store(config.store_url) as engine,
        tqdm(total=size, unit="B", unit_scale=True, desc="ingest", disable=None) as bar,
    ):
        counts = read_into(
            engine,
            files,
            settings=config.ingest,
            key=keyring.current,
            old_keys=keyring.old,
            rejects=rejects,
            progress=bar.update,
        )
    rejected = _tell(counts, rejects)
    sys.exit(SOME_REJECTED if rejected else 0)


def _tell(counts: "Counts", rejects: Path) -> int:
    """Print what became of the rows; the number of rejected ones is returned."""
    from reactune.data.ingest import ERASED, FAULTLESS, SUPERSEDED

    reasons = {reason: n for reason, n in counts.refused.items() if reason not in FAULTLESS}
    rejected = sum(reasons.values())
    click.echo(f"rows: {counts.came_in:,} in, {counts.went_out:,} kept, {rejected:,} rejected")
    if superseded := counts.refused.get(SUPERSEDED, 0):
        click.echo(f"{superseded:,} of them replaced by a later row of the same tip_id")
    if erased := counts.refused.get(ERASED, 0):
        click.echo(f"{erased:,} left out: of people who were erased")
    for reason, number in reasons.items():
        click.echo(f"  {number:,} {reason}")
    if rejected:
        click.echo(f"line and reason of each: {rejects}")
    return rejected


@click.command
@click.option("--dialect", default="", help="Dialect of SQL.  [default: that of the source]")
@click.pass_obj
def explain(session: Session, dialect: str) -> None:
    """Print the SQL that labels reactions, and say what leaves the database.

    It decides which reactions are evidence, and of what. It runs where the data lives.

    \b
    $ reactune explain --dialect duckdb
    """
    from pygments import highlight
    from pygments.formatters import TerminalFormatter
    from pygments.lexers import SqlLexer

    from reactune.config import hide_passwords
    from reactune.data.scores import LABELLED, label_sql

    config = session.config()
    url = config.source.url or config.store_url
    sql = label_sql(config.source, config.labels, url=url, dialect=dialect)
    notes = (
        f"What leaves {config.source.table} of {hide_passwords(url)}: {len(LABELLED)} columns of "
        "positives and negatives.",
        "Everything else leaves it as counts.",
    )
    text = "\n".join([*(f"-- {note}" for note in notes), f"{sql};"])
    # Colours reach a terminal only; what is copied or piped is plain SQL.
    click.echo(highlight(text, SqlLexer(), TerminalFormatter()), nl=False)


COMMANDS = (ingest, explain)
