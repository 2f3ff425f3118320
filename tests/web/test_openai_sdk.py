"""The OpenAI-compatible endpoint, called with OpenAI's own client for JavaScript."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from reactune.config.sections import ModelConfig
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.service.state import close_service
from reactune.store.database import create_store
from reactune.web.api import create_app
from serving_fixtures import PROMPTS, ModelServer, listening, rows_of, service_of, set_champion

SCRIPT = Path(__file__).with_name("openai_sdk.mjs")
SDK = "openai@6.49.0"


@pytest.fixture
def sdk(tmp_path):
    """A folder in which the script finds OpenAI's client, fetched by npm."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no Node.js with npm")
    call = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save", SDK]
    done = subprocess.run(
        call, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"npm cannot fetch {SDK}: {done.stderr.strip()[-200:]}")
    shutil.copy(SCRIPT, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_openais_client_for_javascript_gets_tips_models_streams_and_refusals(sdk):
    engine = create_store(f"sqlite:///{sdk / 'store.db'}")
    set_champion(engine)
    model = ModelServer({1: "Write to <EMAIL_1> first."})
    service = service_of(engine, load_chat(base_model(ModelConfig()).folder, PROMPTS), model)
    with listening(create_app(service)) as address:
        done = subprocess.run(
            ["node", SCRIPT.name, f"{address}/v1"],
            cwd=sdk,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    tip = "Write to anna@example.com first."
    assert (said["whole"], said["finish"], said["streamed"]) == (tip, "stop", tip)
    assert said["models"]
    assert said["tools"]
    assert said["refused"]["status"] == 422
    assert "response_format" in said["refused"]["message"]
    row = {row["tip_id"]: row for row in rows_of(engine)}[said["id"]]
    assert row["kind"] == "focus"
    assert "anna@" not in row["context_json"]
    close_service(service)
    engine.dispose()
