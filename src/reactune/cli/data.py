"""Commands on reactions and texts: ingest, explain, deidentify, audit."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reactune.cli.files import RowsFile
from reactune.cli.session import Session, as_json, print_json
from reactune.records import replacing

if TYPE_CHECKING:
    from reactune.config.settings import Config
    from reactune.data.deidentify.file import FoundSpan, Summary
    from reactune.records import Counts

SOME_REJECTED = SOME_LEFT_OUT = 2  # exit codes
BIG_FILE = 2_000_000  # bytes from which starting further processes pays


@click.command
@click.argument("files", nargs=-1, required=True, type=RowsFile())
@click.option(
    "--rejects",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where line and reason of rejected rows go.  [default: rejects.jsonl beside the settings]",
)
@click.pass_obj
def ingest(session: Session, files: tuple[Path, ...], rejects: Path | None) -> None:
    """Read tips and reactions from files.

    JSONL, CSV (separated by comma, semicolon, tab or bar; both also .gz) or Parquet, in UTF-8; - is
    standard input. User ids are hashed as they are read. A known tip_id is updated, so a file may
    be read again. Times have a zone, such as 2026-03-04T10:00:00Z; those of BigQuery, Java, Go,
    browsers and MongoDB, and seconds or parts of one since 1970, are understood, and so is what
    tools write for null (NULL, NaN, NA) where no text is expected. A time more than a day ahead, or
    a reaction before its tip, rejects the row. Exit code 0: all rows were kept; 2: some were
    rejected, the others kept.

    \b
    $ reactune ingest scores.jsonl.gz
    """
    from reactune.data.ingest import ingest as read_into
    from reactune.privacy.hashing import load_hashing_keys
    from reactune.progress import progress_bar
    from reactune.store.database import opened_store
    from reactune.store.labels import label_rule
    from reactune.store.summaries import recount

    config = session.config()
    hashing_keys = load_hashing_keys(config.privacy, os.environ)
    rejects = rejects or config.folder / "rejects.jsonl"
    size, notes = sum(file.stat().st_size for file in files), list[str]()
    with (
        opened_store(config.store_url) as engine,
        progress_bar("ingest", total=size, unit="B", is_kept=True, is_bytes=True) as bar,
    ):
        counts = read_into(
            engine,
            files,
            settings=config.ingest,
            key=hashing_keys.current,
            old_keys=hashing_keys.old,
            rejects=rejects,
            progress=bar.update,
            without_consent=config.labels.without_consent,
            say=notes.append,
        )
        recount(engine, label_rule(config.labels), now=datetime.now(UTC))
    rejected = _report(counts, rejects)
    for note in notes:
        click.echo(note)
    sys.exit(SOME_REJECTED if rejected else 0)


def _report(counts: "Counts", rejects: Path) -> int:
    """Print the counts; the number of rejected rows is returned."""
    from reactune.data.ingest import ERASED, FAULTLESS, SUPERSEDED

    reasons = {reason: n for reason, n in counts.refused.items() if reason not in FAULTLESS}
    rejected = sum(reasons.values())
    click.echo(f"rows: {counts.came_in:,} in, {counts.went_out:,} kept, {rejected:,} rejected")
    if superseded := counts.refused.get(SUPERSEDED, 0):
        click.echo(f"{superseded:,} of them replaced by a later row of the same tip_id")
    if erased := counts.refused.get(ERASED, 0):
        click.echo(f"{erased:,} left out: of erased users")
    for reason, number in reasons.items():
        click.echo(f"  {number:,} {reason}")
    if rejected:
        click.echo(f"line and reason of each: {rejects}")
    return rejected


@click.command
@click.option("--dialect", default="", help="Dialect of SQL.  [default: that of the source]")
@as_json
@click.pass_obj
def explain(session: Session, dialect: str, as_json: bool) -> None:
    """Print the SQL that labels reactions, and what leaves the database.

    It decides which reactions become positives and negatives, and runs inside the database.

    \b
    $ reactune explain --dialect duckdb
    $ reactune explain --json
    """
    from pygments import highlight
    from pygments.formatters import TerminalFormatter
    from pygments.lexers import SqlLexer

    from reactune.data.labels.scores import LABELLED_COLUMNS, label_sql
    from reactune.errors import hide_passwords

    config = session.config()
    url = config.source.url or config.store_url
    sql = label_sql(config.source, config.labels, url=url, dialect=dialect)
    if as_json:
        where = {"url": hide_passwords(url), "table": config.source.table}
        print_json({**where, "columns": LABELLED_COLUMNS, "sql": sql})
        return
    notes = (
        f"What leaves {config.source.table} of {hide_passwords(url)}: "
        f"{len(LABELLED_COLUMNS)} columns of positives and negatives.",
        "Everything else leaves it as counts.",
    )
    text = "\n".join([*(f"-- {note}" for note in notes), f"{sql};"])
    # Colours reach a terminal only; what is copied or piped is plain SQL.
    click.echo(highlight(text, SqlLexer(), TerminalFormatter()), nl=False)


@click.command
@click.argument("file", type=RowsFile())
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    help="A column with texts; may be repeated.  [default: all that hold texts]",
)
@click.option(
    "--spans",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    help="JSONL of the spans that were found, without the texts; - prints them.",
)
@click.option("--with-text", is_flag=True, help="Write the personal data itself into --spans.")
@click.option(
    "--keep-foreign", is_flag=True, help="Keep rows in languages without a configured model."
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes.  [default: one a core for files over 2 MB, else one]",
)
@click.pass_obj
def deidentify(
    session: Session,
    file: Path,
    out: Path | None,
    columns: tuple[str, ...],
    spans: Path | None,
    with_text: bool,
    keep_foreign: bool,
    workers: int | None,
) -> None:
    """Replace personal data in the texts of a file.

    JSONL, CSV (both also .gz) or Parquet, in UTF-8, and - for standard input; FILE and --out have
    the same format. [privacy] kinds and models say what is replaced, found by which models. Looked
    at are texts at any depth, JSON in them, keys, bytes, and numbers such as `phone`; what cannot
    be looked into is an error. Exit code 0: all rows were written; 2: lines that are no rows, or
    rows in other languages, were left out.

    \b
    $ reactune deidentify notes.jsonl --out safe.jsonl --spans -
    """
    from reactune.data.deidentify.file import deidentify_file
    from reactune.progress import progress_bar

    if out is None and spans is None:
        raise click.UsageError("name --out to write the file, or --spans to list what is found")
    _check_outputs(file, out, spans)
    size = file.stat().st_size
    cores = os.cpu_count() or 1
    total = None if file.suffix == ".gz" else size
    with (
        _span_writer(spans, with_text=with_text) as on_span,
        progress_bar("deidentify", total=total, unit="B", is_kept=True, is_bytes=True) as bar,
    ):
        summary = deidentify_file(
            file,
            out,
            privacy=session.config().privacy,
            columns=columns,
            keep_foreign=keep_foreign,
            workers=workers or (cores if size > BIG_FILE else 1),
            on_span=on_span,
            progress=bar.update,
        )
    left_out = _print_summary(summary, keep_foreign=keep_foreign)
    sys.exit(SOME_LEFT_OUT if left_out else 0)


@contextmanager
def _span_writer(
    file: Path | None, *, with_text: bool
) -> "Iterator[Callable[[FoundSpan], object]]":
    if file is None:
        yield lambda span: None
        return

    from reactune.data.deidentify.values import json_text

    def line(span: "FoundSpan") -> str:
        values = asdict(span)
        if not with_text:
            del values["value"]
        return json_text(values)

    if str(file) == "-":
        yield lambda span: click.echo(line(span))
        return
    with replacing(file) as partial, partial.open("w", encoding="utf-8") as lines:
        yield lambda span: lines.write(f"{line(span)}\n")


def _check_outputs(file: Path, out: Path | None, spans: Path | None) -> None:
    """Refuse to write what is read, or two things into one file."""
    from reactune.data.deidentify.file import is_same_file

    written = [
        (option, path)
        for option, path in (("--out", out), ("--spans", spans))
        if path is not None and str(path) != "-"
    ]
    for option, path in written:
        if is_same_file(path, file):
            raise click.UsageError(f"{option} {path} is FILE itself; choose another name")
    if len(written) == 2 and is_same_file(written[0][1], written[1][1]):
        raise click.UsageError(f"--out and --spans are both {out}; choose another name for one")


def _print_summary(summary: "Summary", *, keep_foreign: bool) -> int:
    """Print the counts to standard error, for spans may be on standard output; rows left out."""
    left_out = summary.refused.total() + (0 if keep_foreign else summary.foreign)
    click.echo(
        f"rows: {summary.came_in:,} in, {summary.went_out:,} kept, {left_out:,} left out", err=True
    )
    for reason, number in summary.refused.most_common():
        click.echo(f"  {number:,} left out: {reason}", err=True)
    if summary.foreign:
        does = "kept" if keep_foreign else "left out"
        click.echo(
            f"  {summary.foreign:,} {does}: a language that no model is configured for", err=True
        )
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in summary.replaced.most_common())
    click.echo(f"replaced: {kinds or 'nothing'}", err=True)
    return left_out


@click.command
@click.option(
    "--min-users",
    default=5,
    show_default=True,
    type=click.IntRange(min=2),
    help="Users that share a value, at least, if it is not to be rare.",
)
@as_json
@click.pass_obj
def audit(session: Session, min_users: int, as_json: bool) -> None:
    """Propose an allow-list of context keys from the stored reactions.

    Shows for each key: the share of rows that hold it, its values, how many users share one (the
    median), and the personal data found in it. Values are never shown, and nothing is changed.

    \b
    $ reactune audit
    $ reactune audit --json
    """
    from reactune.data.deidentify.audit import audit as report_on
    from reactune.data.deidentify.audit import proposal, proposed
    from reactune.pii.detectors import open_detector
    from reactune.progress import progress_bar

    config = session.config()
    with (
        progress_bar("audit", total=None, unit="row", is_kept=True) as bar,
        _contexts(config) as contexts,
    ):
        reports = report_on(
            contexts, detect=open_detector(config.privacy), enough=min_users, progress=bar.update
        )
    if as_json:
        settings = proposed(reports, config, enough=min_users)
        print_json({"keys": [asdict(each) for each in reports], "settings": settings})
        return
    if not reports:
        click.echo("no labelled reaction has a context; ingest some first")
        return
    click.echo(f"{'key':28} {'rows':>5} {'values':>8} {'users':>6}  {'advice':9} because")
    for report in reports:
        kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in report.kinds.items())
        click.echo(
            f"{report.key:28} {report.rows:5.0%} {report.values:8,} {report.users_per_value:6g}  "
            f"{report.advice:9} {report.reason}{f'; found: {kinds}' if kinds else ''}"
        )
    click.echo(f"\n{proposal(reports, config, enough=min_users)}")


@contextmanager
def _contexts(config: "Config") -> "Iterator[Iterator[tuple[str, str]]]":
    """Pairs of user_key and context_json of the reactions that training would read."""
    from reactune.data.labels.scores import read_scores
    from reactune.data.labels.sources import open_scores
    from reactune.privacy.hashing import load_hashing_key

    key = load_hashing_key(config.privacy, os.environ)
    with open_scores(config.source, store_url=config.store_url, folder=config.folder) as table:
        batches = read_scores(table, config.labels, source=config.source, key=key)
        yield (
            pair
            for batch in batches
            for pair in zip(
                batch.column("user_key").to_pylist(),
                batch.column("context_json").to_pylist(),
                strict=True,
            )
        )


COMMANDS = (ingest, explain, deidentify, audit)
