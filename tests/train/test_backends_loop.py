"""The whole loop with Unsloth as trainer, on a CPU: gate, export, proof, rollout and a tip."""

import json
import random

import pytest

from backend_fixtures import SETTINGS
from loop_fixtures import KEY, SECRET, install, reactions, take_in
from reactune import pipeline
from reactune.model.files import base_model
from reactune.model.prompt import load_chat
from reactune.release.runtimes import connect
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests
from reactune.service import state
from reactune.store.database import open_store
from reactune.train.backends import folder_of, is_made
from serving_fixtures import request_tip

pytestmark = pytest.mark.slow


def test_what_unsloth_trained_passes_the_gate_is_exported_proven_and_served(tmp_path, monkeypatch):
    if not is_made("unsloth", folder_of("unsloth", SETTINGS)):
        pytest.skip("no environment of unsloth; run `reactune backend install unsloth`")
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    train = {"backend": "unsloth", "backend_folder": SETTINGS.backend_folder}
    config = install(tmp_path, train=train, canary={"share": 0.5, "ramp": []})
    take_in(config, reactions(200))
    assert pipeline.run(config, say=print).stage == "deploy"
    (folder,) = all_runs(config.run_root)
    assert manifests(folder)["train"].settings["train"]["backend"] == "unsloth"
    assert "as trained" in manifests(folder)["export"].summary
    assert "Unsloth" in (folder / "train" / "sft" / "trainer.log").read_text()
    gate = json.loads((folder / "evaluate" / "gate.json").read_text())
    assert not gate["refusals"]

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
        tips = [
            request_tip(
                service, user_id=f"user-{number}", kind="focus", context={"time_of_day": "night"}
            )
            for number in range(12)
        ]
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(
                "SELECT arm, model_version, fallback FROM tip_scores WHERE rollout_id IS NOT NULL"
            ).all()
    finally:
        state.close_service(service)
        engine.dispose()
    assert all(tip.content for tip in tips)
    assert {tuple(row) for row in rows} == {("champion", 1, None), ("challenger", 2, None)}
