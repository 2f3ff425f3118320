"""Progress of long work on standard error: a bar on a terminal, elsewhere a line at either end."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

from tqdm import tqdm


class Bar:
    """Work that is under way: how much of it is done. `progress_bar` makes it and ends it."""

    def __init__(self, shown: "tqdm[Never]", *, total: int | None) -> None:
        self._shown = shown
        self.done, self.total, self.note = 0, total, ""

    def update(self, count: int = 1) -> None:
        """Count so much more as done."""
        self.done += count
        self._shown.update(count)

    def show(self, done: int, *, total: int, note: str) -> None:
        """State how much is done of how much, and a few words that follow it."""
        self.total, self._shown.total = total, total
        self.set_note(note)
        self.update(done - self.done)

    def set_note(self, note: str) -> None:
        """Replace the words that follow the numbers."""
        self.note = note
        self._shown.set_postfix_str(note)


@contextmanager
def progress_bar(
    name: str, *, total: int | None, unit: str, is_kept: bool = False, is_bytes: bool = False
) -> Iterator[Bar]:
    """Show the progress of the work in the block; `total` None where its size is not known.

    On a terminal a bar, which stays there afterwards if `is_kept`. Elsewhere, such as in the log of
    a scheduler, one line when the work begins and one when it ends, however it ends; none if there
    is nothing to do. Nothing is written to standard output.
    """
    is_quiet = not sys.stderr.isatty()
    started = time.monotonic()
    if is_quiet and total != 0:
        _write(f"{name}: started" if total is None else f"{name}: {_amount(total, unit, is_bytes)}")
    with tqdm(
        total=total, desc=name, unit=unit, unit_scale=is_bytes, leave=is_kept, disable=is_quiet
    ) as shown:
        bar = Bar(shown, total=total)
        try:
            yield bar
        finally:
            if is_quiet and total != 0:
                _write(f"{name}: {_state(bar, unit, is_bytes)}{_after(started)}{_noted(bar.note)}")


def _state(bar: Bar, unit: str, is_bytes: bool) -> str:
    if bar.total is None or bar.done >= bar.total:
        return f"{_amount(bar.done, unit, is_bytes)} done"
    done = tqdm.format_sizeof(bar.done, unit) if is_bytes else f"{bar.done:,}"
    return f"{done} of {_amount(bar.total, unit, is_bytes)} done"


def _amount(number: int, unit: str, is_bytes: bool) -> str:
    if is_bytes:
        return tqdm.format_sizeof(number, unit)
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _after(started: float) -> str:
    return f" after {tqdm.format_interval(time.monotonic() - started)}"


def _noted(note: str) -> str:
    return f"; {note}" if note else ""


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
