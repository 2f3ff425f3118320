"""Files of tips and reactions -> rows of `tip_scores`; malformed rows are listed, not stored.

The table depends on the files alone: reading them again, after an end or a kill, changes nothing.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, TextIO
from uuid import UUID

import sqlalchemy as sa

from reactune.config.sections import IngestConfig
from reactune.data.columns import CONSENT, match_columns
from reactune.data.readers import (
    HALF_A_CHARACTER,
    NUL_BYTE,
    NUMBER,
    SURROGATE,
    Line,
    Refused,
    check_columns,
    check_readable,
    csv_header,
    is_absent,
    is_null,
    kind_of,
    meaning_of,
    parquet_schema,
    parse_json,
    plain_text,
    read,
    read_rows,
    time_of,
    truth_of,
)
from reactune.errors import ConfigError, DataError
from reactune.privacy.consent import HashedIds, admit, chunks
from reactune.privacy.hashing import HashedId, HashingKey, HashingKeys, hashed_ids
from reactune.privacy.user_ids import MISSING, IdError, id_of_somebody
from reactune.records import REACTION_WORDS, REACTIONS, Counts, whole_dwell_ms
from reactune.store.database import INGEST_LOCK, lock, writing
from reactune.store.queries import upsert_scores
from reactune.store.schema import tip_scores

FIELDS = (
    "tip_id",
    "user_id",
    "kind",
    "source",
    "context_json",
    "tip_content",
    "created_at",
    "shown_at",
    "reaction",
    "dwell_ms",
    "reacted_at",
    "training_allowed",
    "cut",
)
TIMES = ("created_at", "shown_at", "reacted_at")
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
AHEAD = timedelta(days=1)  # what a clock that is set wrong, or to another zone, may be ahead
NAME_COLUMNS = 'name them in [ingest] columns, such as columns = { tip_id = "id" }'
MAX_ID_CHARS = 500
MAX_DEPTH = 20
MAX_WHOLE_FLOAT = 2**53
BATCH_ROWS = 1_000  # written in one transaction
# JSON may spell a character with twelve bytes (two \uXXXX), and fields beside ours need room.
LINE_BYTES_PER_CHAR, LINE_BYTES = 24, 1_048_576
SUPERSEDED = "earlier row of the same tip_id"
ERASED = "erased at the user's wish"
FAULTLESS = (SUPERSEDED, ERASED)
"""Among what `ingest` counts as refused, the reasons that are no fault of the row."""

FOREIGN_TIP = "tip_id of another user"
ALREADY_STORED = "already stored"

UserScore = tuple[HashedIds, dict[str, Any]]  # the hashed ids of a user, and a score of theirs


@dataclass(frozen=True)
class Fault:
    """Why a line was refused; `detail` is for the list of refused lines and not counted by."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Owner:
    """Who a tip belongs to, and where that was said."""

    user_key: str = field(repr=False)
    place: str


def ingest(
    engine: sa.Engine,
    files: Sequence[Path],
    *,
    settings: IngestConfig,
    key: HashingKey,
    rejects: Path,
    old_keys: Sequence[HashingKey] = (),
    progress: Callable[[int], object] | None = None,
    batch_rows: int = BATCH_ROWS,
    without_consent: Literal["allow", "refuse"] = "allow",
    say: Callable[[str], object] = lambda line: None,
    now: datetime | None = None,
) -> Counts:
    """Upsert every sound row by its tip_id; of two with one tip_id the later wins.

    A tip of another user is refused, and stays as it is. Rows of a user who was erased since are
    left out, and only counted. A field that a row does not name stays as it is stored. Each batch
    is one transaction. `rejects` is overwritten: JSON lines with file, line and reason, nothing of
    the row. The counts are of rows; `progress` gets how many more bytes of the files have been
    read. Once a row of the files states `training_allowed`, new tips without it are not allowed; if
    none does, `without_consent` decides, and `say` gets a line about it. A time more than a day
    after `now` (without it, the clock's) refuses its row.

    Raises:
        ConfigError: `[ingest] columns` names a column that is not ours.
        DataError: a file is missing, of unknown kind or broken, or has none of our columns, or the
            database went away; what was written before stays.
    """
    _check_names(settings)
    for path in files:
        check_readable(path)
    latest = (now or datetime.now(UTC)) + AHEAD
    hashing_keys = HashingKeys(key, tuple(old_keys))
    line_bytes = LINE_BYTES_PER_CHAR * settings.max_text_chars + LINE_BYTES
    names = _names_in_files(files, settings, line_bytes)
    is_stated = any(CONSENT in each for each in names.values())
    defaults = {CONSENT: False} if is_stated or without_consent == "refuse" else {}
    if not is_stated:
        verdict = "no row counts" if defaults else "every row counts"
        say(f"no file has a column {CONSENT}: {verdict} as allowed")
    came_in = went_out = 0
    refused: Counter[str] = Counter()
    with _new_log(rejects, files) as log, closing(_seen_ids()) as seen:
        for path in files:
            position = 0
            for lines in _batches(read(path, names[path], max_line_bytes=line_bytes), batch_rows):
                scores, faults = _scores_of(
                    lines, settings=settings, hashing_keys=hashing_keys, latest=latest
                )
                with writing(engine) as connection:
                    lock(connection, INGEST_LOCK)  # whose tips these are stays true until the end
                    owners = _owners(connection, seen, scores, hashing_keys)
                    own = _of_their_owners(scores, owners, path, faults, defaults=defaults)
                    kept = _write(list(own.values()), connection)
                _log_refused(faults, path, log)
                new = _count_new(kept, owners, seen)
                erased = len(own) - len(kept)
                came_in, went_out = came_in + len(lines), went_out + new
                refused.update(fault.reason for fault in faults.values())
                refused[ERASED] += erased
                refused[SUPERSEDED] += len(lines) - len(faults) - erased - new
                if progress:
                    progress(lines[-1].position - position)
                position = lines[-1].position
            if progress:
                progress(path.stat().st_size - position)
    return Counts(came_in, went_out, {reason: n for reason, n in refused.most_common() if n})


def _names_in_files(
    files: Sequence[Path], settings: IngestConfig, line_bytes: int
) -> dict[Path, dict[str, str]]:
    """Of each file, our column names and those of the file, for columns that it has."""
    there = {path: _columns_in(path, line_bytes) for path in files}
    everywhere = set().union(*there.values())
    match = partial(match_columns, FIELDS, setting="[ingest] columns", everywhere=everywhere)
    wanted = [settings.columns.get(name, name) for name in FIELDS]
    names = {}
    for path, columns in there.items():
        try:
            names[path] = match(columns, settings.columns)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if not names[path]:
            check_columns(path, wanted, advice=NAME_COLUMNS)
    return names


def _columns_in(path: Path, line_bytes: int) -> set[str]:
    """All columns of a file; of JSONL the keys of all rows, up to where the file is broken."""
    names: set[str] = set()
    with suppress(DataError):  # raised again when the rows are read
        match kind_of(path):
            case "parquet":
                names.update(parquet_schema(path).names)
            case "csv":
                names.update(csv_header(path))
            case _:
                for row in read_rows(path, max_line_bytes=line_bytes):
                    names.update(row.values)
    return names


def _check_names(settings: IngestConfig) -> None:
    unknown = sorted(settings.columns.keys() - set(FIELDS))
    if unknown:
        raise ConfigError(
            f"ingest.columns names {', '.join(unknown)}; our columns are {', '.join(FIELDS)}"
        )


def _new_log(rejects: Path, files: Sequence[Path]) -> TextIO:
    if any(rejects.resolve() == path.resolve() for path in files):
        raise DataError(f"{rejects}: the rejects file must not be one of the files read")
    try:
        rejects.parent.mkdir(parents=True, exist_ok=True)
        return rejects.open("w", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{rejects}: cannot write the rejects file: {error.strerror}") from error


def _seen_ids() -> sqlite3.Connection:
    """The tip_ids of one call, in an unnamed file so that memory does not grow with them."""
    seen = sqlite3.connect("", isolation_level=None)
    seen.execute("PRAGMA journal_mode = OFF")
    seen.execute(
        "CREATE TABLE written (tip_id TEXT PRIMARY KEY, user_key TEXT, place TEXT) WITHOUT ROWID"
    )
    return seen


def _count_new(
    scores: Sequence[Mapping[str, Any]], owners: Mapping[str, Owner], seen: sqlite3.Connection
) -> int:
    before = seen.total_changes
    rows = [(score["tip_id"], score["user_key"], owners[score["tip_id"]].place) for score in scores]
    seen.execute("BEGIN")
    seen.executemany("INSERT OR IGNORE INTO written VALUES (?, ?, ?)", rows)
    seen.execute("COMMIT")
    return seen.total_changes - before


def _owners(
    connection: sa.Connection,
    seen: sqlite3.Connection,
    scores: Mapping[int, UserScore],
    hashing_keys: HashingKeys,
) -> dict[str, Owner]:
    """Who the tips of these lines belong to, as stored and as read before in this call.

    Stored rows under a key that is not given may be anybody's, and are left out.
    """
    row, tip_ids = tip_scores.c, {score["tip_id"] for _, score in scores.values()}
    owners: dict[str, Owner] = {}
    for some in chunks(tip_ids):
        query = sa.select(row.tip_id, row.user_key).where(row.tip_id.in_(some))
        known = query.where(row.key_id.in_(hashing_keys.key_ids))
        stored = connection.execute(known)
        owners |= {tip_id: Owner(user_key, ALREADY_STORED) for tip_id, user_key in stored}
        slots = ", ".join("?" * len(some))
        read_before = seen.execute(f"SELECT * FROM written WHERE tip_id IN ({slots})", some)
        owners |= {tip_id: Owner(user_key, place) for tip_id, user_key, place in read_before}
    return owners


def _of_their_owners(
    scores: Mapping[int, UserScore],
    owners: dict[str, Owner],
    path: Path,
    faults: dict[int, Fault],
    *,
    defaults: Mapping[str, Any],
) -> dict[str, UserScore]:
    """One score per tip_id; lines on a tip of another user join `faults`, new tips `owners`.

    What the first line of a new tip does not name is as in `defaults`.
    """
    own: dict[str, UserScore] = {}
    for number, (ids, score) in scores.items():
        tip_id = score["tip_id"]
        if tip_id not in owners:
            score = {**defaults, **score}
        owner = owners.setdefault(tip_id, Owner(ids[0].user_key, f"line {number} of {path.name}"))
        if owner.user_key not in {each.user_key for each in ids}:
            faults[number] = Fault(FOREIGN_TIP, owner.place)
            continue
        # As the database does it when the two rows come in different batches.
        _, earlier = own.get(tip_id, ((), {}))
        own[tip_id] = ids, earlier | score
    return own


def _batches(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    while batch := list(islice(lines, size)):
        yield batch


def _scores_of(
    lines: Iterable[Line],
    *,
    settings: IngestConfig,
    hashing_keys: HashingKeys,
    latest: datetime,
) -> tuple[dict[int, UserScore], dict[int, Fault]]:
    """The score of each line with the hashed ids of its user, or why it was refused."""
    scores: dict[int, UserScore] = {}
    faults: dict[int, Fault] = {}
    for line in lines:
        if line.refusal:
            faults[line.number] = Fault(line.refusal)
            continue
        try:
            ids = _user(hashing_keys, line.values.get("user_id"))
            score = _score_of(line.values, settings=settings, user=ids[0], latest=latest)
            scores[line.number] = ids, score
        except Refused as refusal:
            faults[line.number] = Fault(str(refusal))
    return scores, faults


def _user(hashing_keys: HashingKeys, value: object) -> HashedIds:
    try:
        return hashed_ids(hashing_keys, id_of_somebody(value))
    except IdError as error:
        raise Refused(error.reason) from error


def _score_of(
    values: Mapping[str, Any], *, settings: IngestConfig, user: HashedId, latest: datetime
) -> dict[str, Any]:
    """The row of `tip_scores` that one row of a file asks for; unnamed fields stay unnamed."""
    score: dict[str, Any] = {
        "tip_id": _text(values, "tip_id", MAX_ID_CHARS),
        "user_key": user.user_key,
        "key_id": user.key_id,
        "kind": _text(values, "kind", MAX_ID_CHARS),
        "context_json": _context(values, settings.max_text_chars),
        "tip_content": _text(values, "tip_content", settings.max_text_chars),
        **_times(values, latest),
    }
    if not is_null(values.get("source")):
        score["source"] = _text(values, "source", MAX_ID_CHARS)
    if "reaction" in values:
        score["reaction"] = _reaction(values["reaction"])
    if score.get("reaction") is not None and is_null(values.get("shown_at")):
        # A user who reacted has seen the tip, whether or not the app noted when.
        score["shown_at"] = score["created_at"]
    if "dwell_ms" in values:
        score["dwell_ms"] = _dwell(values["dwell_ms"])
    for name in ("training_allowed", "cut"):
        if not is_null(values.get(name)):
            score[name] = _true_or_false(name, values[name])
    return score


def _log_refused(faults: Mapping[int, Fault], path: Path, log: TextIO) -> None:
    for number, fault in sorted(faults.items()):
        reason = f"{fault.reason}: {fault.detail}" if fault.detail else fault.reason
        log.write(json.dumps({"file": str(path), "line": number, "reason": reason}) + "\n")


def _write(scores: Sequence[UserScore], connection: sa.Connection) -> list[dict[str, Any]]:
    """Store the scores of users who may be stored, and return these."""

    def columns(score: dict[str, Any]) -> tuple[str, ...]:
        return tuple(sorted(score))

    admitted = admit(connection, scores)
    # One order for all, so that two at once wait for each other instead of deadlocking.
    ordered = sorted(admitted, key=lambda score: (columns(score), score["tip_id"]))
    for _, alike in groupby(ordered, key=columns):
        upsert_scores(connection, list(alike))
    return admitted


def _text(values: Mapping[str, Any], name: str, max_chars: int) -> str:
    value = values.get(name)
    if name.endswith("_id") and _is_id(value):
        value = plain_text(value)
    if is_absent(value):
        raise Refused(f"missing field {name}")
    if not isinstance(value, str):
        raise Refused(f"{name} is not text")
    if name.endswith("_id") and value.strip() in MISSING:
        raise Refused(f"{name} is the text of a missing value")
    if len(value) > max_chars:
        raise Refused(f"oversized {name}")
    _check_characters(value)
    return value


def _is_id(value: Any) -> bool:
    """Whether it is an id that is no text: a whole number of any type, or a UUID."""
    if isinstance(value, bool):
        return False
    if isinstance(value, float):
        # It holds larger numbers too, but not each of them.
        return abs(value) <= MAX_WHOLE_FLOAT and value.is_integer()
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int | UUID)


def _check_characters(text: str) -> None:
    if "\0" in text:
        raise Refused(NUL_BYTE)
    if SURROGATE.search(text):
        raise Refused(HALF_A_CHARACTER)


def _context(values: Mapping[str, Any], max_chars: int) -> str:
    value = values.get("context_json")
    text = value if isinstance(value, str) else _json(value)
    text = _text({"context_json": text}, "context_json", max_chars)
    context = parse_json(text)
    if not isinstance(context, dict):
        raise Refused("context_json is not a JSON object")
    _check_values(context, MAX_DEPTH)
    return text


def _json(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return json.dumps(
            value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_in_json
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("context_json holds what JSON cannot express") from error


def _in_json(value: Any) -> Any:
    """What Parquet has beside the types of JSON, in one of them."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, date | UUID):
        return str(value) if isinstance(value, UUID) else value.isoformat()
    raise TypeError(type(value).__name__)


def _check_values(value: Any, depth: int) -> None:
    """Refuse characters that are escaped in the text of a context, such as \\u0000."""
    if depth == 0:
        raise Refused("context_json is nested too deep")
    if isinstance(value, str):
        _check_characters(value)
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_characters(name)
            _check_values(each, depth - 1)
    elif isinstance(value, list):
        for each in value:
            _check_values(each, depth - 1)


def _times(values: Mapping[str, Any], latest: datetime) -> dict[str, datetime | None]:
    times = {name: _time(name, values[name], latest) for name in TIMES if name in values}
    created_at = times.get("created_at") or times.get("shown_at")
    if created_at is None:
        raise Refused("missing field created_at")
    times["created_at"] = created_at
    reacted_at = times.get("reacted_at")
    for name in ("created_at", "shown_at"):
        earlier = times.get(name)
        if reacted_at is not None and earlier is not None and reacted_at < earlier:
            raise Refused(f"reacted_at before {name}")
    return times


def _time(name: str, value: Any, latest: datetime) -> datetime | None:
    if is_null(value):
        return None
    time = time_of(name, value)
    if not EARLIEST <= time < LATEST:
        raise Refused(f"out-of-range {name}")
    if time > latest:
        raise Refused(f"{name} more than a day ahead")
    return time


def _reaction(value: Any) -> str | None:
    if is_null(value):
        return None
    reaction = REACTION_WORDS.get(meaning_of(value))
    if reaction is None:
        raise Refused(f"unknown reaction, none of {', '.join(REACTIONS)}")
    return reaction


def _dwell(value: Any) -> int | None:
    """Whole milliseconds; browsers count fractions of one, and tools write a number as text."""
    if is_null(value):
        return None
    if isinstance(value, Decimal) or (isinstance(value, str) and NUMBER.fullmatch(value.strip())):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("dwell_ms is not a number")
    dwell_ms = whole_dwell_ms(value)
    if dwell_ms is None:
        raise Refused("negative dwell_ms" if value < 0 else "out-of-range dwell_ms")
    return dwell_ms


def _true_or_false(name: str, value: Any) -> bool:
    if (truth := truth_of(value)) is not None:
        return truth
    raise Refused(f"{name} is not true or false")
