"""Every model server by its name in `[serve] runtime`; a new one is added to `RUNTIMES`."""

from collections.abc import Callable, Mapping

from reactune.config.sections import ServeConfig
from reactune.records import Runtime
from reactune.release.llamacpp import LlamaCpp
from reactune.release.ollama import Ollama
from reactune.release.openai import OpenAICompatible

RUNTIMES: Mapping[str, Callable[[ServeConfig], Runtime]] = {
    "llamacpp": LlamaCpp,
    "ollama": Ollama,
    "openai": OpenAICompatible,
}


def connect(settings: ServeConfig) -> Runtime:
    """A connection to `[serve] runtime`; close it to stop what it started."""
    return RUNTIMES[settings.runtime](settings)
