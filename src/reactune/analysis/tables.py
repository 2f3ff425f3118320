"""Rows of any JSONL, CSV or Parquet file, read by the names that its columns have there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

from reactune.config.sections import LabelConfig
from reactune.data.readers import Line, check_readable, read
from reactune.errors import DataError
from reactune.store.labels import label_rule


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


def read_rows(
    file: Path, columns: Columns, *, positive: frozenset[str], labels: LabelConfig
) -> Iterator[Row]:
    """Every row of a JSONL, CSV or Parquet file; reactions in `positive` count as positives.

    Raises:
        DataError: the file cannot be read, a column is missing, or a value is not valid.
    """
    for line in read_columns(file, _names(columns), command="compare"):
        place, values = f"{file}, line {line.number}", line.values
        tips, positives = _counts(place, values, columns, positive, labels)
        keys = columns.by, columns.unit, columns.time
        by, unit, time = (_text(place, values, key) if key else "" for key in keys)
        arm = _arm(place, values, columns) if columns.arm else f"row {line.number}"
        yield Row(by, arm, unit, time, tips, positives)


def read_columns(file: Path, names: Sequence[str], *, command: str) -> Iterator[Line]:
    """The lines of a JSONL, CSV or Parquet file, each with the columns of these names.

    Raises:
        DataError: the file or a line cannot be read, or a line lacks a column; the message names
            the command whose options name columns.
    """
    check_readable(file)
    roots = {name.partition(".")[0] for name in names}
    for line in read(file, {root: root for root in roots}):
        if line.refusal:
            raise DataError(f"{file}, line {line.number}: {line.refusal}; repair or remove it")
        missing = sorted(roots - line.values.keys())
        if missing:
            raise DataError(
                f"{file}, line {line.number}: no column {missing[0]!r}; `reactune {command} "
                "--help` lists the options that name columns"
            )
        yield line


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a key of the object in it; None if there is none."""
    root, *path = name.split(".")
    value = values[root]
    for key in path:
        if isinstance(value, str):
            value = _parsed(value)
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _names(columns: Columns) -> list[str]:
    counted = [columns.tips, columns.positives]
    needed = counted if any(counted) else [columns.reaction, columns.dwell, columns.count]
    names = [*columns.arm, columns.unit, columns.time, columns.by, *needed]
    return [name for name in names if name]


def _arm(place: str, values: Mapping[str, Any], columns: Columns) -> str:
    parts = [value_of(values, name) for name in columns.arm]
    if all(part in (None, "") for part in parts):
        raise DataError(f"{place}: {', '.join(columns.arm)}: no arm; remove such rows")
    return " | ".join("" if part is None else str(part) for part in parts)


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
    reaction = str(value_of(values, columns.reaction))
    is_positive = reaction in positive
    if columns.dwell and is_positive:
        is_known = value_of(values, columns.dwell) is not None
        dwell_ms = _number(place, values, columns.dwell) if is_known else None
        rule = replace(label_rule(labels).positive, reactions=positive)
        is_positive = rule.includes(reaction, dwell_ms)
    return tips, tips if is_positive else 0


def _count(place: str, values: Mapping[str, Any], name: str) -> int:
    number = _number(place, values, name)
    if number < 0 or number != int(number):
        raise DataError(f"{place}: {name} = {number:g} is not a count; give a whole number")
    return int(number)


def _number(place: str, values: Mapping[str, Any], name: str) -> float:
    value = value_of(values, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number):
        raise DataError(f"{place}: {name} = {value!r} is not a number; correct or remove the row")
    return number


def _text(place: str, values: Mapping[str, Any], name: str) -> str:
    value = value_of(values, name)
    if value is None:
        raise DataError(f"{place}: {name} is empty; remove such rows")
    return str(value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
