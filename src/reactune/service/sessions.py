"""Logins to the pages, and a row for each action there; the database holds hashes of tokens only.

A session ends after `LASTS`, at a log-out, and when its key is revoked.
"""

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta

import sqlalchemy as sa

from reactune.store.database import reading, writing
from reactune.store.schema import page_actions, page_sessions

LASTS = timedelta(hours=12)


def open_session(engine: sa.Engine, key_id: str, *, now: datetime) -> str:
    """Begin a session of a key; its token of 256 random bits, which is stored nowhere.

    Sessions that have ended are removed.

    Raises:
        AwayError: the database does not answer.
    """
    token, row = secrets.token_urlsafe(32), page_sessions.c
    values = {"token_sha256": _digest(token), "key_id": key_id, "expires_at": now + LASTS}
    with writing(engine) as connection:
        connection.execute(page_sessions.delete().where(row.expires_at <= now))
        connection.execute(page_sessions.insert(), values)
    return token


def key_of_session(engine: sa.Engine, token: str, *, now: datetime) -> str | None:
    """The id of the key whose session this is, or None where it is none, or has ended.

    Raises:
        AwayError: the database does not answer.
    """
    if not token:
        return None
    row = page_sessions.c
    query = sa.select(row.key_id).where(row.token_sha256 == _digest(token), row.expires_at > now)
    with reading(engine) as connection:
        return connection.execute(query).scalar()


def close_session(engine: sa.Engine, token: str) -> None:
    """End a session; repeating it changes nothing."""
    with writing(engine) as connection:
        of_it = page_sessions.c.token_sha256 == _digest(token)
        connection.execute(page_sessions.delete().where(of_it))


def form_token(token: str) -> str:
    """What every form of a session must carry; other sites cannot know it (CSRF)."""
    return hmac.digest(token.encode(), b"reactune form", "sha256").hex()


def is_form_token(text: str, token: str) -> bool:
    """Whether a form carries the token of this session; as long for a wrong one as for it."""
    return hmac.compare_digest(text.encode(), form_token(token).encode())


def record_action(
    engine: sa.Engine,
    key_id: str,
    action: str,
    *,
    now: datetime,
    subject: str = "",
    reason: str = "",
    outcome: str = "done",
) -> None:
    """Record what a key did on the pages; never a user's id."""
    row = {
        "at": now,
        "key_id": key_id,
        "action": action,
        "subject": subject,
        "reason": reason,
        "outcome": outcome,
    }
    with writing(engine) as connection:
        connection.execute(page_actions.insert(), row)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
