"""Files of rows as arguments; `-` is what stands on standard input."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import click

from reactune.errors import hide_passwords

HEAD_BYTES = 4_096


class RowsFile(click.Path):
    """The path of a file that exists; of `-` that of a copy, which ends with the command.

    A file of rows is read more than once, a pipe only once.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, dir_okay=False, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As of every path, with the name of the copy."""
        if isinstance(value, str) and "://" in value and not Path(value).exists():
            self.fail(
                f"{hide_passwords(value)} is a URL, and rows are read from files of this machine; "
                "name one, or pipe them: `curl -sL URL | reactune ... -`",
                param,
                ctx,
            )
        path = super().convert(value, param, ctx)
        if value != "-" or ctx is None or ctx.resilient_parsing:
            return path
        return ctx.with_resource(_standard_input())


@contextmanager
def _standard_input() -> Iterator[Path]:
    """A copy named by what it holds; a kill leaves its name behind, and nothing of its content."""
    from reactune.data.readers import ending_of_content

    if sys.stdin is None:
        raise click.UsageError("- is standard input, and nothing stands there; name a file")
    source = sys.stdin.buffer
    with (
        tempfile.TemporaryFile() as copy,  # has no name of its own
        tempfile.TemporaryDirectory(prefix="reactune-") as folder,
    ):
        head = source.read(HEAD_BYTES)
        copy.write(head)
        copyfileobj(source, copy)
        copy.flush()
        path = Path(folder) / f"standard-input{ending_of_content(head)}"
        path.symlink_to(f"/proc/{os.getpid()}/fd/{copy.fileno()}")
        yield path
