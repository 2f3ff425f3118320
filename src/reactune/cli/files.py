"""Files of rows as arguments; `-` is what stands on standard input."""

import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import click

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
HEAD_BYTES = 4_096


class RowsFile(click.Path):
    """The path of a file that exists; of `-` that of a copy, which ends with the command.

    A file of rows is read more than once, a pipe only once.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, dir_okay=False, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As of every path, with the name of the copy."""
        path = super().convert(value, param, ctx)
        if value != "-" or ctx is None or ctx.resilient_parsing:
            return path
        return ctx.with_resource(_standard_input())


@contextmanager
def _standard_input() -> Iterator[Path]:
    """A copy named by what it holds; a kill leaves its name behind, and nothing of its content."""
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


def ending_of_content(head: bytes) -> str:
    """The ending that a file of rows has in its name, by its first bytes: JSONL if they are none.

    Text that begins with neither a brace nor a bracket is CSV.
    """
    if head.startswith(PARQUET):
        return ".parquet"
    if head.startswith(GZIP):
        return f"{ending_of_content(_unpacked(head))}.gz"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return ".jsonl" if not text or text[:1] in b"{[" else ".csv"


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head)
    except zlib.error:
        return b""
