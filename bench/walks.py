"""Which modules one tip row, one request and one erasure enter, in the order of first entry.

    .venv/bin/python bench/walks.py

A module is entered if one of its functions runs during the walk; imports and definitions do not
count. `--json` prints the lists and records nothing.
"""

import argparse
import inspect
import json
import os
import pkgutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from click.testing import CliRunner
from fastapi.testclient import TestClient

import reactune
from reactune import pipeline, tracking
from reactune.cli import commands
from reactune.cli.session import Session
from reactune.config.sections import ModelConfig
from reactune.config.settings import load
from reactune.data.dataset.exports import read_examples
from reactune.erasure.verify import verify
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.privacy.hashing import user_key
from reactune.release import registry
from reactune.service.state import close_service
from reactune.store.database import create_store
from reactune.web.api import create_app
from record import record

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import people_fixtures as people
import serving_fixtures as serving
from registry_fixtures import record_in

PACKAGE = Path(reactune.__file__).parent
PREVIOUS = {"tip row": 70, "request": 31, "erasure": 26}
"""As counted by hand before there were packages; this script counts 50, 27 and 27 on that code."""
OPTIONAL = {"spacy", "ray", "unsloth", "axolotl", "openfeature", "opentelemetry"}


class Walk:
    """The modules whose functions run inside `counting`, in this thread and in new ones."""

    def __init__(self) -> None:
        self.modules: dict[str, None] = {}
        self._seen: set[str] = set()
        self._is_counting = False

    @contextmanager
    def watching_threads(self) -> Iterator[None]:
        """Threads that start in here are counted, too."""
        threading.setprofile(self._note)
        try:
            yield
        finally:
            threading.setprofile(None)  # type: ignore[arg-type]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs in here."""
        self._is_counting = True
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            self._is_counting = False

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if not self._is_counting or event != "call":
            return
        code = frame.f_code
        # The bodies of modules and classes are code, too, but are not optimised.
        if code.co_filename not in self._seen and code.co_flags & inspect.CO_OPTIMIZED:
            self._seen.add(code.co_filename)
            file = Path(code.co_filename)
            if file.is_relative_to(PACKAGE):
                name = file.relative_to(PACKAGE).with_suffix("").as_posix()
                self.modules.setdefault(name.removesuffix("/__init__").replace("/", "."))


class HandedOver(Exception):
    """The rows have reached the trainer; what it does with them is another program's."""


def tip_row(folder: Path, walk: Walk) -> None:
    """Rows of JSONL, read, labelled, de-identified, chosen and tokenised for the trainer."""
    people.install(folder)
    # The base model may be there already; the cache folder of these settings is new.
    config = load(folder / "reactune.toml", (f"model.cache_dir={ModelConfig().cache_dir}",))

    def hand_over(*_: Any, **__: Any) -> None:
        raise HandedOver

    with (
        mock.patch.dict(os.environ, {config.privacy.key_env: people.KEY.secret.decode()}),
        mock.patch.object(pipeline, "train_methods", hand_over),
    ):
        with walk.counting():
            people.take_in(config, [row for user in people.USERS for row in people.rows_of(user)])
            run = tracking.start_run(config)
            for stage in ("extract", "dataset"):
                pipeline.run_one_stage(config, stage, run.name, say=_silent)
        # No row passes through this stage on its way, but the training waits for it.
        pipeline.run_one_stage(config, "reward", run.name, say=_silent)
        try:
            with walk.counting():
                pipeline.run_one_stage(config, "train", run.name, say=_silent)
        except HandedOver:
            return
    raise RuntimeError("no row has reached the trainer")


def request(folder: Path, walk: Walk) -> None:
    """One `POST /v1/tips` until the exposure is on disk; only the model server is a stub."""
    engine = create_store(f"sqlite:///{folder / 'reactune.db'}")
    serving.set_champion(engine)
    serving.set_challenger(engine)
    chat = load_chat(base_model(ModelConfig()).folder, serving.PROMPTS)
    tip = "Water the plants before noon."
    service = serving.service_of(engine, chat, serving.ModelServer({1: tip, 2: tip}))
    # A running service reads what is live twice a second, whether anybody asks for a tip or not.
    service.watcher.max_age_seconds = 3600.0
    service.watcher.refresh()
    body = {"user": "u-7", "kind": "focus", "context": {"free_text": "mail anna@example.com"}}
    client = TestClient(create_app(service))  # without `with`: no watcher runs beside the request
    with walk.counting():
        answer = client.post("/v1/tips", json=body)
    close_service(service)
    if answer.json().get("recorded") is not True or len(serving.rows_of(engine)) != 1:
        raise RuntimeError(f"no exposure is on disk: {answer.text}")
    engine.dispose()


def erasure(folder: Path, walk: Walk) -> None:
    """`reactune erase --user`: in the database, in a run, and for its model a date in MLflow."""
    config = people.install(folder)
    (run,) = people.populate(config, runs={people.RUN: "deploy"})
    learned = {example.user_key for example in read_examples(run / "dataset")["train"]}
    user = next(each for each in people.USERS if user_key(people.KEY, each) in learned)
    number = registry.register(
        config.registry,
        config.tracking_uri,
        record_in(folder, people.RUN),
        artifact_root=folder / "mlflow-artifacts",
    )
    engine = create_store(config.store_url)
    serving.register(engine, replace(serving.version(number), run_id=people.RUN))
    engine.dispose()
    command = ["--config", str(folder / "reactune.toml"), "erase", "--user", user]
    command += ["--reason", "asked by mail"]
    with mock.patch.dict(os.environ, {"REACTUNE_KEY": people.KEY.secret.decode()}), walk.counting():
        done = CliRunner().invoke(commands, command, obj=Session())
    if done.exit_code or verify(config, people.RING, [user]).traces:
        raise RuntimeError(f"the person is still there: {done.output}") from done.exception


WALKS: dict[str, Callable[[Path, Walk], None]] = {
    "tip row": tip_row,
    "request": request,
    "erasure": erasure,
}


def measure() -> dict[str, tuple[str, ...]]:
    """The modules that each walk enters. All modules are imported before the first begins."""
    _import_all()
    entered = {}
    for name, go in WALKS.items():
        with tempfile.TemporaryDirectory() as folder:
            walk = Walk()
            with walk.watching_threads():
                go(Path(folder), walk)
            entered[name] = tuple(walk.modules)
    return entered


def _import_all() -> None:
    for module in pkgutil.walk_packages([str(PACKAGE)], "reactune."):
        if "migrations" in module.name:
            continue
        try:
            import_module(module.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in OPTIONAL:
                raise


def _silent(_: str) -> None:
    """What a stage reports is not measured."""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    entered = measure()
    if as_json:
        print(json.dumps(entered))
        return
    for name, modules in entered.items():
        print(f"{name}: {len(modules)} modules ({PREVIOUS[name]} before): {', '.join(modules)}")
    record("walks", {"previous": PREVIOUS, "entered": entered})


if __name__ == "__main__":
    main()
