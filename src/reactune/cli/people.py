"""Commands for what people ask about themselves: erase, consent."""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reactune.cli.session import Session

if TYPE_CHECKING:
    from reactune.config import Config
    from reactune.keyring import Keyring

TRACES_FOUND, NOT_ALL_SEEN = 3, 4

USER_OPTION = click.option(
    "--user",
    "users",
    multiple=True,
    metavar="ID",
    help="The app's id of a user; may be repeated. With - ids are read from standard input, one a"
    " line, so that they stand in no list of processes.",
)


@click.command
@USER_OPTION
@click.option("--reason", help="Why; kept in the journal, so it must not name anybody.")
@click.option("--expired", is_flag=True, help="Remove what is older than [privacy] retention_days.")
@click.option("--verify", is_flag=True, help="Only look whether anything of the users is left.")
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="With --verify: a file or folder that is looked into as well, such as the service's logs.",
)
@click.pass_obj
def erase(
    session: Session,
    users: tuple[str, ...],
    reason: str | None,
    expired: bool,
    verify: bool,
    also: tuple[Path, ...],
) -> None:
    """Forget users everywhere, or what is too old.

    In the database, in every dataset here and at the URL of the runs. Models that learned from
    them are marked in MLflow, and `reactune status` says by when they are to be replaced. Without
    an option, erasures that the service wrote down or that were interrupted are finished; after a
    kill, call it again.

    \b
    With --verify nothing is changed. Exit code 0: nothing was found; 3: something was, and where;
    4: nothing was, but not all could be looked into.

    \b
    $ reactune erase --user u-7 --reason "asked by mail, ticket 4711"
    $ reactune erase --verify --user u-7
    $ reactune erase --expired
    """
    from reactune.keyring import load_keyring

    ids = _ids(users)
    _check(ids, reason, expired=expired, verify=verify, also=also)
    config = session.config()
    keyring = load_keyring(config.privacy, os.environ)
    if verify:
        sys.exit(_verify(config, keyring, ids, also))
    _erase(config, keyring, ids, reason or "", expired=expired)


@click.command
@click.argument("decision", type=click.Choice(["allow", "refuse"]))
@USER_OPTION
@click.pass_obj
def consent(session: Session, decision: str, users: tuple[str, ...]) -> None:
    """Say whether later models may learn from users.

    Who refuses is left out of the next dataset, with all rows; datasets of before stay as they
    are. Who allows it again comes back, but for rows of the time in between.

    \b
    $ reactune consent refuse --user u-7
    """
    from reactune.database import opened_store
    from reactune.keyring import load_keyring
    from reactune.people import allow_training, refuse_training

    ids = _ids(users)
    if not ids:
        raise click.UsageError("name somebody by --user")
    config = session.config()
    keyring = load_keyring(config.privacy, os.environ)
    decide = allow_training if decision == "allow" else refuse_training
    with opened_store(config.store_url) as engine:
        for user_id in ids:
            decide(engine, keyring, user_id, now=datetime.now(UTC))
    click.echo(f"{decision} training: {len(ids):,} users")


def _ids(users: Sequence[str]) -> list[str]:
    named = [user for user in users if user not in ("", "-")]
    if "-" in users:
        named += [line for line in sys.stdin.read().splitlines() if line]
    return named


def _check(
    ids: Sequence[str], reason: str | None, *, expired: bool, verify: bool, also: Sequence[Path]
) -> None:
    if verify and (expired or reason or not ids):
        raise click.UsageError("--verify goes with --user, and with --also, alone")
    if also and not verify:
        raise click.UsageError("--also goes with --verify")
    if expired and (ids or reason):
        raise click.UsageError("--expired goes alone: it is about age, not about somebody")
    if bool(ids) != bool(reason) and not verify:
        raise click.UsageError("--user and --reason go together")
    if any(user_id in (reason or "") for user_id in ids):
        raise click.UsageError("--reason names a user, and it is kept: say it without the id")


def _erase(
    config: "Config", keyring: "Keyring", ids: Sequence[str], reason: str, *, expired: bool
) -> None:
    from reactune.cli.session import require_training

    require_training()
    from reactune import erasing

    now = datetime.now(UTC)
    if ids:
        erasing.ask_for_people(config, keyring, ids, reason=reason, now=now, say=click.echo)
    if expired:
        erasing.ask_for_expired(config, now=now)
    if not erasing.finish(config, keyring, now=now, say=click.echo):
        click.echo("nothing is waiting to be erased")


def _verify(config: "Config", keyring: "Keyring", ids: Sequence[str], also: Sequence[Path]) -> int:
    from reactune.cli.session import require_training

    require_training()
    from reactune.traces import verify

    report = verify(config, keyring, ids, also=also)
    for title, lines in (
        ("looked", report.looked),
        ("elsewhere", report.elsewhere),
        ("unseen", report.unseen),
        ("trace", report.traces),
    ):
        for line in lines:
            click.echo(f"{title:10}{line}")
    click.echo(f"found     {len(report.traces):,} traces" if report.traces else "found     nothing")
    if report.traces:
        return TRACES_FOUND
    return NOT_ALL_SEEN if report.unseen else 0


COMMANDS = (erase, consent)
