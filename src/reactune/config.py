"""The settings of one installation: frozen sections, one TOML file, unknown keys refused.

Precedence: defaults < file < `--set section.key=value`. Secrets never stand here: the key that
hashes people comes from the environment variable named in `[privacy] key_env`.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from platformdirs import user_cache_dir
from pydantic import ValidationError, model_validator

from reactune.data_sections import DataConfig as DataConfig
from reactune.data_sections import DatasetConfig as DatasetConfig
from reactune.data_sections import LabelConfig as LabelConfig
from reactune.data_sections import SourceConfig as SourceConfig
from reactune.errors import ConfigError
from reactune.rollout_sections import CanaryConfig as CanaryConfig
from reactune.sections import ExportConfig as ExportConfig
from reactune.sections import GateConfig as GateConfig
from reactune.sections import IngestConfig as IngestConfig
from reactune.sections import ModelConfig as ModelConfig
from reactune.sections import PrivacyConfig as PrivacyConfig
from reactune.sections import PromptConfig as PromptConfig
from reactune.sections import RegistryConfig as RegistryConfig
from reactune.sections import RunConfig as RunConfig
from reactune.sections import Section as Section
from reactune.sections import StoreConfig as StoreConfig
from reactune.sections import TrainConfig as TrainConfig
from reactune.serve_section import ServeConfig as ServeConfig

CONFIG_NAME = "reactune.toml"
# SQLAlchemy takes a password up to the `@`, PostgreSQL's client also one in the query.
PASSWORD_IN_URL = re.compile(r"((?<=://)[^/@:\s]*:)[^@\s]*(?=@)|((?<=[?&])password=)[^&\s]*")


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
            raise ValueError(f"train.processes = {processes} need a train.launcher")
        if batch % processes or batch < 2 * processes:
            raise ValueError(
                f"train.batch_size = {batch} does not give {processes} processes as many rows "
                "each, two or more"
            )
        steps = (self.canary.share, *self.canary.ramp)
        if list(steps) != sorted(set(steps)):
            raise ValueError(
                f"canary.share and canary.ramp = {steps}: each step above the one before"
            )
        return self

    @property
    def run_root(self) -> Path:
        """Folder of the run folders, absolute; of this worker's copies where root is a URL."""
        if not self.run_url:
            return (self.folder / self.run.root).absolute()
        cache = Path(self.model.cache_dir or user_cache_dir("reactune")).absolute()
        return cache / f"runs-{hashlib.sha256(self.run_url.encode()).hexdigest()[:12]}"

    @property
    def run_url(self) -> str:
        """The URL that runs are kept at; empty where `[run] root` is a folder."""
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
    """The URL, with a relative SQLite path made absolute against `folder`; others unchanged."""
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url.startswith(prefix + "/") or url == prefix + ":memory:":
        return url
    return prefix + str((folder / url.removeprefix(prefix)).absolute())


def hide_passwords(text: str) -> str:
    """The text with `***` where a URL in it holds a password."""
    return PASSWORD_IN_URL.sub(r"\1\2***", text)


def without_passwords(config: Config) -> dict[str, dict[str, Any]]:
    """Every section as plain values, fit for records: passwords in URLs are hidden."""
    sections: dict[str, dict[str, Any]] = config.model_dump(mode="json", exclude={"folder"})
    for section in sections.values():
        for key, value in section.items():
            if isinstance(value, str):
                section[key] = hide_passwords(value)
    return sections


def deciding(config: Config, sections: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The settings of sections that can change a result.

    Not where one worker keeps its copies, nor what only says when something is to be removed.
    """
    places = {
        "model": {"cache_dir"},
        "privacy": {"old_key_envs", "retrain_within_days", "retention_days"},
    }
    return config.model_dump(mode="json", include=set(sections), exclude=places)


def load(path: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Read the settings: defaults, then the file, then `section.key=value` overrides.

    Without a path, `reactune.toml` of the current folder is read if it is there.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value out of range.
    """
    file = path or Path(CONFIG_NAME)
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such settings file; `reactune init` writes one")
    try:
        tables = tomllib.loads(file.read_text()) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    for override in overrides:
        section, key, value = _parse_override(override)
        if not isinstance(tables.setdefault(section, {}), dict):
            raise ConfigError(f"{file}: {section} is a section; write [{section}] with keys below")
        tables[section][key] = value
    if "folder" in tables:
        raise ConfigError(f"{file}: unknown key folder")
    try:
        return Config(folder=file.absolute().parent, **tables)
    except ValidationError as error:
        raise ConfigError(f"{file}: {_describe(error)}") from error


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
