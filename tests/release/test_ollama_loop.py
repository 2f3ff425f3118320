"""The whole loop with a real Ollama as model server: train, prove, deploy, serve, promote."""

import pytest

from loop_fixtures import SECRET, expose, install, reactions, serve_tips, take_in
from reactune import deployment, pipeline, review
from reactune.release.ollama import Ollama
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests
from reactune.store.database import opened_store
from reactune.store.queries import current_rollout

pytestmark = [pytest.mark.ollama, pytest.mark.slow]


@pytest.fixture
def config(tmp_path, ollama_url, monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    serve = {"runtime": "ollama", "ollama_url": ollama_url, "timeout_seconds": 180, "threads": 1}
    config = install(tmp_path, serve={**serve, "max_tokens": 16}, canary={"share": 0.5, "ramp": []})
    take_in(config, reactions(200))
    return config


def tags(config):
    runtime = Ollama(config.serve)
    try:
        return {name for name in runtime.names() if name.startswith("tip-generator:")}
    finally:
        runtime.close()


def test_a_run_is_proven_deployed_served_and_promoted_through_ollama(config):
    assert pipeline.run(config, say=print).stage == "deploy"
    (folder,) = all_runs(config.run_root)
    assert "as trained" in manifests(folder)["export"].summary
    assert tags(config) >= {
        "tip-generator:v2",
        "tip-generator:champion",
        "tip-generator:challenger",
    }

    with opened_store(config.store_url) as engine, engine.connect() as connection:
        assert current_rollout(connection).challenger == 2
    texts, arms = serve_tips(config)
    assert all(texts)
    assert arms == {("champion", 1, None), ("challenger", 2, None)}

    now = expose(config, 400, champion=0.1, challenger=0.9, first=20)
    assert review.review(config, now=now).verdict == "promote"
    assert deployment.champion(config).version == 2
    assert "tip-generator:challenger" not in tags(config)
