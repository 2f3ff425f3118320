"""Runs at a URL that all workers share: what a worker has here is a verified copy of it.

Settings and manifests of all runs are copied here, the files of stages when they are needed.
Without a URL the functions that copy do nothing, and the folder here is all there is.
"""

import json
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
from reactune.records import ModelVersion, replacing, sha256_of, write_atomically
from reactune.runs.manifest import MANIFEST, is_file_of_digest, read_manifest

CONFIG = "config.json"
ERASED = "erased.json"
"""In a run's folder at a URL: its erasures. When it changes, workers drop their older copies."""
RECORDS = re.compile(r"[\w-]+/(config|erased|[\w-]+/manifest)\.json")


@dataclass(frozen=True)
class RunRoot:
    """The folder of this machine in which runs are read and written, and the URL it is a copy of.

    Without a URL the folder is no copy. `stale_seconds` is the time without a refresh after which
    the lock of another worker may be taken over. `with_adapters`: the model server reads a
    version's adapter, not its merged file alone.
    """

    folder: Path = Path()
    url: str = ""
    stale_seconds: float = 300.0
    with_adapters: bool = False


LOCAL = RunRoot()
"""No URL: for run folders given by their whole path."""


def run_root(config: Config) -> RunRoot:
    """Where the settings keep runs."""
    return RunRoot(
        config.run_root,
        config.run_url,
        config.run.stale_lock_seconds,
        with_adapters=config.serve.runtime == "openai",
    )


def pull(root: RunRoot, run_id: str = "") -> None:
    """Copy the settings and manifests of all runs, or of one, from the URL; drop those gone there.

    A copied manifest states the URL of its outputs, and is valid without them.

    Raises:
        DataError: the URL does not answer.
    """
    if not root.url:
        return
    with remote_files(root) as (files, top):
        below = f"{top}/{run_id}".rstrip("/")
        paths = {path.removeprefix(f"{top}/"): path for path in files.find(below)}
        records = {name: path for name, path in paths.items() if RECORDS.fullmatch(name)}
        texts = _read_records(files, records)
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
    with remote_files(root) as (files, top):
        for name in names:
            target = f"{top}/{place}/{name}"
            if name == MANIFEST:
                text = (folder / name).read_text(encoding="utf-8")
                files.pipe_file(target, _with_outputs_at(text, "").encode())
            else:
                files.put_file(str(folder / name), target)


def fetch(root: RunRoot, run_id: str, stage: str, *, under: str = "") -> None:
    """Download the outputs of a stage whose names begin with `under`, and verify their digests.

    Files that are here already, with the right digest, are not downloaded again.

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


def download(root: RunRoot, run: Path, names: Iterable[str]) -> None:
    """Make files of a run here what they are at the URL, without comparing them to a manifest.

    Raises:
        DataError: the URL does not answer.
    """
    if not root.url:
        return
    with remote_files(root) as (files, top):
        for name in names:
            path, local = f"{top}/{run.name}/{name}", run / name
            local.unlink(missing_ok=True)
            if files.exists(path):
                local.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(path, str(local))


def files_of_run(root: RunRoot, run: Path) -> list[str]:
    """Every file of a run, here and at the URL, by path in the run's folder.

    Raises:
        DataError: the URL does not answer.
    """
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    if root.url:
        with remote_files(root) as (files, top):
            folder = f"{top}/{run.name}"
            names |= {path.removeprefix(f"{folder}/") for path in files.find(folder)}
    return sorted(names)


def remove_files(root: RunRoot, run: Path, names: Iterable[str]) -> None:
    """Remove files of a run, here and at the URL, in this order; missing ones are skipped.

    Raises:
        DataError: the URL does not answer.
    """
    for name in names:
        (run / name).unlink(missing_ok=True)
        if root.url:
            with remote_files(root) as (files, top):
                path = f"{top}/{run.name}/{name}"
                if files.exists(path):
                    files.rm_file(path)


def remove_run(root: RunRoot, run: Path) -> None:
    """Remove a run, here and at the URL; its settings last, so that a killed removal is repeated.

    Raises:
        DataError: the URL does not answer.
    """
    if root.url:
        with remote_files(root) as (files, top):
            folder = f"{top}/{run.name}"
            for path in sorted(files.find(folder), key=lambda path: path == f"{folder}/{CONFIG}"):
                files.rm_file(path)
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    shutil.rmtree(run)


def digest_of(root: RunRoot, path: Path) -> str | None:
    """SHA-256 of an output of a stage, or None; with a URL, the one that its manifest states."""
    if not root.url:
        return sha256_of(path) if path.is_file() else None
    run_id, stage, *name = path.relative_to(root.folder).parts
    manifest = read_manifest(root.folder / run_id / stage)
    return manifest.outputs.get("/".join(name)) if manifest else None


def as_stored(root: RunRoot, model: ModelVersion) -> ModelVersion:
    """The version as the database stores it: with a URL, paths are relative to the run root."""
    if not root.url:
        return model
    return _with_paths(model, lambda path: path.relative_to(root.folder))


def as_local(root: RunRoot, model: ModelVersion) -> ModelVersion:
    """The version with the paths that its files have on this machine once they are fetched.

    A version that was registered with absolute paths keeps them.
    """
    return _with_paths(model, lambda path: root.folder / path)


def fetch_release(root: RunRoot, model: ModelVersion) -> None:
    """Download what the model server needs of a version: GGUF, prompt folder, perhaps the adapter.

    Raises:
        DataError: they are missing, or not those that were registered.
    """
    if not root.url or not model.gguf.is_relative_to(root.folder):
        return
    pull(root, model.run_id)
    manifest = read_manifest(model.gguf.parent)
    found = manifest.outputs.get(model.gguf.name) if manifest else None
    if found != model.sha256:
        raise DataError(
            f"{model.name} was registered with a GGUF of SHA-256 {model.sha256}, but "
            f"{root.url}/{model.run_id}/{model.gguf.parent.name} holds {found or 'none'}; "
            "put that folder back as it was, or roll back to another version"
        )
    fetch(root, model.run_id, model.gguf.parent.name)
    if root.with_adapters:
        fetch_adapter(root, model)


def fetch_adapter(root: RunRoot, model: ModelVersion) -> None:
    """Download the adapter of a version, if it has one.

    Raises:
        DataError: it is missing, or not what its training wrote.
    """
    adapter = model.adapter
    if not root.url or adapter is None or not adapter.is_relative_to(root.folder):
        return
    pull(root, model.run_id)
    fetch(root, model.run_id, adapter.parent.name, under=f"{adapter.name}/")


@contextmanager
def remote_files(root: RunRoot) -> Iterator[tuple[Any, str]]:
    """The file system of the URL, and the path of the root in it. Its errors become DataError.

    Raises:
        ConfigError: no installed package supports this URL.
        DataError: the URL does not answer, or refuses a call.
    """
    options = {"auto_mkdir": True} if root.url.startswith(("file:", "local:")) else {}
    try:
        import fsspec

        # A cached listing would hide what other workers have written since.
        files, top = fsspec.url_to_fs(root.url, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"[run] root = {root.url}: {error}; s3:// needs `pip install 'reactune[s3]'`, "
            "other stores the package of fsspec for their protocol"
        ) from error
    try:
        yield files, top.rstrip("/")
    except remote_errors() as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{root.url} failed: {reason}; check [run] root, the credentials in the "
            "environment and the network, and repeat"
        ) from error


def remote_errors() -> tuple[type[Exception], ...]:
    """The errors that a file system of fsspec raises: OSError, and those of S3's client."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, botocore.BotoCoreError) if botocore else (OSError,)


def _drop_outdated(root: RunRoot, run_id: str, texts: dict[str, str]) -> None:
    """Remove local records and runs that are gone at the URL, and copies from before an erasure."""
    here = root.folder / run_id
    for file in [*here.rglob(CONFIG), *here.rglob(MANIFEST)]:
        name = file.relative_to(root.folder).as_posix()
        if RECORDS.fullmatch(name) and name not in texts:
            file.unlink(missing_ok=True)
            if file.name == CONFIG:
                shutil.rmtree(file.parent, ignore_errors=True)
    for name, text in texts.items():
        known = root.folder / name
        if known.name == ERASED and not (known.is_file() and known.read_text("utf-8") == text):
            for copy in known.parent.rglob("*"):
                if copy.is_file() and not copy.name.startswith(".lock"):
                    copy.unlink()


def _read_records(files: Any, paths: dict[str, str]) -> dict[str, str]:
    """The texts of these files, by name; those removed meanwhile are left out."""
    if not paths:
        return {}
    # At once where the store allows it; `cat` would take brackets in a path for a pattern.
    contents = files.cat_ranges(list(paths.values()), None, None, on_error="return")
    texts = {}
    for (name, path), content in zip(paths.items(), contents, strict=True):
        if isinstance(content, FileNotFoundError):
            continue
        if isinstance(content, Exception):
            raise content
        text = content.decode("utf-8", errors="replace")
        folder, _, file = files.unstrip_protocol(path).rpartition("/")
        texts[name] = _with_outputs_at(text, folder) if file == MANIFEST else text
    return texts


def _with_outputs_at(manifest: str, url: str) -> str:
    """The text of a manifest whose outputs are kept at this URL."""
    try:
        return json.dumps({**json.loads(manifest), "kept_at": url}, indent=2)
    except (ValueError, TypeError):
        return manifest  # incomplete, so not a valid manifest


def _fetch_file(root: RunRoot, place: str, name: str, digest: str) -> None:
    local = root.folder / place / name
    if not local.resolve().is_relative_to((root.folder / place).resolve()):
        raise DataError(
            f"{root.url}/{place}/{MANIFEST} names {name!r}, outside of its folder; remove "
            f"that manifest, and do stage {place.rpartition('/')[2]} again"
        )
    if is_file_of_digest(local, digest):
        return
    with replacing(local) as partial:
        with remote_files(root) as (files, top), suppress(FileNotFoundError):
            files.get_file(f"{top}/{place}/{name}", str(partial))
        found = sha256_of(partial) if partial.is_file() else "no object"
        if found != digest:
            raise DataError(
                f"{root.url}/{place}/{name} is not what its stage wrote: SHA-256 {digest} "
                f"expected, {found} found; delete {place}/{MANIFEST} there, and do stage "
                f"{place.rpartition('/')[2]} again"
            )


def _with_paths(model: ModelVersion, change: Callable[[Path], Path]) -> ModelVersion:
    return replace(
        model,
        gguf=change(model.gguf),
        prompt_folder=change(model.prompt_folder),
        adapter=None if model.adapter is None else change(model.adapter),
        reward=None if model.reward is None else change(model.reward),
    )
