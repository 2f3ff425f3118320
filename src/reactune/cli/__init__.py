"""The command line: every command, with its exit code, and one line for an error of ours.

The commands stand in `serve`, `data`, `run`, `analysis` and `users`. `session` holds the options
before a command, and words tracebacks and logs so that they quote neither people nor passwords.
Libraries are imported inside the commands, so that `--help` answers at once.
"""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from reactune import __version__
from reactune.cli import analysis, data, pages, run, serve, users
from reactune.cli.session import (
    Session,
    in_lines,
    in_one_line,
    print_any_text,
    where,
    word_tracebacks,
)
from reactune.environment import ask_own_machine_directly, have_a_home, limit_spinning
from reactune.errors import ReactuneError
from reactune.process import PARENT, die_with_parent

TRAIN = (
    "accelerate", "adbc_driver_manager", "adbc_driver_postgresql", "datasets", "duckdb", "gguf",
    "ibis", "mlflow", "peft", "pyarrow", "pygments", "safetensors", "torch",
    "transformers", "trl",
)  # fmt: skip
EXTRA_OF = {
    **dict.fromkeys(TRAIN, "train"),
    "ray": "ray",
    "vl_convert": "pages",
    "xllamacpp": "llamacpp",
    "psycopg": "postgres",
    "spacy": "names",
    **dict.fromkeys(("fsspec", "s3fs"), "s3"),
}

# What the system refuses, and what to do about it.
ADVICE = {
    errno.ENOSPC: "free some space on that disk, and repeat the command",
    errno.EDQUOT: "free some of the quota, and repeat the command",
    errno.EACCES: "give this user the right to it, or name another place in the settings",
    errno.EPERM: "give this user the right to it, or name another place in the settings",
    errno.EROFS: "name a place in the settings that can be written",
    errno.ENOENT: "make it, or name another in the settings",
    errno.ENOTDIR: "name a folder",
    errno.EEXIST: "move it away, or name another place",
    errno.EISDIR: "name a file",
    errno.EMFILE: "allow more open files (`ulimit -n`)",
    errno.EFBIG: "allow larger files (`ulimit -f`)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "replace the link, which leads to itself",
    errno.ENOMEM: "free some memory, and repeat the command",
}
CHECK_PLACE = "check that place; with `reactune -v` the error shows where it arose"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    envvar="REACTUNE_CONFIG",
    show_envvar=True,
    help="Settings file.  [default: reactune.toml of the current folder, if it is there]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="One setting for this call, such as --set train.lora_rank=8; may be repeated.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show where in the code an error arose.")
@click.version_option(__version__, prog_name="reactune")
@click.pass_obj
def commands(
    session: Session, file: Path | None, overrides: tuple[str, ...], verbose: bool
) -> None:
    """Turn what users did with generated tips into a better tip generator.

    The loop: init, ingest, run (train a challenger, put it before 5 % of users), review.
    """
    session.file, session.overrides, session.verbose = file, overrides, verbose


for module in (serve, data, run, analysis, users, pages):
    for command in module.COMMANDS:
        commands.add_command(command)


def _refused(error: OSError) -> str | None:
    """What the system refused, and what to do; None for what nobody can do anything about."""
    if type(error) is OSError and error.errno is None:
        # numpy forgets the number where a file can be written in part only.
        return f"a file could not be written whole ({error}); {ADVICE[errno.ENOSPC]}"
    if isinstance(error.filename, str | bytes):
        place = os.fsdecode(error.filename)
        return f"{place}: {error.strerror}; {ADVICE.get(error.errno or 0, CHECK_PLACE)}"
    if error.errno == errno.ENOENT:  # of the system's calls, this one names no place
        return "the current folder is gone; enter one that is there"
    if error.errno not in ADVICE:
        return None
    return f"{error.strerror}; {ADVICE[error.errno]}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0, 1 for an error of ours, 2 for wrong usage.

    The command ends with the process that REACTUNE_PARENT names, however that ends.
    """
    if PARENT in os.environ:
        die_with_parent()
    limit_spinning()
    have_a_home()
    ask_own_machine_directly()
    word_tracebacks()
    print_any_text()
    session = Session()
    try:
        commands.main(arguments, prog_name="reactune", obj=session)
    except ReactuneError as error:
        if session.verbose:
            click.echo(where(error), err=True, nl=False)
        click.echo(f"reactune: {in_lines(str(error))}", err=True)
        sys.exit(1)
    except OSError as error:
        line = _refused(error)
        if session.verbose or line is None:
            raise
        click.echo(f"reactune: {in_one_line(line)}", err=True)
        sys.exit(1)
    except RuntimeError as error:
        # How pathlib says ELOOP before Python 3.13.
        if session.verbose or not str(error).startswith("Symlink loop from "):
            raise
        click.echo(f"reactune: {in_one_line(str(error))}; {ADVICE[errno.ELOOP]}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None or session.verbose:
            raise
        advice = f"run `pip install 'reactune[{extra}]'`"
        click.echo(f"reactune: this command needs {error.name}; {advice}", err=True)
        sys.exit(1)
