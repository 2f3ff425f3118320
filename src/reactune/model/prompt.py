"""What a model sees for one tip: the same token ids when it is trained, judged and served.

A version's prompt folder holds all that a service and a model server need to make its prompts.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from reactune.config.sections import PrivacyConfig, PromptConfig, ServeConfig
from reactune.errors import DataError, ReleaseError
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
from reactune.model.templates import (
    TEMPLATE_FILE,
    Template,
    marks_of,
    named_tokens,
    template_in,
    turn_end,
)
from reactune.pii.detectors import cached, open_detector
from reactune.pii.spans import Detector
from reactune.records import ModelVersion, Prompt, read_utf8

# No token stands for more characters than this, so a text longer than budget x this is over.
MAX_TOKEN_CHARS = 32
MAX_TEXTS = 10_000  # of one context, each searched once for personal data
SETTINGS = "prompt.json"  # in a prompt folder alone: the settings that its prompts are made by
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
DETECTORS = "detectors.json"  # in a prompt folder: which texts were placeholders in training
FRAME_TOKENS = 704  # system prompt, instruction and turns around the context block
STEP = 256  # servers round to this anyway
DEFAULT_PRIVACY = PrivacyConfig()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chat:
    """A model's tokenizer and chat template, with the prompt settings, held open.

    `stop` ends an answer. `marks` are texts of tokens that no user and no model may write.
    """

    settings: PromptConfig
    privacy: PrivacyConfig
    tokenizer: Tokenizer = field(repr=False)
    template: Template
    stop: str
    marks: tuple[str, ...] = field(repr=False)
    detect: Detector = field(repr=False)


def load_chat(
    folder: Path, settings: PromptConfig, *, privacy: PrivacyConfig = DEFAULT_PRIVACY
) -> Chat:
    """Open the tokenizer and chat template of a model's folder, and what finds personal data.

    A version's prompt folder has its own template and day, whatever `settings` say of them; for a
    base model `settings.template` goes before its own, and without `settings.date` it is today.

    Raises:
        ReleaseError: a file is missing or broken, or there is no chat template.
        PrivacyError: a model that finds names is missing.
    """
    released = _released_settings(folder)
    names, tokenizer = _named_in(folder), _open_tokenizer(folder)
    named = None if released or not settings.template else settings.path(settings.template)
    source = _template_source(folder, names, named)
    template = Template(source, named_tokens(names), _day_of(folder, released or {}, settings))
    _warn_of_other_detectors(folder, privacy)
    marks = marks_of(tokenizer, source)
    stop = turn_end(template, marks) or template.tokens.get("eos_token")
    if not stop:
        raise ReleaseError(
            f"{folder}: tokenizer_config.json names no eos_token, and the chat template ends no "
            "answer with a special token; name the eos_token there"
        )
    return Chat(settings, privacy, tokenizer, template, stop, marks, open_detector(privacy))


def chat_of_version(chat: Chat, model: ModelVersion) -> Chat:
    """`chat` with the template, day and tokenizer of a version's own prompt folder.

    Where template and tokens are the same, so is the tokenizer, which takes seconds to open.

    Raises:
        ReleaseError: a file of the folder is missing or broken.
    """
    folder = model.prompt_folder
    released = _released_settings(folder)
    if released is None:
        return chat
    names = _named_in(folder)
    source = _template_source(folder, names, None)
    template = Template(source, named_tokens(names), _day_of(folder, released, chat.settings))
    if (source, template.tokens) == (chat.template.source, chat.template.tokens):
        return replace(chat, template=template)
    tokenizer = _open_tokenizer(folder)
    return replace(
        chat,
        tokenizer=tokenizer,
        template=template,
        stop=stop_text(model),
        marks=marks_of(tokenizer, source),
    )


def rendered_for(chat: Chat, prompt: Prompt) -> Prompt:
    """An assembled prompt, its text and token ids as another version's chat makes them."""
    text = render(chat, user_text(chat, prompt))
    return replace(prompt, text=text, token_ids=_encode(chat, text))


def _released_settings(folder: Path) -> dict[str, Any] | None:
    """The settings in a version's prompt folder; None for the folder of a model.

    Raises:
        ReleaseError: they cannot be read.
    """
    file = folder / SETTINGS
    if not (file.is_file() and (folder / "stop.txt").is_file()):
        return None
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{file} is broken ({error}); export the version again") from error
    return settings


def _named_in(folder: Path) -> dict[str, Any]:
    """The settings of a tokenizer, which name its tokens.

    Raises:
        ReleaseError: they are missing or broken.
    """
    older = folder / "special_tokens_map.json"
    try:
        names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if older.is_file():
            names = {**json.loads(older.read_text(encoding="utf-8")), **names}
    except (OSError, TypeError, ValueError) as error:
        raise _unusable(folder, error) from error
    return dict(names)


def _open_tokenizer(folder: Path) -> Tokenizer:
    """Open `tokenizer.json`.

    Raises:
        ReleaseError: it is missing or broken.
    """
    try:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        json.loads(text)  # whose error has a type of its own, unlike those of the library
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error
    return Tokenizer.from_str(text)


def _unusable(folder: Path, error: Exception) -> ReleaseError:
    return ReleaseError(
        f"{folder} holds no usable tokenizer ({error!r}); where tokenizer.json is missing, "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes it"
    )


def _template_source(folder: Path, names: Mapping[str, Any], named: Path | None) -> str:
    try:
        if named:
            return read_utf8(named)
        source = template_in(folder, names)
    except (OSError, DataError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"the chat template {named or f'in {folder}'} cannot be read ({error!r}); name a file "
            "with one in [prompt] template"
        ) from error
    if source is None:
        raise ReleaseError(
            f"{folder} holds no chat template; take an instruction-tuned base model, or name a "
            "file with a template in [prompt] template"
        )
    return source


def _day_of(folder: Path, released: Mapping[str, Any], settings: PromptConfig) -> date | None:
    """The day that a template is told; None for a version of a release that told none."""
    if not released:
        return date.fromisoformat(settings.date) if settings.date else datetime.now(UTC).date()
    try:
        return date.fromisoformat(released["date"]) if "date" in released else None
    except (TypeError, ValueError) as error:
        raise ReleaseError(
            f"{folder / SETTINGS}: date = {released['date']!r} is no day; export it again"
        ) from error


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
        key: clean_part(part, key=key, marks=chat.marks, max_chars=limit)
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
    text = break_special_tokens(tip.strip(), chat.marks)
    return (*_encode(chat, text), *_encode(chat, chat.stop))


def stop_id(chat: Chat) -> int:
    """The id of the token that ends an answer."""
    return _encode(chat, chat.stop)[-1]


def tip_token_ids(chat: Chat, tip: str) -> tuple[int, ...]:
    """Token ids of a tip whose reward is wanted: those of `completion_ids` without the last."""
    return completion_ids(chat, tip)[:-1]


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
    """The text of several messages, up to where the model's answer starts.

    Raises:
        ReleaseError: the template refuses them, such as one that takes no system message.
    """
    return chat.template.render(messages)


def _encode(chat: Chat, text: str) -> tuple[int, ...]:
    return tuple(chat.tokenizer.encode(text, add_special_tokens=False).ids)


def write_prompt_folder(chat: Chat, model_folder: Path, out: Path) -> None:
    """Copy what a service needs to make this model's prompts, and Ollama's form of it."""
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        (out / name).write_bytes((model_folder / name).read_bytes())
    texts = {
        TEMPLATE_FILE: chat.template.source,
        "stop.txt": chat.stop,
        SETTINGS: _settings_of(chat).model_dump_json(indent=2),
        DETECTORS: detectors_of(chat.privacy),
        **dict(zip(("ollama_template.txt", "system.txt"), ollama_template(chat), strict=True)),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")


def _settings_of(chat: Chat) -> PromptConfig:
    """The prompt settings with the day that is in force, and without the place of a file."""
    day = chat.template.day.isoformat() if chat.template.day else ""
    return chat.settings.model_copy(update={"date": day, "template": ""})


def ollama_template(chat: Chat) -> tuple[str, str]:
    """Ollama's Go template and system prompt that give the same text as `render`.

    Derived by rendering the chat template around marks, so no list of known models is needed. The
    system prompt is the one of the settings, or the template's own. Where the template puts it
    elsewhere than a system message, or takes none, it is part of the Go template.
    """
    system_mark, user_mark = "SYSTEM-MARK", "USER-MARK"
    head, _, tail = render(chat, user_mark).partition(user_mark)
    ending = _go_text(tail) + "{{ .Response }}"
    try:
        marked = chat.template.render(
            [{"role": "system", "content": system_mark}, {"role": "user", "content": user_mark}]
        )
    except ReleaseError:
        marked = ""
    before, found, rest = marked.partition(system_mark)
    between, _, after = rest.partition(user_mark)
    system = head[len(before) : len(head) - len(between)]
    if found and system and head == before + system + between and tail == after:
        start = f"{_go_text(before)}{{{{ .System }}}}{_go_text(between)}"
        return f"{start}{{{{ .Prompt }}}}{ending}", system
    return f"{_go_text(head)}{{{{ .Prompt }}}}{ending}", ""


def _go_text(text: str) -> str:
    """The text as a Go template that writes it."""
    return text.replace("{{", '{{ "{{" }}')


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


@lru_cache
def start_text(model: ModelVersion) -> str:
    """The text of the token that begins a text; empty where the model has none.

    Raises:
        ReleaseError: the version's prompt folder is missing or broken.
    """
    return named_tokens(_named_in(model.prompt_folder)).get("bos_token", "")


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
