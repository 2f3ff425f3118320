"""User ids are stored as keyed hashes only; the keys come from the environment.

A user's hashed id is `user_key`. Decisions and tombstones stand under a `mark`, a second keyed hash
that leads to no row. After a change of keys, rows may still be hashed with older ones.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from reactune.config.sections import PrivacyConfig
from reactune.errors import PrivacyError

MIN_KEY_CHARS = 32
SHORT_KEY_DIGITS = 16  # 64 bits: in ten million users, two alike with a chance of 3 in a million


@dataclass(frozen=True)
class HashingKey:
    """The secret that hashes user ids into `user_key`. Its `key_id` is stored, it never is."""

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Names the key without revealing it: 8 hexadecimal digits of an HMAC."""
        return hmac.new(self.secret, b"reactune key id", hashlib.sha256).hexdigest()[:8]


@dataclass(frozen=True)
class HashingKeys:
    """The key that hashes new rows, and the older ones of rows stored before."""

    current: HashingKey
    old: tuple[HashingKey, ...] = ()

    @property
    def all(self) -> tuple[HashingKey, ...]:
        """Every key once, the current one first."""
        return tuple(dict.fromkeys((self.current, *self.old)))

    @property
    def key_ids(self) -> frozenset[str]:
        """The ids of all keys."""
        return frozenset(key.key_id for key in self.all)


@dataclass(frozen=True)
class HashedId:
    """A user's id hashed with one key. `mark` identifies the user without leading to their rows."""

    key_id: str
    user_key: str
    mark: str


def load_hashing_key(settings: PrivacyConfig, environ: Mapping[str, str]) -> HashingKey:
    """The key from the environment.

    Raises:
        PrivacyError: the variable is missing or shorter than 32 characters.
    """
    secret = environ.get(settings.key_env, "")
    if len(secret) < MIN_KEY_CHARS:
        raise PrivacyError(
            f"the environment variable {settings.key_env} holds {len(secret)} characters, "
            f"{MIN_KEY_CHARS} are needed to hash user ids; make one with `openssl rand -hex 32` "
            "and keep it: with another key the same people are other users"
        )
    return HashingKey(secret.encode())


def load_hashing_keys(settings: PrivacyConfig, environ: Mapping[str, str]) -> HashingKeys:
    """The current key and the older ones from the environment.

    Raises:
        PrivacyError: a variable that the settings name is missing or shorter than 32 characters.
    """
    current = load_hashing_key(settings, environ)
    for name in settings.old_key_envs:
        if len(environ.get(name, "")) < MIN_KEY_CHARS:
            raise PrivacyError(
                f"[privacy] old_key_envs names {name}, which holds {len(environ.get(name, ''))} "
                f"characters, {MIN_KEY_CHARS} are needed; give that older key, or remove "
                "the name once `reactune doctor` says that no row is hashed with it"
            )
    return HashingKeys(
        current, tuple(HashingKey(environ[name].encode()) for name in settings.old_key_envs)
    )


def given_key_ids(settings: PrivacyConfig, environ: Mapping[str, str]) -> frozenset[str]:
    """The ids of the keys that the environment holds; missing ones are skipped."""
    secrets = (environ.get(name, "") for name in (settings.key_env, *settings.old_key_envs))
    return frozenset(
        HashingKey(each.encode()).key_id for each in secrets if len(each) >= MIN_KEY_CHARS
    )


def user_key(key: HashingKey, user_id: str) -> str:
    """HMAC-SHA256 of the user id, 64 hexadecimal digits: equal ids have equal keys."""
    return hmac.digest(key.secret, user_id.encode("utf-8", "surrogatepass"), "sha256").hex()


def short_key(user_key: str) -> str:
    """The first 16 digits of a `user_key`: enough to keep users apart, and quicker to hash."""
    return user_key[:SHORT_KEY_DIGITS]


def hashed_ids(hashing_keys: HashingKeys, user_id: str) -> tuple[HashedId, ...]:
    """The user's hashed id under every key, the current one first."""
    hashes = ((key, user_key(key, user_id)) for key in hashing_keys.all)
    return tuple(HashedId(key.key_id, hashed, mark_of(key, hashed)) for key, hashed in hashes)


def marks_of(hashing_keys: HashingKeys, hashed: str) -> tuple[str, ...]:
    """The marks that a `user_key` may have, where the key that hashed it is not known."""
    return tuple(mark_of(key, hashed) for key in hashing_keys.all)


def mark_of(key: HashingKey, hashed: str) -> str:
    """The mark of a `user_key`: 64 hexadecimal digits, computable only with the key."""
    return hmac.digest(key.secret, f"reactune mark {hashed}".encode(), "sha256").hex()
