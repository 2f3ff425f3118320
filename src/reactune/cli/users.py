"""Commands on users and API keys: erase, consent, keys."""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from reactune.cli.session import Session, as_json, print_json

if TYPE_CHECKING:
    from reactune.config.settings import Config
    from reactune.privacy.hashing import HashingKeys


TRACES_FOUND, NOT_ALL_SEARCHED = 3, 4
NOBODY_KNOWN = 3

USER_OPTION = click.option(
    "--user",
    "users",
    multiple=True,
    metavar="ID",
    help="The app's id of a user; may be repeated. With - ids are read from standard input, one a"
    " line, so that no list of processes shows them.",
)

ALLOW_UNKNOWN_OPTION = click.option(
    "--allow-unknown",
    is_flag=True,
    help="Exit code 0 also where no row of an id is known; it is recorded either way.",
)


@click.command
@USER_OPTION
@ALLOW_UNKNOWN_OPTION
@click.option("--reason", help="Reason, kept in the journal; it must not name a user.")
@click.option("--expired", is_flag=True, help="Erase tips older than [privacy] retention_days.")
@click.option("--verify", is_flag=True, help="Only search for what is left of the users.")
@click.option(
    "--also",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="With --verify: a file or folder to search as well, such as the service's logs.",
)
@as_json
@click.pass_obj
def erase(
    session: Session,
    users: tuple[str, ...],
    allow_unknown: bool,
    reason: str | None,
    expired: bool,
    verify: bool,
    also: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Erase users everywhere, or tips that are too old.

    In the database, in every dataset here and at the URL of the runs. Models that learned from
    them are tagged in MLflow, and `reactune status` reports by when to replace them. Without an
    option, erasures that the service recorded or that were interrupted are finished; after a
    kill, call it again.

    \b
    An erasure of somebody without a row is recorded, holds for rows that come later, and ends with
    exit code 3, as an id may be misspelt.

    \b
    With --verify nothing is changed. Exit code 0: nothing was found; 3: traces were found, listed
    with their places; 4: nothing was found, but not everything could be searched. With --json as
    well, places and traces are lists.

    \b
    $ reactune erase --user u-7 --reason "asked by mail, ticket 4711"
    $ reactune erase --verify --user u-7
    $ reactune erase --expired
    """
    from reactune.privacy.hashing import load_hashing_keys

    ids = _ids(users)
    _check(ids, reason, expired=expired, verify=verify, also=also)
    if as_json and not verify:
        raise click.UsageError("--json goes with --verify")
    config = session.config()
    hashing_keys = load_hashing_keys(config.privacy, os.environ)
    if verify:
        sys.exit(_verify(config, hashing_keys, ids, also, as_json=as_json))
    unknown = _erase(config, hashing_keys, ids, reason or "", expired=expired)
    _end(unknown, len(ids), allow_unknown=allow_unknown)


@click.command
@click.argument("decision", type=click.Choice(["allow", "refuse"]))
@USER_OPTION
@ALLOW_UNKNOWN_OPTION
@click.pass_obj
def consent(session: Session, decision: str, users: tuple[str, ...], allow_unknown: bool) -> None:
    """Record whether later models may learn from users.

    All rows of users who refuse are left out of the next dataset; earlier datasets stay as they
    are. Rows come back when a user allows it again, except those of the time in between. The
    decision of somebody without a row is recorded, and ends with exit code 3.

    \b
    $ reactune consent refuse --user u-7
    """
    from reactune.privacy.consent import allow_training, refuse_training
    from reactune.privacy.hashing import load_hashing_keys
    from reactune.store.database import opened_store

    ids = _ids(users)
    if not ids:
        raise click.UsageError("name a user with --user")
    config = session.config()
    hashing_keys = load_hashing_keys(config.privacy, os.environ)
    decide = allow_training if decision == "allow" else refuse_training
    with opened_store(config.store_url) as engine:
        has_rows = [decide(engine, hashing_keys, user_id, now=datetime.now(UTC)) for user_id in ids]
    click.echo(f"{decision} training: {len(ids):,} users")
    unknown = [] if config.source.url else [n for n, has in enumerate(has_rows, start=1) if not has]
    _end(unknown, len(ids), allow_unknown=allow_unknown)


def _ids(users: Sequence[str]) -> list[str]:
    """Every user that is named, once, here and on standard input."""
    from reactune.privacy.user_ids import canonical_id, ids_in_lines

    named = [user for user in users if user not in ("", "-")]
    if "-" in users:
        named += ids_in_lines(sys.stdin.buffer.read())
    return list({canonical_id(each): each for each in named}.values())


def _end(unknown: Sequence[int], count: int, *, allow_unknown: bool) -> None:
    """Say which ids, counted from 1, have no row; exit code 3 then, unless that is allowed."""
    if not unknown:
        return
    which = f": number {', '.join(map(str, unknown))} of {count:,}" if count > 1 else ""
    click.echo(f"no row of this id is known{which}; it is recorded and holds for rows to come")
    if not allow_unknown:
        sys.exit(NOBODY_KNOWN)


def _check(
    ids: Sequence[str], reason: str | None, *, expired: bool, verify: bool, also: Sequence[Path]
) -> None:
    if verify and (expired or reason or not ids):
        raise click.UsageError("--verify goes with --user, and with --also, alone")
    if also and not verify:
        raise click.UsageError("--also goes with --verify")
    if expired and (ids or reason):
        raise click.UsageError("--expired goes alone: it is about age, not about users")
    if bool(ids) != bool(reason) and not verify:
        raise click.UsageError("--user and --reason go together")
    if any(user_id in (reason or "") for user_id in ids):
        raise click.UsageError("--reason names a user, and it is kept: write it without the id")


def _erase(
    config: "Config", hashing_keys: "HashingKeys", ids: Sequence[str], reason: str, *, expired: bool
) -> list[int]:
    """Erase, and say which of the ids, counted from 1, had no row.

    A table at `[source] url` may have rows of anybody.
    """
    from reactune.cli.session import require_training

    require_training()
    from reactune.erasure import erase as erasures

    now, unknown = datetime.now(UTC), []
    if ids:
        erasure = erasures.request_erasure(
            config, hashing_keys, ids, reason=reason, now=now, say=click.echo
        )
        unknown = [] if config.source.url else list(erasure.numbers["unknown"])
    if expired:
        erasures.request_expiry(config, now=now)
    if not erasures.finish(config, hashing_keys, now=now, say=click.echo):
        click.echo("nothing is waiting to be erased")
    return unknown


def _verify(
    config: "Config",
    hashing_keys: "HashingKeys",
    ids: Sequence[str],
    also: Sequence[Path],
    *,
    as_json: bool,
) -> int:
    from reactune.cli.session import require_training

    require_training()
    from reactune.erasure.verify import verify

    report = verify(config, hashing_keys, ids, also=also)
    found = {
        "searched": report.searched,
        "elsewhere": report.elsewhere,
        "unchecked": report.unchecked,
        "trace": report.traces,
    }
    if as_json:
        print_json({"traces" if title == "trace" else title: each for title, each in found.items()})
    else:
        for title, lines in found.items():
            for line in lines:
                click.echo(f"{title:10}{line}")
        number = f"{len(report.traces):,} traces" if report.traces else "nothing"
        click.echo(f"found     {number}")
    if report.traces:
        return TRACES_FOUND
    return NOT_ALL_SEARCHED if report.unchecked else 0


@click.group
def keys() -> None:
    """Create, list and revoke the API keys of the service.

    \b
    $ reactune keys create "phone app"
    """


@keys.command
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["app", "operator", "read", "content"]),
    default=["app"],
    show_default=True,
    help="Scope of the key; may be repeated.",
)
@click.pass_obj
def create(session: Session, name: str, scopes: tuple[str, ...]) -> None:
    """Create a key and print it once: only its hash is kept.

    app: tips, reactions, routing. read: pages, metrics and what is live. operator: promote, roll
    back and stop, here and on the pages. content: with one of these two, the texts of tips on the
    pages; no other scope includes it.

    \b
    $ reactune keys create "phone app"
    $ reactune keys create prometheus --scope read
    $ reactune keys create "Olga" --scope read --scope operator
    """
    from typing import cast

    from reactune.service.api_keys import Scope, make_key
    from reactune.store.database import opened_store

    wanted = [cast(Scope, scope) for scope in scopes]
    with opened_store(session.config().store_url) as engine:
        click.echo(make_key(engine, name, wanted, now=datetime.now(UTC)))


@keys.command("list")
@as_json
@click.pass_obj
def list_keys(session: Session, as_json: bool) -> None:
    """List all keys: id, scopes, dates of creation and revocation, name.

    \b
    $ reactune keys list
    """
    from reactune.service.api_keys import all_keys
    from reactune.store.database import opened_store

    with opened_store(session.config().store_url) as engine:
        known = all_keys(engine)
    if as_json:
        fields = ("key_id", "name", "created_at", "revoked_at")
        print_json(
            [
                {**{name: getattr(each, name) for name in fields}, "scopes": sorted(each.scopes)}
                for each in known
            ]
        )
        return
    for key in known:
        ended = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "valid"
        scopes = ",".join(sorted(key.scopes))
        click.echo(f"{key.key_id}  {scopes:<17} {key.created_at:%Y-%m-%d}  {ended}  {key.name}")


@keys.command
@click.argument("key_id")
@click.pass_obj
def revoke(session: Session, key_id: str) -> None:
    """Revoke a key, in every worker within two seconds.

    \b
    $ reactune keys revoke 1f2e3d4c
    """
    from reactune.service.api_keys import revoke_key
    from reactune.store.database import opened_store

    with opened_store(session.config().store_url) as engine:
        revoke_key(engine, key_id, now=datetime.now(UTC))
    click.echo(f"revoked {key_id}")


COMMANDS = (erase, consent, keys)
