"""A run's record with something of everything that MLflow keeps."""

from reactune.config.sections import RegistryConfig
from reactune.release.registry import (
    Record,
)

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
