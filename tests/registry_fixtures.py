"""A run's record with something of everything that MLflow keeps, and what MLflow then shows."""

import contextlib
import warnings

from reactune.config.sections import RegistryConfig
from reactune.release.registry import RUN_TAG, Record

SETTINGS = RegistryConfig()
CURVE = ((0, 2.5), (10, 2.25), (20, 2.0))
TAGS = {"dataset": "d1", "base_model": "smollm2", "code_version": "0.1.0", "gguf_sha256": "a" * 64}


def record_in(folder, run_id="run-1"):
    """A run with something of everything that is logged."""
    files = folder / "files"
    (files / "prompt").mkdir(parents=True, exist_ok=True)
    (files / "model.gguf").write_bytes(b"weights")
    (files / "prompt" / "stop.txt").write_text("<|im_end|>")
    (files / "prompt" / "system.txt").write_text("You write tips.")
    return Record(
        run_id=run_id,
        params={"train.lora_rank": 16, "prompt.keys": ("story", "excerpt"), "long": "x" * 7000},
        metrics={"gate/tuned/preference_accuracy": 0.625},
        curves={"loss/sft": CURVE},
        texts={"gate.json": '{"refusals": []}', "loss.svg": "<svg/>"},
        artifacts={files / "model.gguf": "", files / "prompt": "prompt"},
        tags=TAGS,
    )


@contextlib.contextmanager
def mlflow_client(uri):
    """MLflow's own client, to see what it would show to a person."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\.")
        from mlflow import MlflowClient

        yield MlflowClient(tracking_uri=uri, registry_uri=uri)


def aliases_of(settings, uri):
    """The aliases of the registered model; empty before the first version."""
    with mlflow_client(uri) as client:
        models = client.search_registered_models(f"name = '{settings.model_name}'")
        return {name: int(number) for name, number in models[0].aliases.items()} if models else {}


def numbers_of(settings, uri):
    """The number of each run's version; empty before the first."""
    with mlflow_client(uri) as client:
        versions = client.search_model_versions(f"name = '{settings.model_name}'")
        return {each.tags[RUN_TAG]: int(each.version) for each in versions if RUN_TAG in each.tags}
