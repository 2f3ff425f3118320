"""`reactune erase --verify`: searches every place of the installation for what is left of a user.

Searched are raw and hashed ids, tip ids, and pieces of erased texts by their fingerprints, in the
database, run folders, caches and MLflow. Nothing is changed.
"""

import bz2
import gzip
import json
import lzma
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import sqlalchemy as sa

from reactune import deployment
from reactune.config.settings import Config, sqlite_file
from reactune.data.labelled import PREFIX
from reactune.erasure import requests
from reactune.errors import hide_passwords
from reactune.privacy.consent import chunks, key_ids
from reactune.privacy.fingerprints import find_fingerprints, fingerprint_of
from reactune.privacy.hashing import (
    HashingKey,
    HashingKeys,
    hashed_ids,
    rare_hashed_ids,
    short_key,
)
from reactune.privacy.user_ids import canonical_id, earlier_forms
from reactune.release import registry
from reactune.runs.remote import RunRoot, remote_files, run_root
from reactune.store.database import reading
from reactune.store.schema import erased_prints, metadata

ID, HASH, TEXT, TIP = "the id", "a hash of the id", "text that was erased", "a tip that was erased"
CHUNK_BYTES, OVERLAP = 2**23, 2**12
ROWS_AT_ONCE = 1_000
MIN_BINARY_BYTES = 8  # a shorter id occurs in any large binary file by chance
WEIGHTS = (".gguf", ".safetensors", ".onnx", ".bin", ".pt", ".pth", ".arrow")
"""Files of numbers: they hold no text, so they are searched for ids only."""
OPENERS: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
PACKED = (".zip", ".zst", ".7z", ".lz4", ".br")
"""Files in which a search would find nothing, whatever they hold."""
ELSEWHERE = (
    "backups, and blocks of deleted files on the disk",
    "the model server's own copies of the weights (Ollama)",
    "copies on other workers: they are removed when one calls reactune there next, and --verify "
    "there searches them",
    'what Ray wrote to disk on the nodes of a cluster ([data] engine = "ray")',
    "the app's own data: files that were ingested, the table of [source] url, outboxes of the "
    "Python client, logs; name files by --also",
)
POSTGRES = (
    "free space in PostgreSQL's pages, its WAL and its replicas: VACUUM made the rows unreadable "
    "to SQL, VACUUM FULL rewrites the files"
)


@dataclass(frozen=True)
class Trace:
    """The kinds of traces in one place, and the fingerprints of texts that were matched there."""

    kinds: frozenset[str] = frozenset()
    fingerprints: frozenset[str] = frozenset()

    def __or__(self, other: "Trace") -> "Trace":
        return Trace(self.kinds | other.kinds, self.fingerprints | other.fingerprints)


@dataclass
class Report:
    """What was searched, the traces, what could not be searched, and what is out of reach."""

    searched: list[str] = field(default_factory=list)
    found: list[tuple[str, Trace]] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    """Fingerprints that rows of other users match as well."""
    unchecked: list[str] = field(default_factory=list)
    """Places of the installation that could not be searched."""
    elsewhere: tuple[str, ...] = ELSEWHERE

    def add(self, place: str, trace: Trace, shared: Trace) -> None:
        """Add what one place holds."""
        self.shared |= shared.fingerprints
        if trace.kinds:
            self.found.append((place, trace))

    @property
    def traces(self) -> list[str]:
        """Each place with a trace of the users, and the kinds of it.

        A text that other users' rows hold as well is no trace.
        """
        lines = []
        for place, trace in self.found:
            is_common = trace.fingerprints <= self.shared
            kinds = trace.kinds - {TEXT} if is_common else trace.kinds
            if kinds:
                lines.append(f"{place}: {', '.join(sorted(kinds))}")
        return lines


@dataclass(frozen=True)
class Search:
    """The ids, hashes and fingerprints that no place may hold."""

    user_ids: tuple[str, ...] = field(repr=False)
    user_keys: frozenset[str] = field(repr=False)
    fingerprints: frozenset[str] = field(repr=False)
    keys: tuple[HashingKey, ...]

    @cached_property
    def spellings(self) -> tuple[bytes, ...]:
        """The ids as they are written in texts, in JSON and in URLs."""
        spellings = (
            spelling
            for user_id in self.user_ids
            for spelling in (
                user_id,
                json.dumps(user_id)[1:-1],
                quote(user_id),
                quote(user_id, safe=""),
            )
        )
        return tuple(dict.fromkeys(each.encode("utf-8", "replace") for each in spellings))

    @cached_property
    def words(self) -> re.Pattern[bytes]:
        """Any of the spellings, not as a part of a longer word."""
        any_of = b"|".join(re.escape(each) for each in self.spellings)
        return re.compile(rb"(?<![A-Za-z0-9])(?:" + any_of + rb")(?![A-Za-z0-9])")


def verify(
    config: Config, hashing_keys: HashingKeys, user_ids: Sequence[str], *, also: Sequence[Path] = ()
) -> Report:
    """Search every table, file and MLflow record of the installation for users, and `also`.

    Raises:
        DataError: the database or the URL of the runs does not answer.
        ReleaseError: MLflow is away.
    """
    report = Report()
    with deployment.database(config) as engine:
        search = _search_for(engine, hashing_keys, user_ids)
        _check_journal(engine, hashing_keys, report)
        _search_tables(engine, search, report)
    if engine.dialect.name == "sqlite":
        _search_files(_files_of_sqlite(config.store_url), search, report, "database file")
    else:
        report.elsewhere = (*report.elsewhere, POSTGRES)
    _search_folders(config, search, report)
    _search_url(run_root(config), search, report)
    _search_registry(config, search, report)
    for path in also:
        _search_files(_files_below(path), search, report, str(path))
    return report


def search_bytes(search: Search, data: bytes) -> Trace:
    """Traces in these bytes, which may be text or not."""
    return search_ids(search, data) | search_texts(search, data)


def search_ids(search: Search, data: bytes) -> Trace:
    """The ids and their hashes, whole or short; in binary data only ids that are long enough."""
    kinds = set()
    if b"\0" in data:
        long_ones = (each for each in search.spellings if len(each) >= MIN_BINARY_BYTES)
        if any(each in data for each in long_ones):
            kinds.add(ID)
    elif search.words.search(data):
        kinds.add(ID)
    if any(short_key(each).encode() in data for each in search.user_keys):
        kinds.add(HASH)
    return Trace(frozenset(kinds))


def search_texts(search: Search, data: bytes) -> Trace:
    """Pieces of erased texts."""
    found = frozenset(
        each for key in search.keys for each in find_fingerprints(key, data, search.fingerprints)
    )
    return Trace(frozenset({TEXT} if found else ()), found)


def search_tip_ids(search: Search, tip_ids: Iterable[str]) -> Trace:
    """Erased tips, by their whole ids."""
    if not search.fingerprints:
        return Trace()
    fingerprints = {fingerprint_of(key, tip_id) for tip_id in tip_ids for key in search.keys}
    found = search.fingerprints & fingerprints
    return Trace(frozenset({TIP} if found else ()), found)


def search_rows(search: Search, rows: Iterable[Mapping[str, Any]]) -> tuple[Trace, Trace]:
    """Traces in rows, and the texts of them that rows of other users hold as well.

    A row's `user_key` names its user; a row without one is nobody's. A text that two users were
    shown is no trace of one of them.
    """
    texts: tuple[list[bytes], list[bytes]] = [], []
    tips = []
    for row in rows:
        is_others = (row.get("user_key") or "") not in search.user_keys | {""}
        texts[is_others].extend(_texts_in(list(row.values())))
        tips += [row["tip_id"]] if row.get("tip_id") else []
    own, others = (b"\n".join(part) for part in texts)
    trace = search_bytes(search, own) | search_ids(search, others) | search_tip_ids(search, tips)
    return trace, search_texts(search, others)


def _texts_in(value: Any) -> Iterator[bytes]:
    """Every text in a cell, at any depth, with keys, bytes and whole numbers."""
    match value:
        case str():
            yield value.encode("utf-8", "replace")
        case bytes():
            yield value.replace(b"\0", b" ")  # padding; with NUL, short ids would not be sought
        case dict():
            for key, part in value.items():
                yield from _texts_in(key)
                yield from _texts_in(part)
        case list() | tuple():
            for part in value:
                yield from _texts_in(part)
        case int() | UUID():
            yield str(value).encode()


def search_file(search: Search, file: Path) -> tuple[Trace, Trace]:
    """As `search_rows`, in a file of any kind.

    Raises:
        OSError, ValueError: it cannot be read, or is not of the kind that its name says.
    """
    if file.suffix in PACKED:
        raise ValueError("it is packed")
    if file.suffix == ".parquet":
        return _search_parquet(search, file)
    search_one = search_ids if file.suffix in WEIGHTS else search_bytes
    trace = Trace()
    for piece in _pieces(file):
        trace |= search_one(search, piece)
    return trace, Trace()


def _search_for(engine: sa.Engine, hashing_keys: HashingKeys, user_ids: Sequence[str]) -> Search:
    ids = [
        each
        for user_id in user_ids
        for each in (
            *hashed_ids(hashing_keys, user_id),
            *rare_hashed_ids(hashing_keys, user_id),
        )
    ]
    spellings = [form for each in user_ids for form in (canonical_id(each), *earlier_forms(each))]
    fingerprints: set[str] = set()
    table = erased_prints.c
    with reading(engine) as connection:
        for some in chunks(each.mark for each in ids):
            query = sa.select(table.print).where(table.mark.in_(some))
            fingerprints.update(connection.execute(query).scalars())
    return Search(
        user_ids=tuple(dict.fromkeys(spellings)),
        user_keys=frozenset(each.user_key for each in ids),
        fingerprints=frozenset(fingerprints),
        keys=hashing_keys.all,
    )


def _check_journal(engine: sa.Engine, hashing_keys: HashingKeys, report: Report) -> None:
    """Report erasures that are not finished, and rows hashed with a key that is not given."""
    with reading(engine) as connection:
        unknown = {k: n for k, n in key_ids(connection).items() if k not in hashing_keys.key_ids}
        waiting = requests.open_erasures(connection)
    for key_id, rows in sorted(unknown.items()):
        report.unchecked.append(
            f"{rows:,} rows hashed with key {key_id}, and their copies in runs: that key is not "
            "given, name its variable in [privacy] old_key_envs"
        )
    for each in waiting:
        report.unchecked.append(f"erasure {each.erasure_id} is not finished: call `reactune erase`")


def _search_tables(engine: sa.Engine, search: Search, report: Report) -> None:
    count = 0
    for table in metadata.sorted_tables:
        with reading(engine) as connection:
            rows = iter(connection.execution_options(stream_results=True).execute(sa.select(table)))
            while some := list(islice(rows, ROWS_AT_ONCE)):
                count += len(some)
                traces = search_rows(search, (row._asdict() for row in some))
                report.add(f"table {table.name}", *traces)
    shown = hide_passwords(engine.url.render_as_string(hide_password=True))
    report.searched.append(f"{shown}: {len(metadata.sorted_tables)} tables, {count:,} rows")


def _search_folders(config: Config, search: Search, report: Report) -> None:
    runs = config.run_root
    cache = config.model.cache_folder
    others = (file for file in _files_below(cache) if not file.is_relative_to(runs))
    artifacts = config.folder / "mlflow-artifacts"
    own = [config.folder / name for name in ("rejects.jsonl", "reactune.toml")]
    for files, name in (
        (own, "rejected rows and settings"),
        (_files_below(runs), f"runs in {runs}"),
        (others, f"cache {cache}"),
        (_files_below(artifacts), f"files of MLflow in {artifacts}"),
        (_files_of_sqlite(config.tracking_uri), "database file of MLflow"),
    ):
        _search_files(files, search, report, name)


def _search_url(root: RunRoot, search: Search, report: Report) -> None:
    if not root.url:
        return
    shown = hide_passwords(root.url)
    with remote_files(root) as (files, top), tempfile.TemporaryDirectory() as folder:
        paths = files.find(top)
        for path in paths:
            copy = Path(folder) / path.rpartition("/")[2]
            files.get_file(path, str(copy))
            _search_file(copy, search, report, f"{shown}{path.removeprefix(top)}")
            copy.unlink()
    report.searched.append(f"{shown}: {len(paths):,} objects")


def _search_registry(config: Config, search: Search, report: Report) -> None:
    uri = config.tracking_uri
    if (files := _files_of_sqlite(uri)) and not files[0].is_file():
        return
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, content in registry.contents(config.registry, uri, Path(folder)):
            count += 1
            if isinstance(content, Path):
                _search_file(content, search, report, f"MLflow {name}")
            else:
                report.add(f"MLflow {name}", search_bytes(search, content.encode()), Trace())
    report.searched.append(
        f"MLflow at {hide_passwords(uri)}: {count:,} records and files, no weights"
    )


def _search_files(files: Iterable[Path], search: Search, report: Report, place: str) -> None:
    count = size = 0
    for file in files:
        if file.is_file():
            count += 1
            size += file.stat().st_size
            _search_file(file, search, report, str(file))
    if count:
        report.searched.append(f"{place}: {count:,} files, {size / 1e6:,.1f} MB")


def _search_file(file: Path, search: Search, report: Report, name: str) -> None:
    import pyarrow as pa

    if any(part.startswith(PREFIX) for part in file.parts):
        # Compressed, so a search would find nothing, whatever it holds.
        report.unchecked.append(
            f"{name}: a stage that was killed left it; `reactune erase` removes it"
        )
        return
    try:
        report.add(name, *search_file(search, file))
    except (OSError, ValueError, pa.ArrowException) as error:
        report.unchecked.append(f"{name}: cannot be read ({type(error).__name__})")


def _pieces(file: Path) -> Iterator[bytes]:
    """The uncompressed content, in pieces that overlap."""
    open_file = OPENERS.get(file.suffix, open)
    tail = b""
    try:
        with open_file(file, "rb") as content:
            while piece := content.read(CHUNK_BYTES):
                yield tail + piece
                tail = piece[-OVERLAP:]
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError("it is truncated") from error


def _search_parquet(search: Search, file: Path) -> tuple[Trace, Trace]:
    import pyarrow.parquet as pq

    trace, shared = Trace(), Trace()
    decode = _decoder(file)
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches():
            here, others = search_rows(search, map(decode, batch.to_pylist()))
            trace, shared = trace | here, shared | others
    return trace, shared


def _decoder(file: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Decodes the token ids of a trainer's rows into text; leaves other rows as they are."""
    job = file.with_name("job.json")
    if not job.is_file():
        return lambda row: row
    from tokenizers import Tokenizer

    folder = json.loads(job.read_text(encoding="utf-8")).get("base_folder", "")
    words = Path(folder) / "tokenizer.json"
    if not words.is_file():
        raise FileNotFoundError(f"{words}, which is needed to decode the token ids in {file}")
    tokenizer = Tokenizer.from_file(str(words))

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return {
            name: tokenizer.decode(cell) if isinstance(cell, list) else cell
            for name, cell in row.items()
        }

    return decode


def _files_below(place: Path) -> Iterator[Path]:
    yield from [place] if place.is_file() else sorted(place.rglob("*"))


def _files_of_sqlite(url: str) -> list[Path]:
    """The file with its free pages and SQLite's files beside it; none for other databases."""
    file = sqlite_file(url)
    endings = ("", "-wal", "-shm", "-journal")
    return [Path(f"{file}{ending}") for ending in endings] if file else []
