"""The whole loop with a real Ollama as model server: train, prove, deploy, serve, promote."""

import random

import pytest

from loop_fixtures import KEY, SECRET, expose, install, reactions, take_in
from reactune import deployment, pipeline, review
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.release.ollama import Ollama
from reactune.release.runtimes import connect
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests
from reactune.service import state
from reactune.store.database import open_store
from reactune.store.queries import current_rollout
from serving_fixtures import report_shown, request_tip

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

    engine = open_store(config.store_url)
    service = state.open_service(
        engine,
        chat=load_chat(base_model(config.model).folder, config.prompt),
        runtime=connect(config.serve),
        key=KEY,
        settings=config.serve,
        draw=random.Random(5).getrandbits,
    )
    try:
        for number in range(12):
            tip = request_tip(
                service, user_id=f"user-{number}", kind="focus", context={"time_of_day": "night"}
            )
            report_shown(service, tip.tip_id)
            assert tip.content
        with engine.connect() as connection:
            assert current_rollout(connection).challenger == 2
            rows = connection.exec_driver_sql(
                "SELECT arm, model_version, fallback FROM tip_scores WHERE rollout_id IS NOT NULL"
            ).all()
            arms = {(row.arm, row.model_version, row.fallback) for row in rows}
    finally:
        state.close_service(service)
        engine.dispose()
    assert arms == {("champion", 1, None), ("challenger", 2, None)}

    now = expose(config, 400, champion=0.1, challenger=0.9, first=20)
    assert review.review(config, now=now).verdict == "promote"
    assert deployment.champion(config).version == 2
    assert "tip-generator:challenger" not in tags(config)
