"""Finding a person in bytes: their id, what it is hashed to, pieces of texts that went.

Reads files of any kind; which files there are, and what follows, is `traces.py`'s.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reactune.prints import find_prints, print_of
from reactune.privacy import Key, short_key

ID, HASH, TEXT, TIP = "the id", "a hash of the id", "text that was erased", "a tip that was erased"
CHUNK_BYTES, OVERLAP = 2**23, 2**12
MIN_BINARY_BYTES = 8  # a shorter id stands in any large binary file by chance
WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".arrow")
"""Files of numbers: no text stands in them, so only ids are sought there."""


@dataclass(frozen=True)
class Found:
    """What was found in one place; which fingerprints, if any."""

    kinds: frozenset[str] = frozenset()
    prints: frozenset[str] = frozenset()

    def __or__(self, other: "Found") -> "Found":
        return Found(self.kinds | other.kinds, self.prints | other.prints)


@dataclass(frozen=True)
class Sought:
    """What must be found nowhere any more."""

    user_ids: tuple[str, ...] = field(repr=False)
    user_keys: frozenset[str] = field(repr=False)
    prints: frozenset[str] = field(repr=False)
    keys: tuple[Key, ...]

    @cached_property
    def spellings(self) -> tuple[bytes, ...]:
        """The ids as they stand in texts, in JSON and in URLs."""
        ways = (
            way
            for user_id in self.user_ids
            for way in (user_id, json.dumps(user_id)[1:-1], quote(user_id), quote(user_id, safe=""))
        )
        return tuple(dict.fromkeys(way.encode("utf-8", "replace") for way in ways))

    @cached_property
    def words(self) -> re.Pattern[bytes]:
        """Any of the spellings, not as a part of a longer word."""
        any_of = b"|".join(re.escape(each) for each in self.spellings)
        return re.compile(rb"(?<![A-Za-z0-9])(?:" + any_of + rb")(?![A-Za-z0-9])")


def find_in_bytes(sought: Sought, data: bytes) -> Found:
    """What of it stands in these bytes, which may be a text or anything else."""
    return find_ids(sought, data) | find_texts(sought, data)


def find_ids(sought: Sought, data: bytes) -> Found:
    """The ids and their hashes, whole or short; a short id only as a word of a text."""
    kinds = set()
    if b"\0" in data:
        long_ones = (each for each in sought.spellings if len(each) >= MIN_BINARY_BYTES)
        if any(each in data for each in long_ones):
            kinds.add(ID)
    elif sought.words.search(data):
        kinds.add(ID)
    if any(short_key(each).encode() in data for each in sought.user_keys):
        kinds.add(HASH)
    return Found(frozenset(kinds))


def find_texts(sought: Sought, data: bytes) -> Found:
    """Pieces of texts that were erased."""
    found = frozenset(p for key in sought.keys for p in find_prints(key, data, sought.prints))
    return Found(frozenset({TEXT} if found else ()), found)


def find_tips(sought: Sought, tip_ids: Iterable[str]) -> Found:
    """Tips that were erased, by their whole ids."""
    if not sought.prints:
        return Found()
    found = {print_of(key, tip_id) for tip_id in tip_ids for key in sought.keys} & sought.prints
    return Found(frozenset({TIP} if found else ()))


def find_in_rows(sought: Sought, rows: Iterable[Mapping[str, Any]]) -> tuple[Found, Found]:
    """What of it stands in rows, and which of the fingerprints others' rows have as well.

    A row says whose it is in `user_key`; one without belongs to nobody in particular. What two
    people were told alike is no trace of one of them.
    """
    texts: tuple[list[str], list[str]] = [], []
    tips = []
    for row in rows:
        is_others = (row.get("user_key") or "") not in sought.user_keys | {""}
        texts[is_others].extend(str(cell) for cell in row.values() if isinstance(cell, str))
        tips += [row["tip_id"]] if row.get("tip_id") else []
    own, others = ("\n".join(part).encode("utf-8", "replace") for part in texts)
    found = find_in_bytes(sought, own) | find_ids(sought, others) | find_tips(sought, tips)
    return found, find_texts(sought, others)


def find_in_file(sought: Sought, file: Path) -> tuple[Found, Found]:
    """As `find_in_rows`, of a file of any kind.

    Raises:
        OSError, ValueError: it cannot be read, or is not what its name says.
    """
    if file.suffix == ".parquet":
        return _find_in_parquet(sought, file)
    find = find_ids if file.suffix in WEIGHTS else find_in_bytes
    found = Found()
    for piece in _pieces(file):
        found |= find(sought, piece)
    return found, Found()


def _pieces(file: Path) -> Iterator[bytes]:
    """The content, unpacked, in pieces that overlap."""
    unpack = gzip.open if file.suffix == ".gz" else open
    tail = b""
    try:
        with unpack(file, "rb") as content:
            while piece := content.read(CHUNK_BYTES):
                yield tail + piece
                tail = piece[-OVERLAP:]
    except (EOFError, zlib.error) as error:
        raise ValueError("it is broken off") from error


def _find_in_parquet(sought: Sought, file: Path) -> tuple[Found, Found]:
    import pyarrow.parquet as pq

    found, shared = Found(), Found()
    decode = _decoder(file)
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches():
            here, others = find_in_rows(sought, (decode(row) for row in batch.to_pylist()))
            found, shared = found | here, shared | others
    return found, shared


def _decoder(file: Path) -> Any:
    """Rows with token ids as the texts they stand for; other rows as they are."""
    job = file.with_name("job.json")
    if not job.is_file():
        return lambda row: row
    from tokenizers import Tokenizer

    folder = json.loads(job.read_text(encoding="utf-8")).get("base_folder", "")
    words = Path(folder) / "tokenizer.json"
    if not words.is_file():
        raise FileNotFoundError(f"{words}, which says what the token ids in {file} mean")
    tokenizer = Tokenizer.from_file(str(words))

    def decode(row: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: tokenizer.decode(cell) if isinstance(cell, list) else cell
            for name, cell in row.items()
        }

    return decode
