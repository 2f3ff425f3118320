"""The whole loop with Unsloth as trainer, on a CPU: gate, export, proof, rollout and a tip."""

import json

import pytest

from backend_fixtures import SETTINGS
from loop_fixtures import SECRET, install, reactions, serve_tips, take_in
from reactune import pipeline
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests
from reactune.train.backends import folder_of, is_made

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

    texts, arms = serve_tips(config)
    assert all(texts)
    assert arms == {("champion", 1, None), ("challenger", 2, None)}
