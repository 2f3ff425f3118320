"""User ids are stored as keyed hashes only; the keys come from the environment.

A user's hashed id is `user_key`. Decisions and tombstones stand under a `mark`, a second keyed hash
that leads to no row. After a change of keys, rows may still be hashed with older ones.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from reactune.config.sections import PrivacyConfig
from reactune.errors import PrivacyError
from reactune.privacy.user_ids import canonical_id, earlier_forms, rare_forms

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
    """One form of a user's id, hashed with one key.

    `mark` identifies the user without leading to their rows.
    """

    key_id: str
    user_key: str
    mark: str


def load_hashing_key(settings: PrivacyConfig, environ: Mapping[str, str]) -> HashingKey:
    """The key from the environment, without white space at its ends.

    Raises:
        PrivacyError: the variable is missing or shorter than 32 characters.
    """
    secret = environ.get(settings.key_env, "").strip()
    if len(secret) < MIN_KEY_CHARS:
        raise PrivacyError(
            f"the environment variable {settings.key_env} {_held(secret)}, {MIN_KEY_CHARS} are "
            "needed to hash user ids, white space at its ends not counted; export the key of the "
            "rows that are there, or make one with `openssl rand -hex 32` and keep it: with "
            "another key the same people are other users"
        )
    return HashingKey(_bytes_of(secret))


def load_hashing_keys(settings: PrivacyConfig, environ: Mapping[str, str]) -> HashingKeys:
    """The current key and the older ones from the environment.

    An earlier version took the white space at the ends of a variable for a part of the key: that
    key counts as an older one.

    Raises:
        PrivacyError: a variable that the settings name is missing or shorter than 32 characters.
    """
    current = load_hashing_key(settings, environ)
    for name in settings.old_key_envs:
        secret = environ.get(name, "").strip()
        if len(secret) < MIN_KEY_CHARS:
            raise PrivacyError(
                f"[privacy] old_key_envs names {name}, which {_held(secret)}, "
                f"{MIN_KEY_CHARS} are needed; give that older key, or remove "
                "the name once `reactune doctor` says that no row is hashed with it"
            )
    _, *old = _given_keys(settings, environ)
    return HashingKeys(current, tuple(old))


def _held(secret: str) -> str:
    return f"holds {len(secret)} characters" if secret else "is empty or not set"


def given_key_ids(settings: PrivacyConfig, environ: Mapping[str, str]) -> frozenset[str]:
    """The ids of the keys that the environment holds; missing ones are skipped."""
    return frozenset(key.key_id for key in _given_keys(settings, environ))


def _given_keys(settings: PrivacyConfig, environ: Mapping[str, str]) -> list[HashingKey]:
    """Each variable's key, trimmed, and as it stands if that differs; short ones are skipped."""
    values = [environ.get(name, "") for name in (settings.key_env, *settings.old_key_envs)]
    secrets = dict.fromkeys(each for value in values for each in (value.strip(), value))
    return [HashingKey(_bytes_of(each)) for each in secrets if len(each.strip()) >= MIN_KEY_CHARS]


def _bytes_of(secret: str) -> bytes:
    """The variable's bytes, whether or not they are UTF-8."""
    return secret.encode(errors="surrogateescape")


def user_key(key: HashingKey, user_id: object) -> str:
    """HMAC-SHA256 of the user's canonical id, 64 hexadecimal digits: one person has one key.

    Raises:
        IdError: there is no id in the value.
    """
    return _hash(key, canonical_id(user_id))


def short_key(user_key: str) -> str:
    """The first 16 digits of a `user_key`: enough to keep users apart, and quicker to hash."""
    return user_key[:SHORT_KEY_DIGITS]


def hashed_ids(hashing_keys: HashingKeys, user_id: object) -> tuple[HashedId, ...]:
    """The user's hashed id under every key, and what earlier versions hashed; today's one first.

    Raises:
        IdError: there is no id in the value.
    """
    return _hashed(hashing_keys, (canonical_id(user_id), *earlier_forms(user_id)))


def rare_hashed_ids(hashing_keys: HashingKeys, user_id: str) -> tuple[HashedId, ...]:
    """Hashes of the rare forms of an id, for what is looked up once and not for every row."""
    return _hashed(hashing_keys, rare_forms(user_id))


def marks_of(hashing_keys: HashingKeys, hashed: str) -> tuple[str, ...]:
    """The marks that a `user_key` may have, where the key that hashed it is not known."""
    return tuple(mark_of(key, hashed) for key in hashing_keys.all)


def mark_of(key: HashingKey, hashed: str) -> str:
    """The mark of a `user_key`: 64 hexadecimal digits, computable only with the key."""
    return hmac.digest(key.secret, f"reactune mark {hashed}".encode(), "sha256").hex()


def _hashed(hashing_keys: HashingKeys, forms: Iterable[str]) -> tuple[HashedId, ...]:
    hashes = [(key, _hash(key, form)) for form in forms for key in hashing_keys.all]
    return tuple(HashedId(key.key_id, hashed, mark_of(key, hashed)) for key, hashed in hashes)


def _hash(key: HashingKey, form: str) -> str:
    return hmac.digest(key.secret, form.encode(), "sha256").hex()
