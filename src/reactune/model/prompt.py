"""What a model sees for one tip: the same token ids when it is trained, judged and served.

A version's prompt folder holds all that a service and a model server need to make its prompts.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError
from tokenizers import Tokenizer

from reactune.config.sections import PrivacyConfig, PromptConfig, ServeConfig
from reactune.errors import ReleaseError
from reactune.model.context import (
    CleanPart,
    LoggedContext,
    Part,
    break_special_tokens,
    clean_part,
    context_to_log,
    entry_names,
    line,
    parse_context,
    scrub_parts,
    shorten,
)
from reactune.pii.detectors import cached, open_detector
from reactune.pii.spans import Detector
from reactune.records import ModelVersion, Prompt

# No token stands for more characters than this, so a text longer than budget x this is over.
MAX_TOKEN_CHARS = 32
MAX_TEXTS = 10_000  # of one context, each searched once for personal data
DETECTORS = "detectors.json"  # in a prompt folder: which texts were placeholders in training
FRAME_TOKENS = 704  # system prompt, instruction and turns around the context block
STEP = 256  # servers round to this anyway
DEFAULT_PRIVACY = PrivacyConfig()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chat:
    """A model's tokenizer and chat template, with the prompt settings, held open."""

    settings: PromptConfig
    privacy: PrivacyConfig
    tokenizer: Tokenizer = field(repr=False)
    template: str = field(repr=False)
    stop: str
    start: str
    detect: Detector = field(repr=False)


def load_chat(
    folder: Path, settings: PromptConfig, *, privacy: PrivacyConfig = DEFAULT_PRIVACY
) -> Chat:
    """Open the tokenizer and chat template of a model's folder, and what finds personal data.

    Raises:
        ReleaseError: a file is missing, or the model has no chat template.
        PrivacyError: a model that finds names is missing.
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
    _warn_of_other_detectors(folder, privacy)
    stop, start = (_token_text(names.get(name)) for name in ("eos_token", "bos_token"))
    if not stop:
        raise ReleaseError(f"{folder}: tokenizer_config.json names no eos_token")
    return Chat(
        settings=settings,
        privacy=privacy,
        tokenizer=tokenizer,
        template=template,
        stop=stop,
        start=start,
        detect=open_detector(privacy),
    )


def _token_text(token: str | Mapping[str, str] | None) -> str:
    if token is None or isinstance(token, str):
        return token or ""
    return token["content"]


def _warn_of_other_detectors(folder: Path, privacy: PrivacyConfig) -> None:
    """A model learned which texts are placeholders; other settings show it prompts it never saw."""
    file = folder / DETECTORS
    if file.is_file() and file.read_text(encoding="utf-8") != detectors_of(privacy):
        log.warning(
            "%s was trained under other privacy.kinds or privacy.models than those of today; "
            "train again, or set them back",
            folder.parent.name,
        )


def detectors_of(privacy: PrivacyConfig) -> str:
    """What of the settings decides which texts a model sees as placeholders, as JSON."""
    return privacy.model_dump_json(include={"kinds", "models"})


def assemble(
    chat: Chat, kind: str, context: Mapping[str, Part | None], *, names: Iterable[str] = ()
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
    detect = cached(chat.detect, MAX_TEXTS)  # for this one context
    limit = chat.settings.max_context_tokens * MAX_TOKEN_CHARS
    cleaned = {
        key: clean_part(part, key=key, tokenizer=chat.tokenizer, max_chars=limit)
        for key in chat.settings.context_keys
        if (part := context.get(key)) is not None
    }
    parts = {key: part for key, part in cleaned.items() if part not in ("", [], {})}
    while True:
        scrubbed = scrub_parts(parts, placeholders=placeholders, names=people, detect=detect)
        fitting = _fit(chat, scrubbed)
        # Cutting may uncover something to scrub, scrubbing lengthens, and an entry whose name was
        # scrubbed has lost its label: repeat until nothing changes.
        is_settled = fitting == scrubbed and entry_names(parts) == entry_names(scrubbed)
        parts = fitting
        if is_settled:
            break
    return _prompt(chat, kind, parts, context_to_log(parts), placeholders)


def _fit(chat: Chat, parts: Mapping[str, CleanPart]) -> dict[str, CleanPart]:
    """Cut the parts until their text has at most `max_context_tokens` tokens."""
    kept = dict(parts)
    named = [key for key in chat.settings.cut_order if key in kept]
    order = [key for key in kept if key not in named] + named
    while order:
        text, limit = input_of(kept, chat.settings), chat.settings.max_context_tokens
        # No tokenizer makes more than one token of an ASCII character, but for one at the start.
        if text.isascii() and len(text) < limit:
            break
        over = len(_encode(chat, text)) - limit
        if over <= 0:
            break
        shorter = shorten(kept[order[0]], over, tokenizer=chat.tokenizer)
        if shorter is None:
            del kept[order.pop(0)]
        else:
            kept[order[0]] = shorter
    return kept


def rebuild(chat: Chat, kind: str, context_json: str) -> Prompt:
    """The prompt of a logged context: the same token ids as when it was assembled.

    A context that another app logged in its own form is assembled first.

    Raises:
        DataError: the text is no JSON object, or of a version that this release does not know.
    """
    return prompt_of(chat, kind, parse_context(context_json))


def prompt_of(chat: Chat, kind: str, logged: LoggedContext) -> Prompt:
    """As `rebuild`, of a context that is parsed already."""
    if not logged.is_assembled:
        return assemble(chat, kind, logged.parts)
    return _prompt(chat, kind, logged.parts, logged.text, {})


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
        context=context,
    )


def completion_ids(chat: Chat, tip: str) -> tuple[int, ...]:
    """Token ids of the tip as the model would write it, with the stop token at the end."""
    text = break_special_tokens(tip.strip(), tokenizer=chat.tokenizer)
    return (*_encode(chat, text), *_encode(chat, chat.stop))


def few_shot(chat: Chat, prompt: Prompt, examples: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """Token ids of the prompt after earlier turns: pairs of (logged context, liked tip)."""
    messages: list[dict[str, str]] = []
    if chat.settings.system:
        messages.append({"role": "system", "content": chat.settings.system})
    for context_json, tip in examples:
        earlier = user_text_of(chat, prompt.kind, parse_context(context_json).parts)
        messages += [{"role": "user", "content": earlier}, {"role": "assistant", "content": tip}]
    messages.append({"role": "user", "content": user_text(chat, prompt)})
    return _encode(chat, render_messages(chat, messages))


def user_text(chat: Chat, prompt: Prompt) -> str:
    """The user message of an assembled prompt, for a server that applies the template itself."""
    return user_text_of(chat, prompt.kind, prompt.context)


def user_text_of(chat: Chat, kind: str, context: Mapping[str, CleanPart]) -> str:
    """The user message: the kind's instruction and the context."""
    context_text = input_of(context, chat.settings)
    instruction = instruction_of(chat, kind)
    return f"{instruction}\n\n{context_text}" if context_text else instruction


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
    return render_messages(chat, [*system, {"role": "user", "content": user_text}])


def render_messages(chat: Chat, messages: list[dict[str, str]]) -> str:
    """The text of several messages, up to where the model's answer starts."""
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


def write_prompt_folder(chat: Chat, model_folder: Path, out: Path) -> None:
    """Copy what a service needs to make this model's prompts, and Ollama's form of it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_bytes((model_folder / name).read_bytes())
    template, system = ollama_template(chat)
    for name, text in (("ollama_template", template), ("system", system), ("stop", chat.stop)):
        (out / f"{name}.txt").write_text(text, encoding="utf-8")
    (out / "prompt.json").write_text(chat.settings.model_dump_json(indent=2), encoding="utf-8")
    (out / DETECTORS).write_text(detectors_of(chat.privacy), encoding="utf-8")


def ollama_template(chat: Chat) -> tuple[str, str]:
    """Ollama's Go template and system prompt that give the same text as `render`.

    Derived by rendering the chat template around marks, so no list of known models is needed.
    """
    system_mark, user_mark = "SYSTEM-MARK", "USER-MARK"
    marked = render_messages(
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


def context_tokens(model: ModelVersion, settings: ServeConfig) -> int:
    """Tokens of prompt and answer together, for which a server must have room.

    Raises:
        ReleaseError: the version's prompt folder is missing or broken.
    """
    needed = FRAME_TOKENS + _context_limit(model) + settings.max_tokens
    return -(-needed // STEP) * STEP


@lru_cache
def _context_limit(model: ModelVersion) -> int:
    # Called for every tip; the folder of a version does not change.
    try:
        prompt = PromptConfig.model_validate_json(read_prompt_file(model, "prompt.json"))
    except ValidationError as error:
        raise ReleaseError(
            f"{model.prompt_folder / 'prompt.json'} of {model.name} is broken; export it again"
        ) from error
    return prompt.max_context_tokens


def stop_text(model: ModelVersion) -> str:
    """The text of the token that ends an answer.

    Raises:
        ReleaseError: the version's prompt folder is missing or broken.
    """
    return read_prompt_file(model, "stop.txt")


def read_prompt_file(model: ModelVersion, name: str) -> str:
    """A text of the version's prompt folder.

    Raises:
        ReleaseError: it is not there, or no text.
    """
    file = model.prompt_folder / name
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(
            f"{file} of {model.name} cannot be read ({type(error).__name__}); export it again"
        ) from error
