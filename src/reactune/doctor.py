"""What this machine lacks for the settings in force; nothing is changed or downloaded.

`examine` is the command `doctor`. `require_ready` is asked before the first export of the base and
by the first stage of a run, so that nothing is trained that could not be served.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from packaging.requirements import Requirement
from packaging.version import Version

from reactune.config.sections import ModelConfig
from reactune.config.settings import Config, sqlite_file
from reactune.errors import ReactuneError, ReleaseError, hide_passwords
from reactune.model.files import (
    HALF,
    WHEELS,
    BaseModel,
    Shape,
    available_memory,
    existing_part,
    folder_at_hand,
    free_disk,
    locate,
    memory_needed,
    shape_of,
)
from reactune.model.prompt import Chat, assemble, load_chat, render
from reactune.pii.detectors import open_detector
from reactune.privacy.consent import key_ids
from reactune.privacy.hashing import given_key_ids, load_hashing_keys
from reactune.release import registry
from reactune.release.converter import fetched_folder
from reactune.release.gguf import bits_of, possible_types, require_exportable
from reactune.release.runtimes import connect
from reactune.store.database import opened_store, reading
from reactune.store.schema import tip_scores
from reactune.train.backends import free_gpu_memory, python_of, usable_methods

State = Literal["ok", "warning", "missing"]
SMALLEST_PYTHON = (3, 11)
GIB, MB = 2**30, 10**6
MERGING = 1.3  # times the size of the weights: what merging and export take at most
LIBRARIES = 500 * MB  # bytes that they take beside that
FREE_BESIDE = GIB // 2  # bytes of databases, datasets and checkpoints beside the models
NO_MODEL_NAME = re.compile(r"""^\s*$|^\.+$|[/:'"]""")  # MLflow's rule, and ours of quotes
OLLAMA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


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
    return [*findings, *_registry(config), _trainer(config), *_base_model(config)]


def require_ready(config: Config, base: BaseModel, chat: Chat, *, trains: bool) -> None:
    """Return if a model of this base could be exported, registered and served; seconds.

    With `trains`, also if it could be trained here.

    Raises:
        ReleaseError: something is missing; a part of the message for each.
    """
    found = [
        _rendered(chat),
        *([_convertible(config, base.folder, base.gguf)] if trains else []),
        *_registry(config),
        # What is trained answers beside the champion.
        _model_server(config, versions=2 if trains else 1),
        *([_trainer(config)] if trains else []),
        *_room(config, _shape_in(base.folder), base.folder, trains=trains),
    ]
    missing = [f"{each.name}: {each.text}" for each in found if each.state == "missing"]
    if missing:
        raise ReleaseError(f"nothing was started: {'; '.join(map(hide_passwords, missing))}")


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
    absent = [_worded(need) for need in wanted if installed[need.name] is None]
    unfit = [
        f"{_worded(need)} (found {found})"
        for need in wanted
        if (found := installed[need.name]) and not need.specifier.contains(found, prereleases=True)
    ]
    title = f"extra {name}" if name else "packages"
    if not absent and not unfit:
        return Finding(title, "ok", f"all {len(wanted)} in supported versions")
    install = f"run `pip install 'reactune{f'[{name}]' if name else ''}'`"
    present = {_plain(need.name) for need in wanted if installed[need.name]}
    if not is_needed and present <= _brought_by(_requirements("")):
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


def _worded(need: Requirement) -> str:
    """A requirement as pip takes it, without what it is for."""
    extras = f"[{','.join(sorted(need.extras))}]" if need.extras else ""
    return f"{need.name}{extras}{need.specifier}"


def _brought_by(needs: Iterable[Requirement]) -> set[str]:
    """Names of the packages that these bring with them, and of what those bring."""
    found: set[str] = set()
    ahead = list(needs)
    while ahead:
        name = _plain(ahead.pop().name)
        if name in found or _installed(name) is None:
            continue
        found.add(name)
        further = map(Requirement, metadata.requires(name) or ())
        ahead += [
            each for each in further if not each.marker or each.marker.evaluate({"extra": ""})
        ]
    return found


def _plain(name: str) -> str:
    """A package's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


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


def _model_server(config: Config, *, versions: int = 1) -> Finding:
    name = "model server"
    try:
        with closing(connect(config.serve)) as runtime:
            return Finding(name, "ok", runtime.check(versions=versions, base=config.model.base))
    except TimeoutError as error:
        return Finding(name, "warning", str(error))
    except ReleaseError as error:
        return Finding(name, "missing", str(error))


def _registry(config: Config) -> list[Finding]:
    """Whether MLflow answers, and takes runs of our experiment and versions of our model."""
    uri, name = config.tracking_uri, config.registry.model_name
    findings = [_experiment(config, uri)]
    if NO_MODEL_NAME.search(name):
        text = f"{name!r} is no name for MLflow, which refuses / and :; change registry.model_name"
        findings.append(Finding("model name", "missing", text))
    elif config.serve.runtime == "ollama" and not OLLAMA_NAME.fullmatch(name):
        text = (
            f"{name!r} is no name for Ollama: up to 80 letters, digits, dots, - and _; change "
            "registry.model_name"
        )
        findings.append(Finding("model name", "missing", text))
    return findings


def _experiment(config: Config, uri: str) -> Finding:
    file = sqlite_file(uri)
    if file and not file.is_file():
        return Finding("MLflow", "ok", f"{file} is made by the first run")
    if not uri.startswith((*registry.DATABASES, *registry.SERVERS)):
        return Finding("MLflow", "warning", f"{uri} is not checked; see that MLflow 3 supports it")
    try:
        return Finding("MLflow", "ok", f"{uri}, {registry.check(config.registry, uri)}")
    except ReleaseError as error:
        return Finding("MLflow", "missing", str(error))


def _trainer(config: Config) -> Finding:
    try:
        text = f"{config.train.backend} for {', '.join(usable_methods(config.train))}"
    except ReactuneError as error:
        return Finding("trainer", "missing", str(error))
    return Finding("trainer", "ok", text)


def _base_model(config: Config) -> list[Finding]:
    """The base model, what it is asked, and whether it fits; as far as its files lie here."""
    base, name = config.model.base, "base model"
    if base not in WHEELS and not config.model.path(base).exists():
        text = f"{base} is no path here; the first run downloads it from the Hugging Face hub"
        return [Finding(name, "warning", text)]
    try:
        found, folder = locate(config.model), folder_at_hand(config.model)
        shape = shape_of(config.model) if folder is None else _shape_in(folder)
    except ReactuneError as error:
        return [Finding(name, "missing", str(error))]
    text = f"{base}, {shape.parameters / MB:,.0f} million weights, {found}"
    there = [Finding(name, "ok", text)]
    if folder is None:
        text = "is in the GGUF, and read when the first run has converted that"
        there.append(Finding("chat template", "warning", text))
    else:
        there += [_chat_template(config, folder), _converter(config, folder, found)]
    return [*there, *_room(config, shape, folder)]


def _converter(config: Config, folder: Path, found: Path) -> Finding:
    """As `_convertible`, without fetching the converter for it."""
    if config.export.converter or fetched_folder().is_dir():
        return _convertible(config, folder, found if found.is_file() else None)
    text = (
        "llama.cpp's converter is fetched by the first run; `python -m reactune.release.converter`"
    )
    return Finding("export", "warning", f"{text} fetches it now")


def _shape_in(folder: Path) -> Shape:
    """The dimensions that a folder's config.json states; a GGUF takes seconds to read."""
    return shape_of(ModelConfig(base=str(folder)))


def _chat_template(config: Config, folder: Path) -> Finding:
    """What the base model's chat template makes of a prompt."""
    try:
        return _rendered(load_chat(folder, config.prompt, privacy=config.privacy))
    except ReactuneError as error:
        return Finding("chat template", "missing", str(error))


def _rendered(chat: Chat) -> Finding:
    """Whether the template renders, with the system prompt of the settings, and starts once."""
    name, mark = "chat template", "USER-MARK"
    try:
        ids, text = assemble(chat, "any", {}).token_ids, render(chat, mark)
    except ReleaseError as error:
        return Finding(name, "missing", str(error))
    if text.count(mark) != 1:
        text = f"writes the user's text {text.count(mark)} times; name another in prompt.template"
        return Finding(name, "missing", text)
    if chat.settings.system.strip() not in text:
        text = "leaves prompt.system out; make that empty, and say it in prompt.instruction"
        return Finding(name, "missing", text)
    if chat.tokenizer.token_to_id(chat.stop) is None:
        text = f"{chat.stop} ends an answer, and is no token; see eos_token of the tokenizer"
        return Finding(name, "missing", text)
    start = chat.template.tokens.get("bos_token", "")
    first = chat.tokenizer.token_to_id(start)
    if first is not None and ids[:2] == (first, first):
        text = f"writes the start token {start} twice; name a file without it in prompt.template"
        return Finding(name, "missing", text)
    begins = f"begins with {start}" if first is not None and ids[:1] == (first,) else "no start"
    system = "takes a system message" if _takes_system(chat) else "takes no system message"
    text = f"{len(ids)} tokens without context, {begins}, ends with {chat.stop}, {system}"
    return Finding(name, "ok", text)


def _takes_system(chat: Chat) -> bool:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    try:
        return "Be brief." in chat.template.render(messages)
    except ReleaseError:
        return False


def _convertible(config: Config, folder: Path, gguf: Path | None) -> Finding:
    """Whether the base model can become a GGUF file of the type of the settings, and which others.

    `gguf` is the file that the folder was converted from, if it was.
    """
    try:
        require_exportable(folder, gguf, config.export)
    except ReleaseError as error:
        return Finding("export", "missing", str(error))
    types = ", ".join(possible_types(config.export))
    return Finding("export", "ok", f"as {config.export.quantisation}; possible are {types}")


def _room(
    config: Config, shape: Shape, folder: Path | None, *, trains: bool = True
) -> list[Finding]:
    """Memory to train, merge and export the base model; disk for that, and for a conversion."""
    loaded = shape.parameters * 4
    weights = (folder and _size_of_weights(folder)) or loaded
    served = shape.parameters * bits_of(config.export.quantisation) / 8
    tokens = config.prompt.max_context_tokens + 2 * config.serve.max_tokens
    peaks = {"merging and export": round(MERGING * weights) + LIBRARIES}
    on_gpu: list[Finding] = []
    if trains and config.train.load_in_4bit:
        # Gate and parity compute on the CPU whatever trains.
        peaks["the gate"] = loaded + LIBRARIES
        on_gpu = _gpu_memory(config, shape, tokens)
    elif trains:
        peaks["training"] = memory_needed(shape, config.train, sequence_tokens=tokens)
    runs, cache = config.run_root, config.model.cache_folder
    room = [
        _memory("memory", loaded if trains else weights, peaks, available_memory()),
        *on_gpu,
        _disk("disk of runs", weights + 2 * served + FREE_BESIDE, runs, setting="run.root"),
    ]
    if folder is None:
        room.append(_disk("disk of cache", weights, cache, setting="model.cache_dir"))
    return room


def _size_of_weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _gpu_memory(config: Config, shape: Shape, tokens: int) -> list[Finding]:
    """Whether training in 4 bits finds its memory on the GPU; nothing where there is none."""
    try:
        free = free_gpu_memory(python_of(config.train))
    except ReactuneError:
        return []  # which the check of the trainer says
    peak = memory_needed(shape, config.train, sequence_tokens=tokens, number=HALF)
    least = memory_needed(shape, config.train, sequence_tokens=0, number=HALF)
    return [_memory("GPU memory", least, {"training in 4 bits": peak}, free)]


def _memory(name: str, least: int, peaks: Mapping[str, int], free: int) -> Finding:
    """Whether the step that takes the most memory finds it; with `least`, none can begin."""
    step, peak = max(peaks.items(), key=lambda each: each[1])
    text = f"{free / GIB:.1f} GiB free, {step} takes up to {peak / GIB:.1f}"
    if free >= peak:
        return Finding(name, "ok", text)
    # Only a batch of the longest rows takes the peak; weights that cannot be loaded never fit.
    state: State = "warning" if free > least else "missing"
    return Finding(name, state, f"{text}; take a smaller train.batch_size or base model")


def _disk(name: str, needed: float, folder: Path, *, setting: str) -> Finding:
    """Whether a folder can be written, or made, and has the bytes that are needed."""
    there = existing_part(folder)
    # Effective ids: those by which the system will allow it or not.
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK, effective_ids=True)):
        text = f"{folder} cannot be {'written' if there == folder else f'made in {there}'}"
        return Finding(name, "missing", f"{text}; allow it, or name another {setting}")
    free = free_disk(folder)
    text = f"{free / GIB:.1f} GiB free, about {needed / GIB:.1f} needed"
    if free >= needed:
        return Finding(name, "ok", text)
    return Finding(name, "missing", f"{text}; free {folder} or name another {setting}")
