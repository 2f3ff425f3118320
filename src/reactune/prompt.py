"""The context assembler, the chat template, and token ids: one truth for training and serving.

It needs only `tokenizers` and `jinja2`; models, files of a release and rows are others' work.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from reactune.config import PromptConfig
from reactune.context import (
    CleanPart,
    Part,
    break_special_tokens,
    clean_part,
    line,
    scrub_part,
    shorten,
)
from reactune.errors import DataError, ReleaseError
from reactune.records import Prompt, canonical_json

VERSION = 1  # of the logged context: raise it when rendering changes
# No token stands for more characters than this, so a text longer than budget x this is over.
MAX_TOKEN_CHARS = 32


@dataclass(frozen=True)
class Chat:
    """A model's tokenizer and chat template, with the prompt settings, held open."""

    settings: PromptConfig
    tokenizer: Tokenizer = field(repr=False)
    template: str = field(repr=False)
    stop: str
    start: str


def load_chat(folder: Path, settings: PromptConfig) -> Chat:
    """Open the tokenizer and chat template that lie in a model's folder.

    Raises:
        ReleaseError: a file is missing, or the model has no chat template.
    """
    try:
        names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        template_file = folder / "chat_template.jinja"
        template = (
            template_file.read_text(encoding="utf-8")
            if template_file.is_file()
            else names["chat_template"]
        )
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except (OSError, KeyError, ValueError) as error:
        raise ReleaseError(
            f"{folder} holds no usable tokenizer and chat template ({error!r}); "
            "take an instruction-tuned base model"
        ) from error
    stop, start = (_token_text(names.get(name)) for name in ("eos_token", "bos_token"))
    if not stop:
        raise ReleaseError(f"{folder}: tokenizer_config.json names no eos_token")
    return Chat(settings=settings, tokenizer=tokenizer, template=template, stop=stop, start=start)


def assemble(
    chat: Chat, kind: str, context: Mapping[str, Part], *, names: Iterable[str] = ()
) -> Prompt:
    """Build what the model sees for one tip, and what is logged of it.

    Keys that are not in `context_keys` are dropped; personal data and the people in `names` become
    typed placeholders; texts lose control characters and line breaks; and what is over
    `max_context_tokens` is cut in `cut_order`: lists lose their last items (so put the newest
    first), texts their end, everything else goes whole. `rebuild` of the logged `context_json`
    gives the same token ids.

    Raises:
        DataError: a value is of a type that has no place in a context.
    """
    placeholders: dict[str, str] = {}
    people = tuple(names)
    limit = chat.settings.max_context_tokens * MAX_TOKEN_CHARS
    cleaned = {
        key: clean_part(context[key], key=key, tokenizer=chat.tokenizer, max_chars=limit)
        for key in chat.settings.context_keys
        if context.get(key) is not None
    }
    parts = {key: part for key, part in cleaned.items() if part not in ("", [], {})}
    while True:
        scrubbed = {
            key: scrub_part(part, placeholders=placeholders, names=people)
            for key, part in parts.items()
        }
        fitting = _fit(chat, scrubbed)
        if fitting == parts:
            break
        # Cutting may uncover something to scrub, and scrubbing lengthens: go on until neither does.
        parts = fitting
    context_json = canonical_json({"v": VERSION, "context": parts})
    return _prompt(chat, kind, parts, context_json, placeholders)


def rebuild(chat: Chat, kind: str, context_json: str) -> Prompt:
    """The prompt of a logged context: the same token ids as when it was assembled.

    A context that another app logged in its own form is assembled first.

    Raises:
        DataError: the text is no JSON object, or of a version that this release does not know.
    """
    try:
        logged = json.loads(context_json)
    except ValueError as error:
        raise DataError(f"context_json of a {kind!r} tip is not JSON") from error
    if not isinstance(logged, dict):
        raise DataError(f"context_json of a {kind!r} tip is no JSON object")
    if logged.keys() != {"v", "context"}:
        return assemble(chat, kind, logged)
    if logged["v"] != VERSION:
        raise DataError(f"context_json has version {logged['v']!r}; this release reads {VERSION}")
    return _prompt(chat, kind, logged["context"], context_json, {})


def completion_ids(chat: Chat, tip: str) -> tuple[int, ...]:
    """Token ids of the tip as the model would write it, with the stop token at the end."""
    text = break_special_tokens(tip.strip(), tokenizer=chat.tokenizer)
    return (*_encode(chat, text), *_encode(chat, chat.stop))


def instruction_of(chat: Chat, kind: str) -> str:
    """The instruction of a kind of tip: Alpaca's `instruction`."""
    return chat.settings.instructions.get(kind, chat.settings.instruction)


def input_of(context: Mapping[str, CleanPart], settings: PromptConfig) -> str:
    """The context as the model reads it, one line a key: Alpaca's `input`."""
    lines = [line(key, context[key]) for key in settings.context_keys if key in context]
    return "\n".join(lines)


def render(chat: Chat, user_text: str) -> str:
    """The whole prompt text for one user message, up to where the model's answer starts."""
    system = [{"role": "system", "content": chat.settings.system}] if chat.settings.system else []
    return _render(chat, [*system, {"role": "user", "content": user_text}])


def user_text_of(chat: Chat, kind: str, context: Mapping[str, CleanPart]) -> str:
    """The user message: the kind's instruction and the context."""
    context_text = input_of(context, chat.settings)
    instruction = instruction_of(chat, kind)
    return f"{instruction}\n\n{context_text}" if context_text else instruction


def user_text(chat: Chat, prompt: Prompt) -> str:
    """The user message of an assembled prompt, for a server that applies the template itself."""
    return user_text_of(chat, prompt.kind, json.loads(prompt.context_json)["context"])


def few_shot(chat: Chat, prompt: Prompt, examples: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Token ids of the prompt after earlier turns: pairs of (logged context, liked tip)."""
    messages: list[dict[str, str]] = []
    if chat.settings.system:
        messages.append({"role": "system", "content": chat.settings.system})
    for context_json, tip in examples:
        context = json.loads(context_json)["context"]
        user_text = user_text_of(chat, prompt.kind, context)
        messages += [{"role": "user", "content": user_text}, {"role": "assistant", "content": tip}]
    context = json.loads(prompt.context_json)["context"]
    messages.append({"role": "user", "content": user_text_of(chat, prompt.kind, context)})
    return _encode(chat, _render(chat, messages))


def ollama_template(chat: Chat) -> tuple[str, str]:
    """Ollama's Go template and system prompt that give the same text as `render`.

    Derived by rendering the chat template around marks: no list of known models is needed.
    """
    system_mark, user_mark = "SYSTEM-MARK", "USER-MARK"
    marked = _render(
        chat,
        [{"role": "system", "content": system_mark}, {"role": "user", "content": user_mark}],
    )
    before, _, rest = marked.partition(system_mark)
    between, _, after = rest.partition(user_mark)
    plain = render(chat, user_mark)
    head, _, tail = plain.partition(user_mark)
    if (
        system_mark in marked
        and head.startswith(before)
        and head.endswith(between)
        and tail == after
    ):
        system = head[len(before) : len(head) - len(between)]
        return (
            before + "{{ .System }}" + between + "{{ .Prompt }}" + after + "{{ .Response }}",
            system,
        )
    return head + "{{ .Prompt }}" + tail + "{{ .Response }}", ""


def write_prompt_folder(chat: Chat, model_folder: Path, out: Path) -> None:
    """Copy what a service needs to make this model's prompts, and Ollama's form of it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_bytes((model_folder / name).read_bytes())
    template, system = ollama_template(chat)
    for name, text in (("ollama_template", template), ("system", system), ("stop", chat.stop)):
        (out / f"{name}.txt").write_text(text, encoding="utf-8")
    (out / "prompt.json").write_text(chat.settings.model_dump_json(indent=2), encoding="utf-8")


def _prompt(
    chat: Chat,
    kind: str,
    context: Mapping[str, CleanPart],
    context_json: str,
    placeholders: Mapping[str, str],
) -> Prompt:
    text = render(chat, user_text_of(chat, kind, context))
    return Prompt(
        kind=kind,
        context_json=context_json,
        text=text,
        token_ids=_encode(chat, text),
        placeholders=placeholders,
    )


def _render(chat: Chat, messages: list[dict[str, str]]) -> str:
    try:
        return _compile(chat.template).render(
            messages=messages, add_generation_prompt=True, bos_token=chat.start, eos_token=chat.stop
        )
    except TemplateError as error:
        raise ReleaseError(f"the model's chat template does not render: {error}") from error


@cache
def _compile(template: str) -> Template:
    # The same two options as transformers, so that templates give the same text.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template)


def _encode(chat: Chat, text: str) -> tuple[int, ...]:
    return tuple(chat.tokenizer.encode(text, add_special_tokens=False).ids)


def _token_text(token: str | Mapping[str, str] | None) -> str:
    if token is None or isinstance(token, str):
        return token or ""
    return token["content"]


def _fit(chat: Chat, parts: Mapping[str, CleanPart]) -> dict[str, CleanPart]:
    """Cut the parts until their text has at most `max_context_tokens` tokens."""
    kept = dict(parts)
    named = [key for key in chat.settings.cut_order if key in kept]
    order = [key for key in kept if key not in named] + named
    while order:
        over = len(_encode(chat, input_of(kept, chat.settings))) - chat.settings.max_context_tokens
        if over <= 0:
            break
        shorter = shorten(kept[order[0]], over, tokenizer=chat.tokenizer)
        if shorter is None:
            del kept[order.pop(0)]
        else:
            kept[order[0]] = shorter
    return kept
