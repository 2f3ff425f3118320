"""API keys: made, listed, revoked, and recognised; only a hash of each is kept.

Which request needs which scope is left to `web/access.py`.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

import sqlalchemy as sa

from reactune.errors import DataError
from reactune.store.database import reading, writing
from reactune.store.schema import api_keys

Scope = Literal["app", "operator", "read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
TOKEN = re.compile(r"rt_([0-9a-f]{8})_([0-9a-zA-Z_-]{43})")
NOBODYS = hashlib.sha256(b"nobody's").hexdigest()


@dataclass(frozen=True)
class ApiKey:
    """One key: who has it, and what for. The secret is nowhere."""

    key_id: str
    name: str
    scopes: frozenset[Scope]
    secret_sha256: str
    created_at: datetime
    revoked_at: datetime | None = None


def make_key(engine: sa.Engine, name: str, scopes: Iterable[Scope], *, now: datetime) -> str:
    """A new key, told this once: 256 random bits, of which the database gets the SHA-256.

    Raises:
        DataError: the name is empty, a scope is unknown, or the database does not answer.
    """
    wanted = sorted(set(scopes))
    if not name.strip() or not wanted or not set(wanted) <= set(SCOPES):
        raise DataError(f"a key needs a name and scopes out of {', '.join(SCOPES)}")
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    row = {
        "key_id": key_id,
        "name": name.strip(),
        "scopes": ",".join(wanted),
        "secret_sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "created_at": now,
    }
    with writing(engine) as connection:
        connection.execute(api_keys.insert(), row)
    return f"rt_{key_id}_{secret}"


def revoke_key(engine: sa.Engine, key_id: str, *, now: datetime) -> None:
    """Make a key useless from now on; repeating it changes nothing.

    Raises:
        DataError: there is no such key, or the database does not answer.
    """
    revoked_at = sa.func.coalesce(api_keys.c.revoked_at, sa.bindparam("now", now))
    revoke = api_keys.update().where(api_keys.c.key_id == key_id).values(revoked_at=revoked_at)
    with writing(engine) as connection:
        if connection.execute(revoke).rowcount != 1:
            raise DataError(f"no key {key_id!r}; `reactune keys list` shows all")


def all_keys(engine: sa.Engine) -> tuple[ApiKey, ...]:
    """Every key, oldest first, those revoked too.

    Raises:
        DataError: the database does not answer.
    """
    with reading(engine) as connection:
        rows = connection.execute(sa.select(api_keys).order_by("created_at")).mappings().all()
    return tuple(ApiKey(**{**row, "scopes": frozenset(row["scopes"].split(","))}) for row in rows)


def recognise(token: str, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """The key that a token is, or None; takes as long for a wrong secret as for a right one."""
    parts = TOKEN.fullmatch(token)
    if parts is None:
        return None
    known = keys.get(parts[1])
    digest = hashlib.sha256(parts[2].encode()).hexdigest()
    is_right = hmac.compare_digest(digest, known.secret_sha256 if known else NOBODYS)
    return known if known is not None and is_right and known.revoked_at is None else None
