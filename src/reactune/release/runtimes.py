"""The model server that the settings name, behind one signature.

What a server can do is in `llamacpp.py` and `ollama.py`.
"""

from collections.abc import Callable

from reactune.config.sections import ServeConfig
from reactune.model.prompt import Chat, user_text
from reactune.records import ModelVersion, Prompt, Runtime
from reactune.release.llamacpp import LlamaCpp
from reactune.release.ollama import Ollama

RUNTIMES = {"llamacpp": LlamaCpp, "ollama": Ollama}


def connect(settings: ServeConfig) -> Runtime:
    """A connection to `[serve] runtime`; close it to stop what it started."""
    runtime: Runtime = RUNTIMES[settings.runtime](settings)
    return runtime


def chat_counter(
    runtime: Runtime, model: ModelVersion, chat: Chat
) -> Callable[[Prompt], int] | None:
    """How many tokens the server's own chat template makes of a prompt; None if it has none."""
    if not isinstance(runtime, Ollama):
        return None
    ask = runtime.chat_prompt_tokens
    return lambda prompt: ask(model, user_text(chat, prompt))


def point_aliases(
    runtime: Runtime,
    family: str,
    models: dict[str, ModelVersion | None],
    *,
    fetch: Callable[[ModelVersion], None],
) -> list[str]:
    """Let the server's mutable tags follow what is live, where it has any; say what moved.

    `fetch` brings the files of a version here before it is published.
    """
    if not isinstance(runtime, Ollama):
        return []
    moved = []
    for alias, model in models.items():
        name = f"{family}:{alias}"
        if model is None:
            if name in runtime.names():
                runtime.forget(name)
                moved.append(f"Ollama tag {name}: removed")
            continue
        fetch(model)
        runtime.publish(model)
        if runtime.point(name, model):
            moved.append(f"Ollama tag {name}: -> {model.name}")
    return moved
