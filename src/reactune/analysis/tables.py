"""Rows of any JSONL, CSV or Parquet file, read by the names that its columns have there."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

from reactune.config.sections import LabelConfig
from reactune.data.readers import (
    Line,
    check_readable,
    columns_of,
    is_null,
    meaning_of,
    plain_text,
    read,
    truth_of,
)
from reactune.errors import DataError
from reactune.privacy.user_ids import MISSING
from reactune.store.labels import label_rule

NAMES_LISTED = 5
MOST_FOUND = 1_000  # reactions that are remembered for a message


@dataclass(frozen=True)
class Columns:
    """The columns of a file; `a.b` is the key b of the object (or JSON text) in column a.

    Either `reaction` is that to one tip (or to `count` of them), or `positives` of `tips` are
    counted already. With `dwell`, the label rule's dwell times apply to the reaction. Without a
    column for the arm, each row is an arm.
    """

    arm: tuple[str, ...] = ("arm",)
    unit: str = ""
    time: str = ""
    by: str = ""
    reaction: str = "reaction"
    dwell: str = ""
    count: str = ""
    tips: str = ""
    positives: str = ""


@dataclass(frozen=True)
class Row:
    """One row: its comparison, arm, unit and time, and how many of its tips are positives."""

    by: str
    arm: str
    unit: str
    time: str
    tips: int
    positives: int


class UnknownValueError(DataError):
    """A value that was asked for is in no row of the file."""


def read_rows(
    file: Path, columns: Columns, *, positive: frozenset[str], labels: LabelConfig
) -> Iterator[Row]:
    """Every row of a JSONL, CSV or Parquet file; reactions in `positive` count as positives.

    Reactions and arms are compared by what they mean, and an arm is called as in its first row.

    Raises:
        DataError: the file cannot be read, a column is missing, or a value is not valid.
        UnknownValueError: a positive is no row's reaction.
    """
    meant = frozenset(map(meaning_of, positive))
    names: dict[str, str] = {}
    found: dict[str, str] = {}
    line = None
    for line in read_columns(file, _names(columns), command="compare"):
        place, values = f"{file}, line {line.number}", line.values
        tips, positives = _counts(place, values, columns, meant, labels)
        keys = columns.by, columns.unit, columns.time
        by, unit, time = (_text(place, values, key) if key else "" for key in keys)
        if unit in MISSING:
            raise DataError(
                f"{place}: {columns.unit} = {unit!r} is the text of a missing value, and all such "
                "rows would be one unit; remove them"
            )
        arm = _arm(place, values, columns) if columns.arm else f"row {line.number}"
        if not columns.tips and len(found) < MOST_FOUND:
            reaction = value_of(values, columns.reaction)
            found.setdefault(meaning_of(reaction), plain_text(reaction))
        yield Row(by, names.setdefault(meaning_of(arm), arm), unit, time, tips, positives)
    if line is not None and not columns.tips:
        _check_found(file, columns.reaction, positive, found)


def read_columns(file: Path, names: Sequence[str], *, command: str) -> Iterator[Line]:
    """The lines of a JSONL, CSV or Parquet file, each with the columns of these names.

    A key that a line of JSONL lacks is null there.

    Raises:
        DataError: the file or a line cannot be read, or no line has a column; the message names
            the command whose options name columns.
    """
    check_readable(file)
    roots = {name.partition(".")[0] for name in names}
    there = columns_of(file, roots)
    if there and (missing := sorted(roots - there)):
        raise DataError(
            f"{file}: no column {missing[0]!r}; `reactune {command} --help` lists the options that "
            f"name columns; the file has {listed(there)}"
        )
    absent = dict.fromkeys(roots)
    for line in read(file, {root: root for root in roots}):
        if line.refusal:
            raise DataError(f"{file}, line {line.number}: {line.refusal}; repair or remove it")
        yield replace(line, values={**absent, **line.values})


def find_name(wanted: str, names: Collection[str]) -> str | None:
    """The one of these names that means the same as the wanted one, or None."""
    return next((name for name in names if meaning_of(name) == meaning_of(wanted)), None)


def listed(names: Collection[str]) -> str:
    """Names for a message: the first of them, and how many more there are."""
    few = sorted(names)[:NAMES_LISTED]
    rest = f" and {len(names) - len(few):,} more" if len(names) > len(few) else ""
    return ", ".join(few) + rest


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a key of the object in it; None if there is none."""
    root, *path = name.split(".")
    value = values[root]
    for key in path:
        if isinstance(value, str):
            value = _parsed(value)
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number_of(place: str, name: str, value: Any) -> float:
    """The number that a column holds; 1 or 0 for true or false.

    Raises:
        DataError: it is none, or not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        truth = truth_of(value)
        number = nan if truth is None else float(truth)
    if not isfinite(number):
        raise DataError(f"{place}: {name} = {value!r} is not a number; correct or remove the row")
    return number


def _names(columns: Columns) -> list[str]:
    counted = [columns.tips, columns.positives]
    needed = counted if any(counted) else [columns.reaction, columns.dwell, columns.count]
    names = [*columns.arm, columns.unit, columns.time, columns.by, *needed]
    return [name for name in names if name]


def _arm(place: str, values: Mapping[str, Any], columns: Columns) -> str:
    parts = [plain_text(value_of(values, name)) for name in columns.arm]
    if not any(parts):
        raise DataError(f"{place}: {', '.join(columns.arm)}: no arm; remove such rows")
    return " | ".join(parts)


def _counts(
    place: str,
    values: Mapping[str, Any],
    columns: Columns,
    positive: frozenset[str],
    labels: LabelConfig,
) -> tuple[int, int]:
    """Tips and positives of a row."""
    if columns.tips:
        tips = _count(place, values, columns.tips)
        positives = _count(place, values, columns.positives)
        if positives > tips:
            raise DataError(f"{place}: {positives} positives of {tips} tips; correct the counts")
        return tips, positives
    tips = _count(place, values, columns.count) if columns.count else 1
    reaction = meaning_of(value_of(values, columns.reaction))
    is_positive = reaction in positive
    if columns.dwell and is_positive:
        dwell = value_of(values, columns.dwell)
        dwell_ms = None if is_null(dwell) else number_of(place, columns.dwell, dwell)
        rule = replace(label_rule(labels).positive, reactions=positive)
        is_positive = rule.includes(reaction, dwell_ms)
    return tips, tips if is_positive else 0


def _count(place: str, values: Mapping[str, Any], name: str) -> int:
    number = number_of(place, name, value_of(values, name))
    if number < 0 or number != int(number):
        raise DataError(f"{place}: {name} = {number:g} is not a count; give a whole number")
    return int(number)


def _text(place: str, values: Mapping[str, Any], name: str) -> str:
    text = plain_text(value_of(values, name))
    if not text:
        raise DataError(f"{place}: {name} is empty; remove such rows")
    return text


def _check_found(
    file: Path, column: str, positive: Collection[str], found: Mapping[str, str]
) -> None:
    for wanted in sorted(positive):
        if meaning_of(wanted) not in found and len(found) < MOST_FOUND:
            there = listed([text for text in found.values() if text]) or "no reaction in any row"
            raise UnknownValueError(
                f"{file}: no row has {column} {wanted!r}, so nothing would be positive; found: "
                f"{there}; name what counts with --positive"
            )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
