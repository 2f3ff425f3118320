"""The model server that the settings name, behind one signature.

What a server can do is in `llamacpp.py` and `ollama.py`.
"""

from reactune.config import ServeConfig
from reactune.records import Runtime
from reactune.release.llamacpp import LlamaCpp
from reactune.release.ollama import Ollama

RUNTIMES = {"llamacpp": LlamaCpp, "ollama": Ollama}


def connect(settings: ServeConfig) -> Runtime:
    """A connection to `[serve] runtime`; close it to stop what it started."""
    runtime: Runtime = RUNTIMES[settings.runtime](settings)
    return runtime
