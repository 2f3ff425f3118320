"""Keyed hashes for people: the key, and what it makes of a user id.

Which rows they are applied to is decided by others; personal data in texts is found in `detect/`.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from reactune.config import PrivacyConfig
from reactune.errors import PrivacyError

MIN_KEY_CHARS = 32
SHORT_KEY_DIGITS = 16  # 64 bits: ten million people have two alike with a chance of 3 in a million


@dataclass(frozen=True)
class Key:
    """The secret that turns user ids into `user_key`; its own id may be stored, it may not."""

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Names the key without revealing it: 8 hexadecimal digits of a keyed hash."""
        return hmac.new(self.secret, b"reactune key id", hashlib.sha256).hexdigest()[:8]


def load_key(settings: PrivacyConfig, environ: Mapping[str, str]) -> Key:
    """The key from the environment.

    Raises:
        PrivacyError: the variable is missing or shorter than 32 characters.
    """
    secret = environ.get(settings.key_env, "")
    if len(secret) < MIN_KEY_CHARS:
        raise PrivacyError(
            f"the environment variable {settings.key_env} holds {len(secret)} characters, "
            f"{MIN_KEY_CHARS} are needed to hash user ids; make one with `openssl rand -hex 32` "
            "and keep it: another key makes other users of the same people"
        )
    return Key(secret.encode())


def user_key(key: Key, user_id: str) -> str:
    """HMAC-SHA256 of the user id, 64 hexadecimal digits: equal ids give equal keys."""
    return hmac.digest(key.secret, user_id.encode("utf-8", "surrogatepass"), "sha256").hex()


def short_key(user_key: str) -> str:
    """The first 16 digits of a `user_key`: enough to tell people apart, and a quarter to hash."""
    return user_key[:SHORT_KEY_DIGITS]
