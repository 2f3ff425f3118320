"""What this machine lacks for the settings in force; nothing is changed or downloaded."""

import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from packaging.requirements import Requirement
from packaging.version import Version

from reactune.config.settings import Config
from reactune.errors import ReactuneError, ReleaseError, hide_passwords
from reactune.model.files import (
    WHEELS,
    Shape,
    available_memory,
    free_disk,
    locate,
    memory_needed,
    shape_of,
)
from reactune.pii.detectors import open_detector
from reactune.privacy.consent import key_ids
from reactune.privacy.hashing import given_key_ids, load_hashing_keys
from reactune.release.runtimes import connect
from reactune.store.database import opened_store, reading
from reactune.store.schema import tip_scores
from reactune.train.backends import usable_methods

State = Literal["ok", "warning", "missing"]
SMALLEST_PYTHON = (3, 11)
GIB, MB = 2**30, 10**6
BYTES_PER_WEIGHT = {"q8_0": 34 / 32, "f16": 2.0}
FREE_BESIDE = GIB // 2  # bytes of databases, datasets and checkpoints beside the models
WAIT_SECONDS = 5


@dataclass(frozen=True)
class Finding:
    """One check; `missing` is something that the settings need."""

    name: str
    state: State
    text: str

    def line(self) -> str:
        """One line for the terminal."""
        return f"{self.state:8} {self.name:13} {self.text}"


def examine(config: Config, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Check everything that the settings need, in the order in which to repair it.

    A machine without the `train` extra is checked as one that only serves.
    """
    found = _findings(config, environ)
    return [replace(each, text=hide_passwords(each.text)) for each in found]


def _findings(config: Config, environ: Mapping[str, str]) -> list[Finding]:
    training = _extra("train", is_needed=False)
    key, key_ids = _key(config, environ)
    findings = [
        _python(),
        _extra("", is_needed=True),
        *_needed_extras(config),
        training,
        key,
        _names(config),
        _database(config, key_ids),
        _model_server(config),
    ]
    if training.state != "ok":
        return findings
    base, shape = _base_model(config)
    return [*findings, _registry(config), _trainer(config), base, *_room(config, shape)]


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info >= SMALLEST_PYTHON:
        return Finding("Python", "ok", version)
    return Finding("Python", "missing", f"{version}; install 3.11 or later")


def _needed_extras(config: Config) -> list[Finding]:
    needed = []
    if config.store.url.startswith("postgres"):
        needed.append("postgres")
    if _requirements(config.serve.runtime):
        needed.append(config.serve.runtime)
    if config.run_url.startswith("s3:"):
        needed.append("s3")
    return [_extra(name, is_needed=True) for name in needed]


def _extra(name: str, *, is_needed: bool) -> Finding:
    """Whether the packages of one extra are installed, in versions that reactune supports."""
    wanted = _requirements(name)
    installed = {need.name: _installed(need.name) for need in wanted}
    absent = [str(need) for need in wanted if installed[need.name] is None]
    unfit = [
        f"{need} (found {found})"
        for need in wanted
        if (found := installed[need.name]) and not need.specifier.contains(found, prereleases=True)
    ]
    title = f"extra {name}" if name else "packages"
    if not absent and not unfit:
        return Finding(title, "ok", f"all {len(wanted)} in supported versions")
    install = f"run `pip install 'reactune{f'[{name}]' if name else ''}'`"
    if not is_needed and len(absent) == len(wanted):
        return Finding(title, "warning", f"not installed: this machine cannot train; {install}")
    return Finding(title, "missing", f"{', '.join([*absent, *unfit])}; {install}")


def _requirements(extra: str) -> list[Requirement]:
    """Requirements in reactune's own metadata: those of the core, or those of an extra."""
    all_of_them = [Requirement(text) for text in metadata.requires("reactune") or ()]
    return [
        need
        for need in all_of_them
        if (need.marker is None) == (not extra)
        and (need.marker is None or need.marker.evaluate({"extra": extra}))
    ]


def _installed(package: str) -> Version | None:
    try:
        return Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None


def _key(config: Config, environ: Mapping[str, str]) -> tuple[Finding, frozenset[str]]:
    """The check of the hashing keys, and the ids of those that are given."""
    given = given_key_ids(config.privacy, environ)
    try:
        hashing_keys = load_hashing_keys(config.privacy, environ)
    except ReactuneError as error:
        return Finding("key", "missing", str(error)), given
    text = f"{config.privacy.key_env} is set, key id {hashing_keys.current.key_id}"
    older = "".join(f", older one {key.key_id}" for key in hashing_keys.all[1:])
    return Finding("key", "ok", text + older), given


def _names(config: Config) -> Finding:
    try:
        open_detector(config.privacy)
    except ReactuneError as error:
        return Finding("names", "missing", str(error))
    models = ", ".join(f"{language}: {model}" for language, model in config.privacy.models.items())
    return Finding("names", "ok", models or "are not sought: privacy.models is empty")


def _database(config: Config, given: frozenset[str]) -> Finding:
    try:
        tips, known = _tips_and_keys(config)
    except ReactuneError as error:
        return Finding("database", "missing", str(error))
    place = f"{config.store_url}, tips: {tips:,}"
    if not given or known <= given:
        return Finding("database", "ok", place)
    others = ", ".join(sorted(known - given))
    text = (
        f"{place}, some hashed with a key that is not given ({others}): their users count twice "
        "and cannot be erased from them; name its variable in [privacy] old_key_envs"
    )
    return Finding("database", "warning", text)


def _tips_and_keys(config: Config) -> tuple[int, set[str]]:
    """How many tips are stored, and the ids of the keys that hashed their users."""
    with opened_store(config.store_url) as engine, reading(engine) as connection:
        tips = connection.execute(sa.select(sa.func.count()).select_from(tip_scores))
        return tips.scalar_one(), set(key_ids(connection))


def _model_server(config: Config) -> Finding:
    name = "model server"
    try:
        with closing(connect(config.serve)) as runtime:
            return Finding(name, "ok", runtime.check())
    except TimeoutError as error:
        return Finding(name, "warning", str(error))
    except ReleaseError as error:
        return Finding(name, "missing", str(error))


def _registry(config: Config) -> Finding:
    uri = config.tracking_uri
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in ("http", "https"):
        return _registry_over_http(uri)
    if scheme in ("sqlite", "postgresql", "mysql"):
        return _registry_in_database(uri)
    return Finding("MLflow", "warning", f"{uri} is not checked; see that MLflow 3 supports it")


def _registry_over_http(uri: str) -> Finding:
    import httpx

    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=WAIT_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL):
        text = f"no MLflow server at {uri}; start it, or set another registry.tracking_uri"
        return Finding("MLflow", "missing", text)
    return Finding("MLflow", "ok", uri)


def _registry_in_database(uri: str) -> Finding:
    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).is_file():
        return Finding("MLflow", "ok", f"{file} is made by the first run")
    try:
        with sa.create_engine(uri).connect() as connection:
            connection.execute(sa.text("SELECT version_num FROM alembic_version"))
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        return Finding("MLflow", "missing", f"{uri}: {reason}; check registry.tracking_uri")
    return Finding("MLflow", "ok", uri)


def _trainer(config: Config) -> Finding:
    try:
        text = f"{config.train.backend} for {', '.join(usable_methods(config.train))}"
    except ReactuneError as error:
        return Finding("trainer", "missing", str(error))
    return Finding("trainer", "ok", text)


def _base_model(config: Config) -> tuple[Finding, Shape | None]:
    base = config.model.base
    if base not in WHEELS and not Path(base).expanduser().exists():
        text = f"{base} is no path here; the first run downloads it from the Hugging Face hub"
        return Finding("base model", "warning", text), None
    try:
        found, shape = locate(base), shape_of(config.model)
    except ReactuneError as error:
        return Finding("base model", "missing", str(error)), None
    text = f"{base}, {shape.parameters / MB:,.0f} million weights, {found}"
    return Finding("base model", "ok", text), shape


def _room(config: Config, shape: Shape | None) -> list[Finding]:
    """Whether the base model fits: memory to train it, disk for its conversion and the runs."""
    if shape is None:
        return []
    tokens = config.prompt.max_context_tokens + 2 * config.serve.max_tokens
    cache = config.model.cache_folder
    served = shape.parameters * BYTES_PER_WEIGHT[config.export.quantisation]
    return [
        _memory(shape, memory_needed(shape, config.train, sequence_tokens=tokens)),
        _disk(
            "disk of runs",
            2 * served + FREE_BESIDE,
            free_disk(config.run_root),
            advice=f"free {config.run_root} or name another run.root",
        ),
        _disk(
            "disk of cache",
            shape.parameters * 4,
            free_disk(cache),
            advice=f"free {cache} or name another model.cache_dir",
        ),
    ]


def _memory(shape: Shape, peak: int) -> Finding:
    free = available_memory()
    text = f"{free / GIB:.1f} GiB free, training takes up to {peak / GIB:.1f}"
    if free >= peak:
        return Finding("memory", "ok", text)
    # Only a batch of the longest rows takes the peak; weights that cannot be loaded never fit.
    state: State = "warning" if free > shape.parameters * 4 else "missing"
    return Finding("memory", state, f"{text}; take a smaller train.batch_size or base model")


def _disk(name: str, needed: float, free: int, *, advice: str) -> Finding:
    text = f"{free / GIB:.1f} GiB free, about {needed / GIB:.1f} needed"
    if free >= needed:
        return Finding(name, "ok", text)
    return Finding(name, "missing", f"{text}; {advice}")
