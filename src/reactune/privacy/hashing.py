"""Keyed fingerprints of texts: enough to find a piece of one again, too little to read it.

Pure functions; whose texts they are made of, and where they are sought, is decided by others.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reactune.config.sections import PrivacyConfig
from reactune.errors import PrivacyError

MIN_KEY_CHARS = 32
SHORT_KEY_DIGITS = 16  # 64 bits: ten million people have two alike with a chance of 3 in a million


@dataclass(frozen=True)
class HashingKey:
    """The secret that turns user ids into `user_key`; its own id may be stored, it may not."""

    secret: bytes = field(repr=False)

    @property
    def key_id(self) -> str:
        """Names the key without revealing it: 8 hexadecimal digits of a keyed hash."""
        return hmac.new(self.secret, b"reactune key id", hashlib.sha256).hexdigest()[:8]


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
            "and keep it: another key makes other users of the same people"
        )
    return HashingKey(secret.encode())


def user_key(key: HashingKey, user_id: str) -> str:
    """HMAC-SHA256 of the user id, 64 hexadecimal digits: equal ids give equal keys."""
    return hmac.digest(key.secret, user_id.encode("utf-8", "surrogatepass"), "sha256").hex()


def short_key(user_key: str) -> str:
    """The first 16 digits of a `user_key`: enough to tell people apart, and a quarter to hash."""
    return user_key[:SHORT_KEY_DIGITS]


@dataclass(frozen=True)
class HashingKeys:
    """The key that new rows are hashed with, and those that stored rows may still be."""

    current: HashingKey
    old: tuple[HashingKey, ...] = ()

    @property
    def all(self) -> tuple[HashingKey, ...]:
        """Every key once, the current one first."""
        return tuple(dict.fromkeys((self.current, *self.old)))

    @property
    def key_ids(self) -> frozenset[str]:
        """The names of all keys."""
        return frozenset(key.key_id for key in self.all)


@dataclass(frozen=True)
class HashedId:
    """One person under one key. `mark` tells that it is them, and leads to none of their rows."""

    key_id: str
    user_key: str
    mark: str


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
                f"characters, {MIN_KEY_CHARS} are needed; give that older key, or take the name "
                "out once `reactune doctor` says that no row is hashed with it"
            )
    return HashingKeys(
        current, tuple(HashingKey(environ[name].encode()) for name in settings.old_key_envs)
    )


def given_key_ids(settings: PrivacyConfig, environ: Mapping[str, str]) -> frozenset[str]:
    """The names of those keys that the environment holds, whichever are missing."""
    secrets = (environ.get(name, "") for name in (settings.key_env, *settings.old_key_envs))
    return frozenset(
        HashingKey(each.encode()).key_id for each in secrets if len(each) >= MIN_KEY_CHARS
    )


def hashed_ids(hashing_keys: HashingKeys, user_id: str) -> tuple[HashedId, ...]:
    """What the person is called under every key, the current one first."""
    return tuple(_alias(key, user_key(key, user_id)) for key in hashing_keys.all)


def marks_of(hashing_keys: HashingKeys, hashed: str) -> tuple[str, ...]:
    """The marks that a `user_key` may have, of which it is not known by which key it was made."""
    return tuple(mark_of(key, hashed) for key in hashing_keys.all)


def mark_of(key: HashingKey, hashed: str) -> str:
    """The mark of a `user_key`: 64 hexadecimal digits that only the key's owner can find again."""
    return hmac.digest(key.secret, f"reactune mark {hashed}".encode(), "sha256").hex()


def _alias(key: HashingKey, hashed: str) -> HashedId:
    return HashedId(key.key_id, hashed, mark_of(key, hashed))


WINDOW_BYTES, SPREAD = 16, 8
FOUND_BYTES = WINDOW_BYTES + SPREAD - 1
"""A piece of a text at least this long is found wherever it stands, as UTF-8."""
CHUNK_BYTES = 2**16  # what the numbers of a chunk take stays in a processor's cache
TAG_BITS, FIRST_BITS = 24, 16

Hashes = NDArray[np.uint64]
Slide = Callable[[Hashes, Hashes], Hashes]


def fingerprints_of(key: HashingKey, text: str) -> frozenset[str]:
    """Fingerprints of some windows of the text; none of one shorter than `FOUND_BYTES`.

    Winnowing (Schleimer, Wilkerson, Aiken, SIGMOD 2003): of each `SPREAD` neighbouring windows the
    one with the least keyed hash is taken, so every piece of `FOUND_BYTES` holds one.
    """
    data = text.encode()
    if len(data) < FOUND_BYTES:
        return frozenset()
    hashes = _rolling(key, data)
    least = _slide(hashes, np.minimum)
    edge = np.zeros(SPREAD - 1, np.uint64)
    # Taken is what is the least of any span that it is in: the greatest of these leasts.
    is_taken = hashes == _slide(np.concatenate([edge, least, edge]), np.maximum)
    return frozenset(_prints(key, data, hashes, np.flatnonzero(is_taken)))


def fingerprint_of(key: HashingKey, value: str) -> str:
    """The fingerprint of a whole value, however short."""
    return f"{0:06x}{_digest(key, b'whole ' + value.encode())}"


def find_fingerprints(key: HashingKey, data: bytes, wanted: Collection[str]) -> set[str]:
    """Which of the wanted fingerprints are of a window of the data."""
    sought = set(wanted)
    tags = np.array(sorted({int(each[:6], 16) for each in sought}), np.uint64)
    begin_so = np.zeros(2**FIRST_BITS, np.bool_)
    begin_so[tags >> np.uint64(TAG_BITS - FIRST_BITS)] = True
    found: set[str] = set()
    for start in range(0, len(data) - WINDOW_BYTES + 1 if sought else 0, CHUNK_BYTES):
        chunk = data[start : start + CHUNK_BYTES + WINDOW_BYTES - 1]
        hashes = _rolling(key, chunk)
        places = np.flatnonzero(begin_so[hashes >> np.uint64(64 - FIRST_BITS)])
        places = places[np.isin(_tags(hashes[places]), tags)]
        _, first = np.unique(hashes[places], return_index=True)
        found |= sought.intersection(_prints(key, chunk, hashes, places[first]))
    return found


def texts_in(context_json: str) -> Iterator[str]:
    """The texts that stand as values in a context; the context itself where it is no JSON."""
    try:
        yield from _leaves(json.loads(context_json))
    except (ValueError, RecursionError):
        yield context_json


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)


def _prints(
    key: HashingKey, data: bytes, hashes: Hashes, places: NDArray[np.int64]
) -> Iterator[str]:
    """Fingerprints of the windows at these places.

    The tag, 24 bits of the keyed hash, stands before the digest: few digests must be made to find
    the few that are wanted.
    """
    for place, tag in zip(places, _tags(hashes[places]), strict=True):
        yield f"{int(tag):06x}{_digest(key, data[place : place + WINDOW_BYTES])}"


def _tags(hashes: Hashes) -> Hashes:
    return hashes >> np.uint64(64 - TAG_BITS)


def _digest(key: HashingKey, value: bytes) -> str:
    return hashlib.blake2b(value, key=_derived(key)[:64], digest_size=16).hexdigest()


def _rolling(key: HashingKey, data: bytes) -> Hashes:
    """A keyed polynomial of every window, modulo 2**64."""
    table, factor = _table(key)
    coded = table[np.frombuffer(data, np.uint8)]
    count = len(data) - WINDOW_BYTES + 1
    hashes = coded[:count].copy()
    for shift in range(1, WINDOW_BYTES):
        hashes *= factor
        hashes += coded[shift : shift + count]
    # The low bits of a polynomial mix badly; the high ones decide which is least.
    return hashes ^ (hashes << np.uint64(29))


def _slide(values: Hashes, choose: Slide) -> Hashes:
    """The least or greatest of each `SPREAD` neighbours, by doubling."""
    width = 1
    while width < SPREAD:
        values = choose(values[:-width], values[width:])
        width *= 2
    return values


@lru_cache(16)
def _table(key: HashingKey) -> tuple[Hashes, np.uint64]:
    words = np.frombuffer(_derived(key)[64:], "<u8").astype(np.uint64)
    return words[:256], words[256] | np.uint64(1)


@lru_cache(16)
def _derived(key: HashingKey) -> bytes:
    return hashlib.shake_256(b"reactune print " + key.secret).digest(64 + 8 * 257)
