"""Chat templates as transformers renders them (`transformers.utils.chat_template_utils`, 5.23).

The same sandbox, white space, extensions, filters and variables, without that library. What a
template is told besides the messages is in `Template`, so that its text depends on nothing else.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from reactune.errors import ReleaseError

TEMPLATE_FILE = "chat_template.jinja"
Message = Mapping[str, str]
# A template is a program: what its expressions may raise besides Jinja's own errors.
FAULTS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


@dataclass(frozen=True)
class Template:
    """A chat template and what it is told: the tokenizer's named tokens, and the day.

    Without a `day` it is rendered as release 0.1 did, which told it neither a day nor
    whether to think.
    """

    source: str = field(repr=False)
    tokens: Mapping[str, str]
    day: date | None

    def render(self, messages: Sequence[Message], *, asks: bool = True) -> str:
        """The text of the messages; if it `asks`, up to where the model's answer starts.

        Raises:
            ReleaseError: the template refuses the messages, or is none.
        """
        try:
            return _compiled(self.source).render(
                messages=list(messages), add_generation_prompt=asks, **self._variables()
            )
        except FAULTS as error:
            raise ReleaseError(
                f"the model's chat template does not render: {error}; {_advice(messages)}"
            ) from error

    def _variables(self) -> dict[str, Any]:
        if self.day is None:
            return {name: self.tokens.get(name, "") for name in ("bos_token", "eos_token")}
        moment = datetime.combine(self.day, time())
        return {
            **self.tokens,
            "tools": None,
            "documents": None,
            "enable_thinking": False,
            "strftime_now": moment.strftime,
        }


def _advice(messages: Sequence[Message]) -> str:
    if any(message["role"] == "system" for message in messages):
        return 'if it takes no system message, set [prompt] system = "" and use its instruction'
    return "name a file with another one in [prompt] template"


def template_in(folder: Path, names: Mapping[str, Any]) -> str | None:
    """The template of a model's folder, given its `tokenizer_config.json`; None if it has none.

    `chat_template.jinja` goes before the setting. Of several that have names, it is `default`.

    Raises:
        ReleaseError: there are several, and none is called `default`.
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    file = folder / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = names.get("chat_template")
    if found is None or isinstance(found, str):
        return found
    named = found if isinstance(found, dict) else {one["name"]: one["template"] for one in found}
    if "default" not in named:
        raise ReleaseError(
            f"{folder} holds the chat templates {', '.join(sorted(named))}, none of them called "
            "default; save one as a file and name it in [prompt] template"
        )
    template: str = named["default"]
    return template


def named_tokens(names: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that a tokenizer's settings name, such as `bos_token`, for a template."""
    texts = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in names.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def marks_of(tokenizer: Tokenizer, source: str) -> tuple[str, ...]:
    """Texts of tokens that no user and no model may write: longest first.

    As in transformers' `sanitize_control_tokens`, the special tokens, and those that the template
    holds; not white space, which some tokenizers have as added tokens.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    texts = {
        token.content
        for token in added
        if len(token.content.strip()) > 1 and (token.special or token.content in source)
    }
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


def turn_end(template: Template, marks: Sequence[str]) -> str | None:
    """The token with which the template ends an answer; None if it shows none.

    It may be another than `eos_token`: Gemma and Phi-3 end answers with a token of their own.
    """
    answer = "ANSWER-MARK"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = template.render(turns, asks=False)
    except ReleaseError:
        return None
    after = text.rpartition(answer)[2].lstrip()
    return next((mark for mark in marks if after.startswith(mark)), None)


@cache
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training with masks; the text stays."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
