"""The base model is proved before it is live, and before anything is trained from it."""

import pytest

from loop_fixtures import SECRET, install, reactions, take_in
from reactune import deployment, pipeline
from reactune.errors import ReleaseError


@pytest.mark.slow
def test_a_base_that_answers_otherwise_than_transformers_is_never_live_nor_trained(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("REACTUNE_KEY", SECRET)
    # Less than any rounding: stands for a base that converter or server get wrong.
    config = install(tmp_path, export={"max_logprob_gap": 1e-9})
    take_in(config, reactions(200))
    said = r"cannot be served as it was trained: log-prob.* above"
    with pytest.raises(ReleaseError, match=said):
        deployment.deploy_base(config)
    with pytest.raises(ReleaseError, match=said):
        pipeline.run(config, say=lambda line: None)
    assert deployment.current(config) is None
    assert deployment.versions(config) == ()
    assert not list(tmp_path.rglob("adapter_model.safetensors"))
