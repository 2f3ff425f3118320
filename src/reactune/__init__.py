"""reactune: from what users did with generated tips to a better tip generator."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reactune.client.http import AsyncClient as AsyncClient
    from reactune.client.http import Client as Client
    from reactune.client.router import Router as Router

__version__ = "0.1.0"
_HOMES = {"Router": "client.router", "Client": "client.http", "AsyncClient": "client.http"}


def __getattr__(name: str) -> Any:
    # Imported when asked for, so that the command line starts without what apps need.
    if name not in _HOMES:
        raise AttributeError(f"module 'reactune' has no attribute {name!r}")
    return getattr(import_module(f"reactune.{_HOMES[name]}"), name)
