"""All settings as one frozen value: read from TOML, checked, recorded, and written as TOML."""

import hashlib
import logging
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import tomlkit
from pydantic import ValidationError, model_validator
from tomlkit.items import Item

from reactune.config.sections import (
    CanaryConfig,
    DataConfig,
    DatasetConfig,
    ExportConfig,
    GateConfig,
    IngestConfig,
    LabelConfig,
    ModelConfig,
    PrivacyConfig,
    PromptConfig,
    RegistryConfig,
    RunConfig,
    Section,
    ServeConfig,
    SourceConfig,
    StoreConfig,
    TrainConfig,
    absolute,
)
from reactune.errors import ConfigError, DataError, hide_passwords
from reactune.records import read_utf8

CONFIG_NAME = "reactune.toml"
SQLITE_URL = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]*)(.*)", re.DOTALL)
HEADER = (
    "Settings of reactune. Every key is shown with its default, commented out.",
    "Precedence: default < this file < `--set section.key=value`. Secrets never stand here.",
    "Relative paths start at the folder of this file, and `~` is the home of who runs the command.",
)
# Settings of earlier versions that are read and have no effect, with the value in force now: that
# of the constant beside its reader.
REMOVED: Mapping[str, float | str] = {
    "ingest.batch_rows": 1_000,
    "dataset.max_imbalance": 10,
    "dataset.near_duplicate": 0.9,
    "dataset.burst_seconds": 60,
    "dataset.constant_dwell_reactions": 10,
    "dataset.constant_dwell_spread": 1.05,
    "dataset.max_share_of_kind": 0.2,
    "train.lora_dropout": 0.0,
    "train.beta": 0.1,
    "gate.max_pairs": "no limit",
    "gate.few_shot": 3,
    "gate.seed": 7,
}


class Config(Section):
    """All sections, and the folder that relative paths start from."""

    folder: Path = Path()
    """Folder of the TOML file; never written in it."""
    store: StoreConfig = StoreConfig()
    source: SourceConfig = SourceConfig()
    data: DataConfig = DataConfig()
    ingest: IngestConfig = IngestConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    labels: LabelConfig = LabelConfig()
    dataset: DatasetConfig = DatasetConfig()
    prompt: PromptConfig = PromptConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    gate: GateConfig = GateConfig()
    export: ExportConfig = ExportConfig()
    registry: RegistryConfig = RegistryConfig()
    serve: ServeConfig = ServeConfig()
    canary: CanaryConfig = CanaryConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _sections_know_their_folder(self) -> Self:
        # What is frozen for readers is still being made here.
        values = vars(self)
        values |= {name: values[name].placed_in(self.folder) for name in sections()}
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if abs(sum(self.dataset.split) - 1) > 1e-9 or min(self.dataset.split) <= 0:
            raise ValueError(
                f"dataset.split = {self.dataset.split}: three shares above 0 that sum to 1"
            )
        low, high = self.labels.positive_dwell_ms
        if not self.labels.negative_dwell_below_ms <= low <= high:
            raise ValueError(
                f"labels: negative_dwell_below_ms = {self.labels.negative_dwell_below_ms} must not "
                f"pass positive_dwell_ms = ({low}, {high})"
            )
        processes, batch = self.train.processes, self.train.batch_size
        if processes > 1 and not self.train.launcher:
            raise ValueError(
                f"train.processes = {processes} need a train.launcher, such as torchrun"
            )
        if batch % processes or batch < 2 * processes:
            raise ValueError(
                f"train.batch_size = {batch} must be train.processes = {processes} times a number "
                "of rows, two or more"
            )
        steps = (self.canary.share, *self.canary.ramp)
        if list(steps) != sorted(set(steps)):
            raise ValueError(
                f"canary.share and canary.ramp = {steps}: each step above the one before"
            )
        return self

    @property
    def run_root(self) -> Path:
        """Folder of the run folders, absolute; of this worker's copies if `root` is a URL."""
        if not self.run_url:
            return self.run.path(self.run.root)
        digest = hashlib.sha256(self.run_url.encode()).hexdigest()[:12]
        return self.model.cache_folder / f"runs-{digest}"

    @property
    def run_url(self) -> str:
        """URL of the run root; empty if `[run] root` is a folder."""
        return self.run.root.rstrip("/") if "://" in self.run.root else ""

    @property
    def store_url(self) -> str:
        """The store's URL with an absolute SQLite path."""
        return absolute_sqlite_url(self.store.url, self.folder)

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI with an absolute SQLite path."""
        return absolute_sqlite_url(self.registry.tracking_uri, self.folder)


def absolute_sqlite_url(url: str, folder: Path) -> str:
    """The URL, with a relative SQLite path made absolute against `folder`; others unchanged.

    In the path of a URL `%` begins an escape and `?` ends it, so these of a folder are escaped.
    """
    found, file = SQLITE_URL.match(url), sqlite_file(url)
    if not (found and file) or file.is_absolute() or str(file) == ":memory:":
        return url
    path = str(absolute(str(file), folder)).replace("%", "%25").replace("?", "%3F")
    return f"{found[1]}{path}{found[3]}"


def sqlite_file(url: str) -> Path | None:
    """The file that the URL of a SQLite database names, as SQLAlchemy reads it; else None."""
    found = SQLITE_URL.match(url)
    return Path(unquote(found[2])) if found else None


def without_passwords(config: Config) -> dict[str, dict[str, Any]]:
    """Every section as plain values, as it may be recorded."""
    return masked(config.model_dump(mode="json", exclude={"folder"}))


def masked(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections as they may be recorded: passwords in URLs are hidden."""
    return {
        name: {
            key: hide_passwords(value) if isinstance(value, str) else value
            for key, value in section.items()
        }
        for name, section in sections.items()
    }


def deciding(config: Config, sections: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The settings of these sections that can change a result, as they may be recorded.

    Folders of one worker's copies and dates of removal are left out.
    """
    places = {
        "model": {"cache_dir"},
        "privacy": {"old_key_envs", "retrain_within_days", "retention_days"},
    }
    return masked(config.model_dump(mode="json", include=set(sections), exclude=places))


def load(path: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Read the settings: defaults, then the file, then `section.key=value` overrides.

    Without a path, `reactune.toml` of the current folder is read if it is there. Settings that
    no longer exist have no effect; the log gets one warning a file that names them.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value out of range.
    """
    file = path or Path(CONFIG_NAME)
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such settings file; `reactune init` writes one")
    try:
        tables = tomllib.loads(read_utf8(file)) if file.is_file() else {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}; correct it there") from error
    except DataError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}; check its rights") from error
    _drop_removed(file, tables)
    for override in overrides:
        section, key, value = _parse_override(override)
        chosen = {key: value}
        _drop_removed("--set", {section: chosen})
        if not isinstance(tables.setdefault(section, {}), dict):
            raise ConfigError(f"{file}: {section} is a section; write [{section}] with keys below")
        tables[section] |= chosen
    if "folder" in tables:
        raise ConfigError(f"{file}: unknown key folder")
    try:
        return Config(folder=file.absolute().parent, **tables)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_describe(error)}") from error


def sections() -> dict[str, type[Section]]:
    """The sections of the file by name, in the order of the settings."""
    kinds = {name: field.annotation for name, field in Config.model_fields.items()}
    return {
        name: kind
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, Section)
    }


def commented_file(chosen: Config) -> str:
    """A settings file that documents every key, with those that have their default as comments."""
    document = tomlkit.document()
    for line in HEADER:
        document.add(tomlkit.comment(line))
    document.add(tomlkit.nl())
    for name, section in sections().items():
        values, standard = getattr(chosen, name), section()
        table = tomlkit.table()
        table.comment(_one_line(section.__doc__))
        for key, field in section.model_fields.items():
            value = getattr(values, key)
            table.add(tomlkit.comment(_one_line(field.description)))
            if value == getattr(standard, key):
                table.add(tomlkit.comment(f"{key} = {_text(value)}"))
            else:
                table.add(key, _toml(value))
        table.add(tomlkit.nl())
        document.add(name, table)
    return document.as_string().rstrip() + "\n"


def resolved(config: Config) -> str:
    """Every setting in force as TOML, passwords hidden; the default stands beside another value."""
    standard, document = without_passwords(Config()), tomlkit.document()
    for name, values in without_passwords(config).items():
        table = tomlkit.table()
        for key, value in values.items():
            item, default = _toml(value), standard[name][key]
            table.add(key, item)
            if value != default:
                item.comment(f"default: {_text(default)}")
        table.add(tomlkit.nl())
        document.add(name, table)
    return document.as_string().rstrip() + "\n"


def described() -> Iterator[tuple[str, str, str, str, str]]:
    """Section, key, type, default and meaning of every setting."""
    for name, section in sections().items():
        standard = section()
        for key, field in section.model_fields.items():
            yield (
                name,
                key,
                _type_name(section, key),
                _text(getattr(standard, key)),
                _one_line(field.description),
            )


def _drop_removed(place: Path | str, tables: Mapping[str, Any]) -> None:
    """Take settings that no longer exist out of the tables, with a warning that lists them."""
    dropped = [
        f"{section}.{key} = {_text(keys.pop(key))} (in force: {REMOVED[f'{section}.{key}']})"
        for section, keys in tables.items()
        if isinstance(keys, dict)
        for key in list(keys)
        if f"{section}.{key}" in REMOVED
    ]
    if dropped:
        _warn_once(f"{place}: settings without effect, delete them: {', '.join(dropped)}")


@cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"--set {override!r}: write it as section.key=value")
    try:
        return section, key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, text.strip()


def _describe(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key {name}; `reactune config` lists all keys")
        elif not name:
            problems.append(problem["msg"].removeprefix("Value error, "))
        else:
            problems.append(f"{name} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(problems)


def _toml(value: Any) -> Item:
    """A value on one line; tomlkit by itself gives each list of tables lines of its own."""
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        for key, inner in value.items():
            table.add(key, _toml(inner))
        return table
    if isinstance(value, (list, tuple)):
        array = tomlkit.array()
        for inner in value:
            array.append(_toml(inner))
        return array
    item: Item = tomlkit.item(value)
    return item


def _text(value: Any) -> str:
    return _toml(value).as_string()


def _type_name(section: type[Section], key: str) -> str:
    """The type of a setting, with its choices or its range."""
    schema = section.model_json_schema()["properties"][key]
    if "enum" in schema:
        return " or ".join(_text(choice) for choice in schema["enum"])
    if "const" in schema:
        return _text(schema["const"])
    name = {"array": "list", "object": "table"}.get(schema["type"], schema["type"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[word]:g}" for word, sign in signs.items() if word in schema]
    return ", ".join([name, *limits])


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
