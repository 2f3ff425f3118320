"""The whole loop with a server like vLLM, which holds one base model and an adapter a version."""

import httpx
import pytest

from loop_fixtures import SECRET, expose, install, reactions, serve_tips, take_in
from openai_fixtures import vllm_like
from reactune import deployment, pipeline, review
from reactune.model.files import base_model
from reactune.runs.folders import all_runs
from reactune.runs.manifest import manifests

pytestmark = [
    pytest.mark.slow,
    # PEFT asks transformers by an old name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


def test_a_run_is_proven_deployed_served_and_promoted_by_adapters(tmp_path, monkeypatch):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    folder = base_model(install(tmp_path).model).folder
    with vllm_like(folder) as (server, url):
        serve = {"runtime": "openai", "openai_url": url, "openai_model": "org/base"}
        serve |= {"timeout_seconds": 60, "max_tokens": 96}  # for a tuned tip to end
        config = install(tmp_path, serve=serve, canary={"share": 0.5, "ramp": []})
        take_in(config, reactions(200))

        assert pipeline.run(config, say=print).stage == "deploy"
        (run,) = all_runs(config.run_root)
        assert "as trained" in manifests(run)["export"].summary
        assert any(body.get("prompt_logprobs") == 0 for body in server.asked)
        adapter = str(run / "train" / "adapter")
        assert server.adapters == {"tip-generator:v2": adapter}

        texts, arms = serve_tips(config)
        assert all(texts)
        # The guard blocks what random weights do not end; below is who was asked.
        assert {arm for arm, _, _ in arms} == {"champion", "challenger"}
        served = {body["model"] for body in server.asked[-len(texts) :]}
        assert served == {"org/base", "tip-generator:v2"}

        now = expose(config, 400, champion=0.1, challenger=0.9, first=20)
        assert review.review(config, now=now).verdict == "promote"
        assert deployment.champion(config).version == 2
        listed = httpx.get(f"{url}/v1/models").json()["data"]
        assert [(card["id"], card["root"]) for card in listed[1:]] == [
            ("tip-generator:v2", adapter)
        ]
