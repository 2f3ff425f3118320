"""What the options before a command say, handed to every command.

What the settings mean is left to `config.py`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reactune.config import Config


@dataclass
class Session:
    """One call of the command line; filled in by the options before the command."""

    file: Path | None = None
    overrides: tuple[str, ...] = ()
    verbose: bool = False

    def config(self) -> "Config":
        """The settings; ConfigError if there is something wrong with them."""
        from reactune.config import load

        return load(self.file, self.overrides)


def require_training() -> None:
    """Fail as the first import of a missing library would, but before anything is done."""
    for library in ("torch", "transformers", "mlflow", "ibis", "gguf"):
        if find_spec(library) is None:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
