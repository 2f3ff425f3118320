"""The guides that serve tips, command by command in one shell, with a model of random weights.

Ollama is a real one. In the place of `vllm` stands the server of `openai_fixtures.py`, which takes
the options of the page; nothing here is run on vLLM itself.
"""

import shlex
import sys

import pytest

from cli_fixtures import stored
from console_fixtures import commands_of, run_in_shell, settings_of
from loop_fixtures import SECRET, tiny_base, write_settings
from ollama_fixtures import serve_command
from places import TESTS
from reactune.config.sections import ModelConfig
from reactune.model.files import base_model
from server_fixtures import free_port

BASE = "/models/Llama-3.2-1B-Instruct"


def tiny_folder():
    """The tiny model as the folder that transformers reads."""
    base, cache = tiny_base()
    return base_model(ModelConfig(base=str(base), cache_dir=str(cache))).folder


def run_page(page, folder, places, **more):
    """Do what the page says from its first line on; what was printed."""
    port = free_port()
    places = {**places, "localhost:8765": f"localhost:{port}"}

    def here(text):
        for name, ours in places.items():
            text = text.replace(name, ours)
        return text

    asked = {
        section: {key: here(value) for key, value in values.items()}
        for section, values in settings_of(page).items()
    }
    # Random weights end an answer at one token of 260, and the guard blocks most of their tips:
    # curl asks again.
    serve = {**asked.pop("serve", {}), "port": port, "max_tokens": 96, "timeout_seconds": 120}
    write_settings(folder, **asked, serve={**serve, "threads": 1})
    (folder / ".curlrc").write_text("retry = 50\nretry-delay = 1\n", encoding="utf-8")
    commands = ["reactune init", *map(here, commands_of(page))]
    return run_in_shell(commands, folder, REACTUNE_KEY=SECRET, CURL_HOME=str(folder), **more)


@pytest.mark.slow
@pytest.mark.ollama
def test_the_commands_of_the_page_lead_to_a_tip_of_ollamas(tmp_path, ollama_url):
    program = shlex.join(serve_command()[:-1])
    printed = run_page(
        "ollama.md",
        tmp_path,
        {"http://127.0.0.1:11434": ollama_url},
        programs={"ollama": f'exec {program} "$@"'},
        OLLAMA_HOST=ollama_url.removeprefix("http://"),
    )
    assert "model server  Ollama" in printed
    assert '"content":' in printed
    assert "tip-generator:v1" in printed
    assert "tip-generator:champion" in printed


@pytest.mark.slow
def test_the_commands_of_the_page_lead_to_a_tip_of_a_server_like_vllm(tmp_path):
    port = free_port()
    server = shlex.join([sys.executable, str(TESTS / "openai_fixtures.py")])
    printed = run_page(
        "vllm.md",
        tmp_path,
        {BASE: str(tiny_folder()), "http://gpu:8000": f"http://localhost:{port}",
         "--port 8000": f"--port {port}"},
        programs={"vllm": f'exec {server} "$@"'},
        PYTHONPATH=str(TESTS),
    )  # fmt: skip
    assert "which loads an adapter for each version" in printed
    assert '"content":' in printed


@pytest.mark.slow
def test_the_commands_of_the_page_ask_for_a_tip_and_report_on_it(tmp_path):
    run_page("service.md", tmp_path, {})
    query = "SELECT shown_at IS NOT NULL, reaction, dwell_ms FROM tip_scores"
    assert stored(tmp_path, query) == [(1, "done", 21_000)]
    keys = stored(tmp_path, "SELECT name FROM api_keys ORDER BY created_at")
    assert [name for (name,) in keys] == ["phone app", "prometheus", "Olga"]


@pytest.mark.slow
def test_the_commands_of_the_page_make_an_own_model_the_first_champion(tmp_path):
    printed = run_page("own-model.md", tmp_path, {BASE: str(tiny_folder())})
    assert "version 1 is champion" in printed
    assert "waiting: 0 of 40 positives" in printed
