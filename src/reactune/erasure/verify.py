"""`reactune erase --verify`: whether anything of a person is left anywhere that is ours.

Reads only. What is looked for, and how, is `search.py`'s.
"""

import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from platformdirs import user_cache_dir

from reactune import deployment
from reactune.config.settings import Config
from reactune.data.labelled import PREFIX
from reactune.erasure import requests
from reactune.errors import hide_passwords
from reactune.privacy.consent import chunks, key_ids
from reactune.privacy.hashing import (
    HashingKey,
    HashingKeys,
    find_fingerprints,
    fingerprint_of,
    hashed_ids,
    short_key,
)
from reactune.release import registry
from reactune.runs.remote import RunRoot, reach, run_root
from reactune.store.database import reading
from reactune.store.schema import erased_prints, metadata

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
    keys: tuple[HashingKey, ...]

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
    found = frozenset(p for key in sought.keys for p in find_fingerprints(key, data, sought.prints))
    return Found(frozenset({TEXT} if found else ()), found)


def find_tips(sought: Sought, tip_ids: Iterable[str]) -> Found:
    """Tips that were erased, by their whole ids."""
    if not sought.prints:
        return Found()
    found = {
        fingerprint_of(key, tip_id) for tip_id in tip_ids for key in sought.keys
    } & sought.prints
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


ROWS_AT_ONCE = 1_000
ELSEWHERE = (
    "backups, and blocks of deleted files on the disk",
    "the model server's own copies of the weights (Ollama)",
    "copies on other workers: they go when one calls reactune there next, and may be looked for by "
    "--verify there",
    'what Ray wrote to disk on the nodes of a cluster ([data] engine = "ray")',
    "what is the app's own: files that were ingested, the table of [source] url, outboxes of the "
    "Python client, logs; name files by --also",
)
POSTGRES = (
    "free room in PostgreSQL's pages, its WAL and its replicas: VACUUM made the rows unreadable to "
    "SQL, VACUUM FULL writes the files anew"
)


@dataclass
class Report:
    """Where was looked, what was found, and what could not be looked into."""

    looked: list[str] = field(default_factory=list)
    found: list[tuple[str, Found]] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    """Fingerprints that others' rows have as well."""
    unseen: list[str] = field(default_factory=list)
    """What is ours and could not be looked into."""
    elsewhere: tuple[str, ...] = ELSEWHERE

    def add(self, place: str, found: Found, shared: Found) -> None:
        """What one place holds."""
        self.shared |= shared.prints
        if found.kinds:
            self.found.append((place, found))

    @property
    def traces(self) -> list[str]:
        """Each place with something of the person in it, and of what kind that is."""
        lines = []
        for place, found in self.found:
            is_common = found.prints <= self.shared
            kinds = found.kinds - {TEXT} if is_common else found.kinds
            if kinds:
                lines.append(f"{place}: {', '.join(sorted(kinds))}")
        return lines


def verify(
    config: Config, hashing_keys: HashingKeys, user_ids: Sequence[str], *, also: Sequence[Path] = ()
) -> Report:
    """Look for people in every table, file and record of the registry that is ours, and in `also`.

    Raises:
        DataError: the database or the place of the runs does not answer.
        ReleaseError: MLflow is away.
    """
    report = Report()
    with deployment.database(config) as engine:
        sought = _sought(engine, hashing_keys, user_ids)
        _look_at_journal(engine, hashing_keys, user_ids, report)
        _look_into_tables(engine, sought, report)
    if engine.dialect.name == "sqlite":
        _look_into_files(_files_of_sqlite(config.store_url), sought, report, "database file")
    else:
        report.elsewhere = (*report.elsewhere, POSTGRES)
    _look_into_folders(config, sought, report)
    _look_into_url(run_root(config), sought, report)
    _look_into_registry(config, sought, report)
    for path in also:
        _look_into_files(_files_below(path), sought, report, str(path))
    return report


def _sought(engine: sa.Engine, hashing_keys: HashingKeys, user_ids: Sequence[str]) -> Sought:
    names = [each for user_id in user_ids for each in hashed_ids(hashing_keys, user_id)]
    prints: set[str] = set()
    table = erased_prints.c
    with reading(engine) as connection:
        for some in chunks(each.mark for each in names):
            query = sa.select(table.print).where(table.mark.in_(some))
            prints.update(connection.execute(query).scalars())
    return Sought(
        user_ids=tuple(user_ids),
        user_keys=frozenset(each.user_key for each in names),
        prints=frozenset(prints),
        keys=hashing_keys.all,
    )


def _look_at_journal(
    engine: sa.Engine, hashing_keys: HashingKeys, user_ids: Sequence[str], report: Report
) -> None:
    """What the database itself says is not done, and rows whose key is not given."""
    with reading(engine) as connection:
        unknown = {k: n for k, n in key_ids(connection).items() if k not in hashing_keys.key_ids}
        waiting = requests.open_erasures(connection)
    for key_id, rows in sorted(unknown.items()):
        report.unseen.append(
            f"{rows:,} rows hashed with key {key_id}, and what runs hold of them: that key is not "
            "given, name its variable in [privacy] old_key_envs"
        )
    for each in waiting:
        report.unseen.append(f"erasure {each.erasure_id} is not finished: call `reactune erase`")


def _look_into_tables(engine: sa.Engine, sought: Sought, report: Report) -> None:
    count = 0
    for table in metadata.sorted_tables:
        with reading(engine) as connection:
            rows = iter(connection.execution_options(stream_results=True).execute(sa.select(table)))
            while some := list(islice(rows, ROWS_AT_ONCE)):
                count += len(some)
                report.add(
                    f"table {table.name}", *find_in_rows(sought, (r._asdict() for r in some))
                )
    shown = hide_passwords(engine.url.render_as_string(hide_password=True))
    report.looked.append(f"{shown}: {len(metadata.sorted_tables)} tables, {count:,} rows")


def _look_into_folders(config: Config, sought: Sought, report: Report) -> None:
    runs = config.run_root
    cache = Path(config.model.cache_dir or user_cache_dir("reactune")).absolute()
    own = [config.folder / name for name in ("rejects.jsonl", "reactune.toml")]
    _look_into_files(own, sought, report, "rejected rows and settings")
    _look_into_files(_files_below(runs), sought, report, f"runs in {runs}")
    others = (file for file in _files_below(cache) if not file.is_relative_to(runs))
    _look_into_files(others, sought, report, f"cache {cache}")
    artifacts = config.folder / "mlflow-artifacts"
    _look_into_files(_files_below(artifacts), sought, report, f"files of MLflow in {artifacts}")
    _look_into_files(
        _files_of_sqlite(config.tracking_uri), sought, report, "database file of MLflow"
    )


def _look_into_url(root: RunRoot, sought: Sought, report: Report) -> None:
    if not root.url:
        return
    with reach(root) as (files, top), tempfile.TemporaryDirectory() as folder:
        paths = files.find(top)
        for path in paths:
            copy = Path(folder) / path.rpartition("/")[2]
            files.get_file(path, str(copy))
            name = f"{hide_passwords(root.url)}{path.removeprefix(top)}"
            _look_into_file(copy, sought, report, name)
            copy.unlink()
    report.looked.append(f"{hide_passwords(root.url)}: {len(paths):,} objects")


def _look_into_registry(config: Config, sought: Sought, report: Report) -> None:
    uri = config.tracking_uri
    if _is_missing_sqlite(uri):
        return
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, content in registry.contents(config.registry, uri, Path(folder)):
            count += 1
            if isinstance(content, Path):
                _look_into_file(content, sought, report, f"MLflow {name}")
            else:
                report.add(f"MLflow {name}", find_in_bytes(sought, content.encode()), Found())
    report.looked.append(
        f"MLflow at {hide_passwords(uri)}: {count:,} records and files, no weights"
    )


def _look_into_files(files: Iterable[Path], sought: Sought, report: Report, where: str) -> None:
    count = size = 0
    for file in files:
        if file.is_file():
            count += 1
            size += file.stat().st_size
            _look_into_file(file, sought, report, str(file))
    if count:
        report.looked.append(f"{where}: {count:,} files, {size / 1e6:,.1f} MB")


def _look_into_file(file: Path, sought: Sought, report: Report, name: str) -> None:
    import pyarrow as pa

    if any(part.startswith(PREFIX) for part in file.parts):
        # Packed, so that nothing would be found in it whatever it holds.
        report.unseen.append(
            f"{name}: a stage that was killed left it; `reactune erase` removes it"
        )
        return
    try:
        report.add(name, *find_in_file(sought, file))
    except (OSError, ValueError, pa.ArrowException) as error:
        report.unseen.append(f"{name}: cannot be read ({type(error).__name__})")


def _files_below(place: Path) -> Iterator[Path]:
    yield from [place] if place.is_file() else sorted(place.rglob("*"))


def _files_of_sqlite(url: str) -> list[Path]:
    """The file with its free pages and what SQLite keeps beside it; of other databases nothing."""
    file = url.removeprefix("sqlite:///")
    endings = ("", "-wal", "-shm", "-journal")
    return [Path(file + ending) for ending in endings] if file != url else []


def _is_missing_sqlite(url: str) -> bool:
    files = _files_of_sqlite(url)
    return bool(files) and not files[0].is_file()
