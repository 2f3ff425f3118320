"""Every model server implements the whole `Runtime`, and is listed in one place."""

import inspect
from typing import get_args

import pytest

from reactune.config.sections import ServeConfig
from reactune.demo.pool import PooledRuntime
from reactune.records import Runtime
from reactune.release.llamacpp import LlamaCpp
from reactune.release.ollama import Ollama
from reactune.release.runtimes import RUNTIMES, connect
from serving_fixtures import ModelServer

CALLS = {name: call for name, call in vars(Runtime).items() if not name.startswith("_")}


def test_every_runtime_that_the_settings_allow_is_in_the_dict_and_no_other():
    assert set(get_args(ServeConfig.model_fields["runtime"].annotation)) == set(RUNTIMES)


@pytest.mark.parametrize("kind", [*RUNTIMES.values(), PooledRuntime, ModelServer])
def test_a_runtime_takes_every_call_with_the_parameters_of_the_protocol(kind):
    for name, call in CALLS.items():
        own = getattr(kind, name)
        assert [*inspect.signature(own).parameters] == [*inspect.signature(call).parameters], name
        assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(call), name


@pytest.mark.parametrize(("name", "kind"), [("llamacpp", LlamaCpp), ("ollama", Ollama)])
def test_the_setting_chooses_the_runtime(name, kind):
    runtime = connect(ServeConfig(runtime=name))
    runtime.close()
    assert type(runtime) is kind


def test_a_runtime_that_is_added_to_the_dict_is_connected_to(monkeypatch):
    made = []

    def make(settings):
        made.append(ModelServer({}))
        return made[0]

    monkeypatch.setitem(RUNTIMES, "new", make)
    settings = ServeConfig().model_copy(update={"runtime": "new"})
    assert connect(settings) is made[0]
