"""API keys, with which apps call the service: the database holds only a hash of each."""

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

Scope = Literal["app", "operator", "read", "content"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
TOKEN = re.compile(r"rt_([0-9a-f]{8})_([0-9a-zA-Z_-]{43})")
UNKNOWN_DIGEST = hashlib.sha256(b"no key").hexdigest()


@dataclass(frozen=True)
class ApiKey:
    """One key, without its secret: its name, and what it allows."""

    key_id: str
    name: str
    scopes: frozenset[Scope]
    secret_sha256: str
    created_at: datetime
    revoked_at: datetime | None = None


def make_key(engine: sa.Engine, name: str, scopes: Iterable[Scope], *, now: datetime) -> str:
    """Create a key of 256 random bits and return it; the database stores its SHA-256.

    Raises:
        DataError: the name is empty, a scope is unknown, or the database does not answer.
    """
    scopes = sorted(set(scopes))
    if not name.strip() or not scopes or not set(scopes) <= set(SCOPES):
        raise DataError(
            f"name {name!r}, scopes {list(scopes)}: give a name, and scopes out of "
            f"{', '.join(SCOPES)}"
        )
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    row = {
        "key_id": key_id,
        "name": name.strip(),
        "scopes": ",".join(scopes),
        "secret_sha256": hashlib.sha256(secret.encode()).hexdigest(),
        "created_at": now,
    }
    with writing(engine) as connection:
        connection.execute(api_keys.insert(), row)
    return f"rt_{key_id}_{secret}"


def revoke_key(engine: sa.Engine, key_id: str, *, now: datetime) -> None:
    """Refuse a key from now on; repeating it changes nothing.

    Raises:
        DataError: there is no such key, or the database does not answer.
    """
    revoked_at = sa.func.coalesce(api_keys.c.revoked_at, sa.bindparam("now", now))
    revoke = api_keys.update().where(api_keys.c.key_id == key_id).values(revoked_at=revoked_at)
    with writing(engine) as connection:
        if connection.execute(revoke).rowcount != 1:
            raise DataError(f"no key {key_id!r}; `reactune keys list` shows all")


def all_keys(engine: sa.Engine) -> tuple[ApiKey, ...]:
    """Every key, revoked ones included, oldest first.

    Raises:
        DataError: the database does not answer.
    """
    with reading(engine) as connection:
        rows = connection.execute(sa.select(api_keys).order_by("created_at")).mappings().all()
    return tuple(ApiKey(**{**row, "scopes": frozenset(row["scopes"].split(","))}) for row in rows)


def recognise(token: str, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """The valid key of a token, or None; takes as long for a wrong secret as for a right one."""
    parts = TOKEN.fullmatch(token)
    if parts is None:
        return None
    key = keys.get(parts[1])
    digest = hashlib.sha256(parts[2].encode()).hexdigest()
    is_equal = hmac.compare_digest(digest, key.secret_sha256 if key else UNKNOWN_DIGEST)
    return key if key is not None and is_equal and key.revoked_at is None else None
