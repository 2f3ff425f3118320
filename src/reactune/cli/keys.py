"""Commands about API keys: keys create, keys list, keys revoke."""

from datetime import UTC, datetime

import click

from reactune.cli.session import Session


@click.group
def keys() -> None:
    """Make, list and revoke the keys that apps and people call the service with.

    \b
    $ reactune keys create "phone app"
    """


@keys.command
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["app", "operator", "read"]),
    default=["app"],
    show_default=True,
    help="What the key may do; may be repeated.",
)
@click.pass_obj
def create(session: Session, name: str, scopes: tuple[str, ...]) -> None:
    """Make a key and print it: this once, for only its hash is kept.

    app: tips, reactions, routing. operator: stop a rollout. read: metrics and what is live.

    \b
    $ reactune keys create "phone app"
    $ reactune keys create prometheus --scope read
    """
    from typing import cast

    from reactune.keys import Scope, make_key
    from reactune.store import opened_store

    wanted = [cast(Scope, scope) for scope in scopes]
    with opened_store(session.config().store_url) as engine:
        click.echo(make_key(engine, name, wanted, now=datetime.now(UTC)))


@keys.command("list")
@click.pass_obj
def list_keys(session: Session) -> None:
    """Show all keys: id, scopes, when made and revoked, name.

    \b
    $ reactune keys list
    """
    from reactune.keys import all_keys
    from reactune.store import opened_store

    with opened_store(session.config().store_url) as engine:
        for key in all_keys(engine):
            ended = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "valid"
            scopes = ",".join(sorted(key.scopes))
            click.echo(f"{key.key_id}  {scopes:<17} {key.created_at:%Y-%m-%d}  {ended}  {key.name}")


@keys.command
@click.argument("key_id")
@click.pass_obj
def revoke(session: Session, key_id: str) -> None:
    """Make a key useless, in every worker within a second or two.

    \b
    $ reactune keys revoke 1f2e3d4c
    """
    from reactune.keys import revoke_key
    from reactune.store import opened_store

    with opened_store(session.config().store_url) as engine:
        revoke_key(engine, key_id, now=datetime.now(UTC))
    click.echo(f"revoked {key_id}")


COMMANDS = (keys,)
