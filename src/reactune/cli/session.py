"""The options before a command, JSON, and tracebacks that quote neither people nor passwords."""

import io
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from reactune.errors import ReactuneError, hide_passwords

if TYPE_CHECKING:
    from reactune.config.settings import Config


FULL = "REACTUNE_TRACEBACKS"
WITHHELD = f"(its message may quote users; {FULL}=full shows it)"
# The system words their messages, which hold only names of files and modules.
PLAIN = (ReactuneError, OSError, ImportError, MemoryError, RecursionError)
# What a terminal takes for commands, and what turns the direction of what follows.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
JOINTS = {
    "__cause__": "\nThe above exception was the direct cause of the following exception:\n\n",
    "__context__": "\nDuring handling of the above exception, another exception occurred:\n\n",
}


def where(error: BaseException) -> str:
    """The traceback with names of files, functions and types, and our own messages alone."""
    if os.environ.get(FULL) == "full":
        return hide_passwords("".join(traceback.format_exception(error)))
    earlier = ""
    if error.__cause__ is not None:
        earlier = where(error.__cause__) + JOINTS["__cause__"]
    elif error.__context__ is not None and not error.__suppress_context__:
        earlier = where(error.__context__) + JOINTS["__context__"]
    frames = "".join(traceback.format_tb(error.__traceback__))
    inner = "".join(
        f"\nof which:\n{where(each)}"
        for each in (error.exceptions if isinstance(error, BaseExceptionGroup) else ())
    )
    return f"{earlier}Traceback (most recent call last):\n{frames}{named(error)}\n{inner}"


def named(error: BaseException) -> str:
    """The type of an error, with its message if that cannot quote a user."""
    kind = type(error)
    is_ours = issubclass(kind, ReactuneError)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    if is_ours or (kind.__module__ == "builtins" and isinstance(error, PLAIN)):
        return hide_passwords(f"{name}: {error}")
    return f"{name} {WITHHELD}"


def word_tracebacks() -> None:
    """Word every traceback of this process by `where`: of the program, its threads, its logs.

    Hooks that were set before, such as a debugger's, stay.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _report
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _report_thread
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(without_secrets)


def in_one_line(text: str) -> str:
    """A text of a file or a user as one line that a terminal shows and does not obey.

    Control characters are escapes as in JSON.
    """
    return CONTROL.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def in_lines(text: str) -> str:
    """As `in_one_line`, of a text of several lines."""
    return "\n".join(map(in_one_line, text.split("\n")))


def print_any_text() -> None:
    """Let standard output take half an emoji, and letters that its encoding lacks, as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def without_secrets(record: logging.LogRecord) -> bool:
    """A filter of a log: passwords in URLs are hidden, and `where` words the traceback."""
    record.msg, record.args = hide_passwords(record.getMessage()), None
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = where(record.exc_info[1]).rstrip("\n")
        record.exc_info = None
    return True


def _report(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, frames)
        return
    sys.stderr.write(where(error))


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is not None:
        name = failure.thread.name if failure.thread else "?"
        sys.stderr.write(f"in thread {name}:\n{where(failure.exc_value)}")


@dataclass
class Session:
    """One call of the command line; filled in by the options before the command."""

    file: Path | None = None
    overrides: tuple[str, ...] = ()
    verbose: bool = False

    def config(self) -> "Config":
        """The settings; ConfigError if there is something wrong with them."""
        from reactune.config.settings import load

        return load(self.file, self.overrides)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(value: Any) -> None:
    """Print plain values: times and paths as text, infinite numbers as null."""
    click.echo(in_lines(json.dumps(_finite(value), indent=2, default=str, ensure_ascii=False)))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def require_training() -> None:
    """Fail as the first import of a missing library would, but before anything is done."""
    for library in ("torch", "transformers", "mlflow", "ibis", "gguf"):
        if find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
