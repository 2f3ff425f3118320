"""One row of a file -> one row of `tip_scores`, or the reason why not; pure.

Reading files is left to `files.py`, writing the rows to `ingest.py`.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from reactune.config import IngestConfig
from reactune.data.files import SURROGATE, Refused, parse_json
from reactune.privacy import Key, user_key
from reactune.records import REACTIONS

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
)
TIMES = ("created_at", "shown_at", "reacted_at")
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
MAX_ID_CHARS = 500
MAX_DWELL_MS = 2**31 - 1
MAX_DEPTH = 20


def score_of(values: Mapping[str, Any], *, settings: IngestConfig, key: Key) -> dict[str, Any]:
    """The row of `tip_scores` that one row of a file asks for; unnamed fields stay unnamed.

    Raises:
        Refused: the row is malformed.
    """
    person = user_key(key, _text(values, "user_id", MAX_ID_CHARS))
    score: dict[str, Any] = {
        "tip_id": _text(values, "tip_id", MAX_ID_CHARS),
        "user_key": person,
        "key_id": key.key_id,
        "kind": _text(values, "kind", MAX_ID_CHARS),
        "context_json": _context(values, settings.max_text_chars),
        "tip_content": _text(values, "tip_content", settings.max_text_chars),
        **_times(values),
    }
    if values.get("source") is not None:
        score["source"] = _text(values, "source", MAX_ID_CHARS)
    if "reaction" in values:
        score["reaction"] = _reaction(values["reaction"])
    if score.get("reaction") is not None and values.get("shown_at") is None:
        # Who reacted has seen the tip, whether or not the app noted when.
        score["shown_at"] = score["created_at"]
    if "dwell_ms" in values:
        score["dwell_ms"] = _dwell(values["dwell_ms"])
    if values.get("training_allowed") is not None:
        score["training_allowed"] = _training_allowed(values["training_allowed"])
    return score


def _text(values: Mapping[str, Any], name: str, max_chars: int) -> str:
    value = values.get(name)
    if name.endswith("_id") and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        raise Refused(f"missing field {name}")
    if not isinstance(value, str):
        raise Refused(f"{name} is not text")
    if len(value) > max_chars:
        raise Refused(f"oversized {name}")
    _check_characters(value)
    if value.isspace():
        raise Refused(f"missing field {name}")
    return value


def _check_characters(text: str) -> None:
    if "\0" in text:
        raise Refused("NUL byte")
    if SURROGATE.search(text):
        raise Refused("lone surrogate")


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
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("context_json holds what JSON cannot say") from error


def _check_values(value: Any, depth: int) -> None:
    """Escapes such as \\u0000 hide in the text of a context and show in its values."""
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


def _times(values: Mapping[str, Any]) -> dict[str, datetime | None]:
    times = {name: _time(name, values[name]) for name in TIMES if name in values}
    created_at = times.get("created_at") or times.get("shown_at")
    if created_at is None:
        raise Refused("missing field created_at")
    return {**times, "created_at": created_at}


def _time(name: str, value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise Refused(f"unparsable {name}") from error
    if time.utcoffset() is None:
        raise Refused(f"naive {name}")
    try:
        time = time.astimezone(UTC)
    except OverflowError as error:
        raise Refused(f"out-of-range {name}") from error
    if not EARLIEST <= time < LATEST:
        raise Refused(f"out-of-range {name}")
    return time


def _reaction(value: Any) -> str | None:
    if value is None or value in REACTIONS:
        return value if value is None else str(value)
    raise Refused("unknown reaction")


def _dwell(value: Any) -> int | None:
    if value is None:
        return None
    # Tools without an integer that may be missing write 2000.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refused("dwell_ms is not a whole number")
    if not 0 <= value <= MAX_DWELL_MS:
        raise Refused("negative dwell_ms" if value < 0 else "out-of-range dwell_ms")
    return value


def _training_allowed(value: Any) -> bool:
    if value in (True, False):
        return bool(value)
    raise Refused("training_allowed is not true or false")
