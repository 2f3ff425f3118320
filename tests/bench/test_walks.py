"""The count of modules: what enters one, and what does not."""

import importlib
import json
import subprocess
import sys
import threading

import pytest

from places import BENCH


@pytest.fixture
def walks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("walks")


@pytest.fixture
def package(walks, tmp_path, monkeypatch):
    """Two modules, one of which calls a function while it is imported."""
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "hall.py").write_text(
        "def enter():\n    return 1\n\n\nclass Door:\n    width = [n for n in range(3)]\n"
    )
    (folder / "yard.py").write_text("from house.hall import enter\n\nASKED = enter()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(walks, "PACKAGE", folder)
    yield walks
    for name in [name for name in sys.modules if name.partition(".")[0] == "house"]:
        del sys.modules[name]


def test_a_module_is_entered_when_one_of_its_functions_runs(package):
    from house import hall

    walk = package.Walk()
    hall.enter()
    assert list(walk.modules) == []
    with walk.counting():
        hall.enter()
    assert list(walk.modules) == ["hall"]


def test_an_import_enters_only_the_modules_whose_functions_it_calls(package):
    walk = package.Walk()
    with walk.counting():
        importlib.import_module("house.yard")
    assert list(walk.modules) == ["hall"]


def test_threads_that_start_during_a_walk_are_counted(package):
    from house import hall

    walk = package.Walk()
    with walk.watching_threads():
        is_time = threading.Event()
        thread = threading.Thread(target=lambda: (is_time.wait(10), hall.enter()))
        thread.start()
        with walk.counting():
            is_time.set()
            thread.join()
    assert list(walk.modules) == ["hall"]


@pytest.mark.slow
def test_the_walks_enter_what_they_are_about():
    done = subprocess.run(
        [sys.executable, str(BENCH / "walks.py"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    entered = json.loads(done.stdout)
    assert {"data.ingest", "pipeline", "train.trainer"} <= set(entered["tip row"])
    assert {"web.api", "service.tips", "canary.routing"} <= set(entered["request"])
    assert {"erasure.erase", "erasure.runs", "release.registry"} <= set(entered["erasure"])
