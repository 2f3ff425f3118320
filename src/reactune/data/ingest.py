"""Files of tips and reactions -> rows of `tip_scores`; what is malformed is listed, not stored.

What makes a row sound is left to `rows.py`, taking files apart to `files.py`.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TextIO

import sqlalchemy as sa

from reactune.config import IngestConfig
from reactune.data.files import Line, Refused, check_readable, read
from reactune.data.rows import FIELDS, score_of
from reactune.errors import ConfigError, DataError
from reactune.keyring import Keyring, aliases
from reactune.people import Aliases, admit
from reactune.privacy import Key
from reactune.records import Counts
from reactune.store import upsert_scores, writing

SUPERSEDED = "earlier row of the same tip_id"
ERASED = "erased at the user's wish"
FAULTLESS = (SUPERSEDED, ERASED)
"""Among what `ingest` counts as refused, the reasons that are no fault of the row."""
Of = tuple[Aliases, dict[str, Any]]  # what a user is called, and their score
# JSON may spell a character with twelve bytes (two \uXXXX), and fields beside ours need room.
LINE_BYTES_PER_CHAR, LINE_BYTES = 24, 1_048_576


def ingest(
    engine: sa.Engine,
    files: Sequence[Path],
    *,
    settings: IngestConfig,
    key: Key,
    rejects: Path,
    old_keys: Sequence[Key] = (),
    progress: Callable[[int], object] | None = None,
) -> Counts:
    """Upsert every sound row by its tip_id; of two with one tip_id the later stands.

    Rows of somebody who was erased since are left out, and only counted.

    A field that a row does not name stays as it is stored. Repeating the call, after an end or a
    kill, gives the same table: batches are transactions, and rows depend on the files alone.
    `rejects` is written anew: JSON lines with file, line and reason, nothing of the row. The
    counts are of rows; `progress` is told how many more bytes of the files have been dealt with.

    Raises:
        ConfigError: `[ingest] columns` names a column that is not ours.
        DataError: a file is missing, of unknown kind or broken, or the database went away; what
            was written before stays.
    """
    names = _names_in_files(settings)
    for path in files:
        check_readable(path)
    keyring = Keyring(key, tuple(old_keys))
    line_bytes = LINE_BYTES_PER_CHAR * settings.max_text_chars + LINE_BYTES
    came_in = went_out = 0
    refused: Counter[str] = Counter()
    with _fresh(rejects, files) as log, closing(_register()) as register:
        for path in files:
            position = 0
            for lines in _batches(
                read(path, names, max_line_bytes=line_bytes), settings.batch_rows
            ):
                scores, flaws = _sort_out(lines, settings=settings, keyring=keyring)
                _list(flaws, path, log)
                kept = _write(scores, engine)
                new = _count_new(kept, register)
                erased = len(scores) - len(kept)
                came_in, went_out = came_in + len(lines), went_out + new
                refused.update(flaws.values())
                refused[ERASED] += erased
                refused[SUPERSEDED] += len(lines) - len(flaws) - erased - new
                if progress:
                    progress(lines[-1].position - position)
                position = lines[-1].position
            if progress:
                progress(path.stat().st_size - position)
    return Counts(came_in, went_out, {reason: n for reason, n in refused.most_common() if n})


def _names_in_files(settings: IngestConfig) -> dict[str, str]:
    unknown = sorted(settings.columns.keys() - set(FIELDS))
    if unknown:
        raise ConfigError(
            f"ingest.columns names {', '.join(unknown)}; our columns are {', '.join(FIELDS)}"
        )
    return {name: settings.columns.get(name, name) for name in FIELDS}


def _fresh(rejects: Path, files: Sequence[Path]) -> TextIO:
    if any(rejects.resolve() == path.resolve() for path in files):
        raise DataError(f"{rejects}: the rejects file must not be one of the files read")
    try:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        return rejects.open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{rejects}: cannot write the rejects file: {error.strerror}") from error


def _register() -> sqlite3.Connection:
    """The tip_ids of one call, in a nameless file so that memory does not grow with them."""
    register = sqlite3.connect("", isolation_level=None)
    register.execute("PRAGMA journal_mode = OFF")
    register.execute("CREATE TABLE written (tip_id TEXT PRIMARY KEY) WITHOUT ROWID")
    return register


def _count_new(scores: Sequence[Mapping[str, Any]], register: sqlite3.Connection) -> int:
    before = register.total_changes
    tip_ids = [(score["tip_id"],) for score in scores]
    register.execute("BEGIN")
    register.executemany("INSERT OR IGNORE INTO written VALUES (?)", tip_ids)
    register.execute("COMMIT")
    return register.total_changes - before


def _batches(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    while batch := list(islice(lines, size)):
        yield batch


def _sort_out(
    lines: Iterable[Line], *, settings: IngestConfig, keyring: Keyring
) -> tuple[list[Of], dict[int, str]]:
    """One score per tip_id with what its user is called, and the reason per line without."""
    scores: dict[str, Of] = {}
    flaws: dict[int, str] = {}
    for line in lines:
        if line.refusal:
            flaws[line.number] = line.refusal
            continue
        try:
            score = score_of(line.values, settings=settings, key=keyring.current)
        except Refused as refusal:
            flaws[line.number] = str(refusal)
        else:
            # As the database does it when the two rows come in different batches.
            _, earlier = scores.get(score["tip_id"], ((), {}))
            names = aliases(keyring, str(line.values["user_id"]))
            scores[score["tip_id"]] = names, earlier | score
    return list(scores.values()), flaws


def _list(flaws: Mapping[int, str], path: Path, log: TextIO) -> None:
    for number, reason in flaws.items():
        log.write(json.dumps({"file": str(path), "line": number, "reason": reason}) + "\n")


def _write(scores: Sequence[Of], engine: sa.Engine) -> list[dict[str, Any]]:
    """Store the scores of those who may be stored; these are returned."""

    def columns(score: dict[str, Any]) -> tuple[str, ...]:
        return tuple(sorted(score))

    with writing(engine) as connection:
        admitted = admit(connection, scores)
        # One order for all, so that two at once wait for each other instead of deadlocking.
        ordered = sorted(admitted, key=lambda score: (columns(score), score["tip_id"]))
        for _, alike in groupby(ordered, key=columns):
            upsert_scores(connection, list(alike))
    return admitted
