"""Where runs are kept: a folder of this machine, or a URL that all workers share.

What a run folder holds is left to `runs.py`, who may work in it to `leases.py`.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reactune.config.settings import Config
from reactune.errors import ConfigError, DataError
from reactune.records import ModelVersion, sha256_of, write_atomically
from reactune.runs.manifest import read_manifest

RECORDS = re.compile(r"[\w-]+/(config|erased|[\w-]+/manifest)\.json")
ERASED = "erased.json"
"""In a run's folder at a URL: what was erased of it, after which copies of before must go."""


@dataclass(frozen=True)
class RunRoot:
    """The folder that runs are read and written in here.

    With a URL it holds this worker's copies of what is kept there: the settings and manifests of
    all runs, and the files of those stages that this worker did or read. Without one, every
    function of this module that copies does nothing.
    """

    folder: Path = Path()
    url: str = ""
    stale_seconds: float = 300.0


HERE = RunRoot()


def run_root(config: Config) -> RunRoot:
    """Where the settings keep runs."""
    return RunRoot(config.run_root, config.run_url, config.run.stale_lock_seconds)


def pull(root: RunRoot, run_id: str = "") -> None:
    """Make the settings and manifests of runs here equal to those at the URL; one run's, if named.

    A manifest that came from there says so, and is valid without its outputs.

    Raises:
        DataError: the URL does not answer.
    """
    if not root.url:
        return
    with reach(root) as (files, top):
        below = f"{top}/{run_id}".rstrip("/")
        names = {path.removeprefix(f"{top}/"): path for path in files.find(below)}
        wanted = {name: path for name, path in names.items() if RECORDS.fullmatch(name)}
        texts = _texts(files, wanted)
    _drop_outdated(root, run_id, texts)
    for name, text in texts.items():
        file = root.folder / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_atomically(file, text)


def push(root: RunRoot, folder: Path, names: Iterable[str]) -> None:
    """Upload files of a folder, in this order.

    Raises:
        DataError: the URL does not answer.
    """
    if not root.url:
        return
    place = folder.relative_to(root.folder).as_posix()
    with reach(root) as (files, top):
        for name in names:
            there = f"{top}/{place}/{name}"
            if name == "manifest.json":
                text = (folder / name).read_text(encoding="utf-8")
                files.pipe_file(there, _with_place(text, "").encode())
            else:
                files.put_file(str(folder / name), there)


def fetch(root: RunRoot, run_id: str, stage: str, *, under: str = "") -> None:
    """Bring the outputs of a stage here, or those whose names begin so; what is here is kept.

    Raises:
        DataError: the stage is not done, or an object is not what the stage wrote.
    """
    if not root.url:
        return
    manifest = read_manifest(root.folder / run_id / stage)
    if manifest is None:
        raise DataError(f"{root.url}/{run_id}: stage {stage} is not done; do it first")
    for name, digest in manifest.outputs.items():
        if name.startswith(under):
            _fetch_file(root, f"{run_id}/{stage}", name, digest)


def forget_manifest(root: RunRoot, folder: Path) -> None:
    """From now on the stage is not done, here and at the URL.

    Raises:
        DataError: the URL does not answer.
    """
    (folder / "manifest.json").unlink(missing_ok=True)
    if root.url:
        with reach(root) as (files, top):
            path = f"{top}/{folder.relative_to(root.folder).as_posix()}/manifest.json"
            if files.exists(path):
                files.rm_file(path)


def digest_of(root: RunRoot, path: Path) -> str | None:
    """SHA-256 of an output of a stage, as its manifest states it where runs are kept at a URL.

    None if there is no such file.
    """
    if not root.url:
        return sha256_of(path) if path.is_file() else None
    run_id, stage, *name = path.relative_to(root.folder).parts
    manifest = read_manifest(root.folder / run_id / stage)
    return manifest.outputs.get("/".join(name)) if manifest else None


def as_kept(root: RunRoot, model: ModelVersion) -> ModelVersion:
    """The version as the database keeps it: below a URL, its files are named from there."""
    if not root.url:
        return model
    return _with_paths(model, lambda path: path.relative_to(root.folder))


def as_placed(root: RunRoot, model: ModelVersion) -> ModelVersion:
    """The version with its files where they lie here, or will when they are fetched.

    A version that was registered with folders of one machine keeps them.
    """
    return _with_paths(model, lambda path: root.folder / path)


def fetch_release(root: RunRoot, model: ModelVersion) -> None:
    """Bring what a model server needs of a version here: its GGUF and its prompt folder.

    Raises:
        DataError: they are not there, or not those that were registered.
    """
    if not root.url or not model.gguf.is_relative_to(root.folder):
        return
    pull(root, model.run_id)
    manifest = read_manifest(model.gguf.parent)
    kept = manifest.outputs.get(model.gguf.name) if manifest else None
    if kept != model.sha256:
        raise DataError(
            f"{model.name} was registered with a GGUF of SHA-256 {model.sha256}, but "
            f"{root.url}/{model.run_id}/{model.gguf.parent.name} holds {kept or 'none'}; put that "
            "folder back as it was, or roll back to another version"
        )
    fetch(root, model.run_id, model.gguf.parent.name)


def fetch_adapter(root: RunRoot, model: ModelVersion) -> None:
    """Bring the adapter of a version here, if it has one.

    Raises:
        DataError: it is not there, or not what its training wrote.
    """
    adapter = model.adapter
    if not root.url or adapter is None or not adapter.is_relative_to(root.folder):
        return
    pull(root, model.run_id)
    fetch(root, model.run_id, adapter.parent.name, under=f"{adapter.name}/")


@contextmanager
def reach(root: RunRoot) -> Iterator[tuple[Any, str]]:
    """The file system of the URL, and the path of the root in it; its refusals become ours.

    Raises:
        ConfigError: nothing installed speaks this URL.
        DataError: it does not answer, or refuses.
    """
    options = {"auto_mkdir": True} if root.url.startswith(("file:", "local:")) else {}
    try:
        import fsspec

        # A listing that is remembered would hide what other workers did meanwhile.
        files, top = fsspec.url_to_fs(root.url, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"[run] root = {root.url}: {error}; s3:// needs `pip install 'reactune[s3]'`, other "
            "stores the package of fsspec that speaks their protocol"
        ) from error
    try:
        yield files, top.rstrip("/")
    except refusals() as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{root.url} did not do it: {reason}; see [run] root, the credentials in the "
            "environment and the network, and repeat"
        ) from error


def refusals() -> tuple[type[Exception], ...]:
    """What a file system of fsspec raises: OSError, and what S3's client has beside it."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, botocore.BotoCoreError) if botocore else (OSError,)


def _drop_outdated(root: RunRoot, run_id: str, texts: dict[str, str]) -> None:
    """Remove records that are gone at the URL, runs that are, and files of what was erased."""
    here = root.folder / run_id
    for file in [*here.rglob("config.json"), *here.rglob("manifest.json")]:
        name = file.relative_to(root.folder).as_posix()
        if RECORDS.fullmatch(name) and name not in texts:
            file.unlink(missing_ok=True)
            if file.name == "config.json":
                shutil.rmtree(file.parent, ignore_errors=True)
    for name, text in texts.items():
        known = root.folder / name
        if known.name == ERASED and not (known.is_file() and known.read_text("utf-8") == text):
            for copy in known.parent.rglob("*"):
                if copy.is_file() and not copy.name.startswith(".lock"):
                    copy.unlink()


def _texts(files: Any, wanted: dict[str, str]) -> dict[str, str]:
    """What is in these files, by name; those that go meanwhile are left out."""
    if not wanted:
        return {}
    contents = files.cat(list(wanted.values()), on_error="return")
    texts = {}
    for name, path in wanted.items():
        content = contents[path]
        if isinstance(content, FileNotFoundError):
            continue
        if isinstance(content, Exception):
            raise content
        text = content.decode("utf-8", errors="replace")
        texts[name] = _kept_elsewhere(text, files.unstrip_protocol(path))
    return texts


def _kept_elsewhere(text: str, url: str) -> str:
    """A manifest with the place where its outputs are kept; other texts as they are."""
    if not url.endswith("/manifest.json"):
        return text
    return _with_place(text, url.rpartition("/")[0])


def _with_place(manifest: str, kept_at: str) -> str:
    try:
        return json.dumps({**json.loads(manifest), "kept_at": kept_at}, indent=2)
    except (ValueError, TypeError):
        return manifest  # half written, so no manifest


def _fetch_file(root: RunRoot, place: str, name: str, digest: str) -> None:
    local = root.folder / place / name
    if not local.resolve().is_relative_to((root.folder / place).resolve()):
        raise DataError(f"{root.url}/{place}/manifest.json names {name!r}, outside of its folder")
    if local.is_file() and sha256_of(local) == digest:
        return
    local.parent.mkdir(parents=True, exist_ok=True)
    partial = local.with_name(f".{local.name}.{os.getpid()}")
    try:
        with reach(root) as (files, top), suppress(FileNotFoundError):
            files.get_file(f"{top}/{place}/{name}", str(partial))
        found = sha256_of(partial) if partial.is_file() else "no object"
        if found != digest:
            raise DataError(
                f"{root.url}/{place}/{name} is not what its stage wrote: SHA-256 "
                f"{digest} expected, {found} found; delete {place}/manifest.json there, and do "
                f"stage {place.rpartition('/')[2]} again"
            )
        partial.replace(local)
    finally:
        partial.unlink(missing_ok=True)


def _with_paths(model: ModelVersion, change: Callable[[Path], Path]) -> ModelVersion:
    return replace(
        model,
        gguf=change(model.gguf),
        prompt_folder=change(model.prompt_folder),
        adapter=None if model.adapter is None else change(model.adapter),
    )
