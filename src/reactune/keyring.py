"""The keys that people were and are hashed with, and what one person is called under each.

What a single key does to an id is `privacy.py`'s; who is remembered by it is `people.py`'s.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from reactune.config import PrivacyConfig
from reactune.errors import PrivacyError
from reactune.privacy import MIN_KEY_CHARS, Key, load_key, user_key


@dataclass(frozen=True)
class Keyring:
    """The key that new rows are hashed with, and those that stored rows may still be."""

    current: Key
    old: tuple[Key, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every key once, the current one first."""
        return tuple(dict.fromkeys((self.current, *self.old)))

    @property
    def key_ids(self) -> frozenset[str]:
        """The names of all keys."""
        return frozenset(key.key_id for key in self.keys)


@dataclass(frozen=True)
class Alias:
    """One person under one key. `mark` tells that it is them, and leads to none of their rows."""

    key_id: str
    user_key: str
    mark: str


def load_keyring(settings: PrivacyConfig, environ: Mapping[str, str]) -> Keyring:
    """The current key and the older ones from the environment.

    Raises:
        PrivacyError: a variable that the settings name is missing or shorter than 32 characters.
    """
    current = load_key(settings, environ)
    for name in settings.old_key_envs:
        if len(environ.get(name, "")) < MIN_KEY_CHARS:
            raise PrivacyError(
                f"[privacy] old_key_envs names {name}, which holds {len(environ.get(name, ''))} "
                f"characters, {MIN_KEY_CHARS} are needed; give that older key, or take the name "
                "out once `reactune doctor` says that no row is hashed with it"
            )
    return Keyring(current, tuple(Key(environ[name].encode()) for name in settings.old_key_envs))


def given_key_ids(settings: PrivacyConfig, environ: Mapping[str, str]) -> frozenset[str]:
    """The names of those keys that the environment holds, whichever are missing."""
    secrets = (environ.get(name, "") for name in (settings.key_env, *settings.old_key_envs))
    return frozenset(Key(each.encode()).key_id for each in secrets if len(each) >= MIN_KEY_CHARS)


def aliases(keyring: Keyring, user_id: str) -> tuple[Alias, ...]:
    """What the person is called under every key, the current one first."""
    return tuple(_alias(key, user_key(key, user_id)) for key in keyring.keys)


def marks_of(keyring: Keyring, hashed: str) -> tuple[str, ...]:
    """The marks that a `user_key` may have, of which it is not known by which key it was made."""
    return tuple(mark_of(key, hashed) for key in keyring.keys)


def mark_of(key: Key, hashed: str) -> str:
    """The mark of a `user_key`: 64 hexadecimal digits that only the key's owner can find again."""
    return hmac.digest(key.secret, f"reactune mark {hashed}".encode(), "sha256").hex()


def _alias(key: Key, hashed: str) -> Alias:
    return Alias(key.key_id, hashed, mark_of(key, hashed))
