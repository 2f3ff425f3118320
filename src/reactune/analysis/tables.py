"""Rows of a file that tells what people did under several arms, whatever its columns are called.

What they add up to is for `trials.py`.
"""

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

MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Columns:
    """Which columns say what; `a.b` is the key b of the object (or JSON text) in column a.

    Either `reaction` says what happened to one tip (to `count` of them), or `positives` of `tips`
    are counted already. `dwell` asks for the label rule's dwell time beside the reaction. With no
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
    """One row: which comparison, arm, unit and time it is of, its tips and their positives."""

    by: str
    arm: str
    unit: str
    time: str
    tips: int
    positives: int


def read_rows(
    file: Path, columns: Columns, *, positive: frozenset[str], labels: LabelConfig
) -> Iterator[Row]:
    """Every row of a JSONL, CSV or Parquet file; `positive` are the reactions that count as such.

    Raises:
        DataError: the file cannot be read, a column is not there, or a value is not what it must
            be.
    """
    for line in _lines(file, columns):
        values = line.values
        tips, positives = _counts(file, line, values, columns, positive, labels)
        keys = [columns.by, columns.unit, columns.time]
        by, unit, time = (_text(file, line, values, key) if key else "" for key in keys)
        yield Row(by, _arm(file, line, values, columns), unit, time, tips, positives)


def _lines(file: Path, columns: Columns) -> Iterator[Line]:
    counted = [columns.tips, columns.positives]
    wanted = counted if any(counted) else [columns.reaction, columns.dwell, columns.count]
    names = [*columns.arm, columns.unit, columns.time, columns.by, *wanted]
    return read_columns(file, [name for name in names if name], command="compare")


def read_columns(file: Path, names: Sequence[str], *, command: str) -> Iterator[Line]:
    """The lines of a JSONL, CSV or Parquet file, each with the columns of these names.

    Raises:
        DataError: the file or a line cannot be read, or a line lacks a column; the message names
            the command whose options name columns.
    """
    check_readable(file)
    roots = {name.partition(".")[0] for name in names}
    for line in read(file, {root: root for root in roots}, max_line_bytes=MAX_LINE_BYTES):
        if line.refusal:
            raise DataError(f"{file}, line {line.number}: {line.refusal}; mend it or leave it out")
        missing = sorted(roots - line.values.keys())
        if missing:
            raise DataError(
                f"{file}, line {line.number}: no column {missing[0]!r}; `reactune {command} "
                "--help` lists the options that name columns"
            )
        yield line


def _arm(file: Path, line: Line, values: Mapping[str, Any], columns: Columns) -> str:
    if not columns.arm:
        return f"row {line.number}"
    parts = [value_of(values, name) for name in columns.arm]
    if all(part in (None, "") for part in parts):
        raise DataError(f"{file}, line {line.number}: no arm; leave such rows out")
    return " | ".join("" if part is None else str(part) for part in parts)


def _counts(
    file: Path,
    line: Line,
    values: Mapping[str, Any],
    columns: Columns,
    positive: frozenset[str],
    labels: LabelConfig,
) -> tuple[int, int]:
    if columns.tips:
        tips = _count(file, line, values, columns.tips)
        positives = _count(file, line, values, columns.positives)
        if positives > tips:
            raise DataError(f"{file}, line {line.number}: {positives} positives of {tips} tips")
        return tips, positives
    tips = _count(file, line, values, columns.count) if columns.count else 1
    reaction = str(value_of(values, columns.reaction))
    is_positive = reaction in positive
    if columns.dwell and is_positive:
        is_known = value_of(values, columns.dwell) is not None
        dwell_ms = _number(file, line, values, columns.dwell) if is_known else None
        evidence = replace(label_rule(labels).positive, reactions=positive)
        is_positive = evidence.includes(reaction, dwell_ms)
    return tips, tips if is_positive else 0


def _count(file: Path, line: Line, values: Mapping[str, Any], name: str) -> int:
    number = _number(file, line, values, name)
    if number < 0 or number != int(number):
        raise DataError(f"{file}, line {line.number}: {name} = {number:g} is no count")
    return int(number)


def _number(file: Path, line: Line, values: Mapping[str, Any], name: str) -> float:
    value = value_of(values, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number):
        raise DataError(f"{file}, line {line.number}: {name} = {value!r} is no number")
    return number


def _text(file: Path, line: Line, values: Mapping[str, Any], name: str) -> str:
    value = value_of(values, name)
    if value is None:
        raise DataError(f"{file}, line {line.number}: {name} is empty; leave such rows out")
    return str(value)


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """What a column says, or a key of the object in it; None where it is not there."""
    root, *path = name.split(".")
    value = values[root]
    for key in path:
        if isinstance(value, str):
            value = _parsed(value)
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
