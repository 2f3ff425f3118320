"""The settings as text: the commented file that `init` writes, and the table that is in force.

Reading settings is left to `config.py`.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from reactune.config import Config, Section, without_passwords

HEADER = """\
# Settings of reactune. Every key is shown with its default, commented out.
# Precedence: default < this file < `--set section.key=value`. Secrets never stand here.
"""
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def sections() -> dict[str, type[Section]]:
    """The sections of the file by name, in the order of the settings."""
    kinds = {name: field.annotation for name, field in Config.model_fields.items()}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Section)
    }


def commented_file(chosen: Config) -> str:
    """A settings file: defaults commented out, whatever `chosen` has otherwise in force."""
    lines = [HEADER]
    for name, section in sections().items():
        lines += [f"# {_summary(section)}", f"[{name}]"]
        values, standard = getattr(chosen, name), section()
        for key, field in section.model_fields.items():
            value = getattr(values, key)
            mark = "# " if value == getattr(standard, key) else ""
            lines += [f"# {_one_line(field.description)}", f"{mark}{key} = {toml_value(value)}"]
        lines.append("")
    return "\n".join(lines)


def resolved(config: Config) -> str:
    """Every setting in force as TOML, passwords hidden; what is not the default is marked."""
    standard, lines = without_passwords(Config()), []
    for name, values in without_passwords(config).items():
        lines.append(f"[{name}]")
        for key, value in values.items():
            default = standard[name][key]
            mark = "" if value == default else f"  # default: {toml_value(default)}"
            lines.append(f"{key} = {toml_value(value)}{mark}")
        lines.append("")
    return "\n".join(lines)


def described() -> Iterator[tuple[str, str, str, str, str]]:
    """Section, key, type, default and meaning of every setting."""
    for name, section in sections().items():
        standard = section()
        for key, field in section.model_fields.items():
            yield (
                name,
                key,
                _type_name(section, key),
                toml_value(getattr(standard, key)),
                _one_line(field.description),
            )


def toml_value(value: Any) -> str:
    """One value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    return repr(value)


def _toml_key(key: str) -> str:
    return key if BARE_KEY.fullmatch(key) else toml_value(key)


def _type_name(section: type[Section], key: str) -> str:
    """The type as JSON Schema tells it, with its choices or its range."""
    schema = section.model_json_schema()["properties"][key]
    if "enum" in schema:
        return " or ".join(toml_value(choice) for choice in schema["enum"])
    if "const" in schema:
        return toml_value(schema["const"])
    name = {"array": "list", "object": "table"}.get(schema["type"], schema["type"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[word]:g}" for word, sign in signs.items() if word in schema]
    return ", ".join([name, *limits])


def _summary(section: type[Section]) -> str:
    return _one_line(section.__doc__)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
