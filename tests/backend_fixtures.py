"""Settings for back-ends in environments of their own."""

import os

import pytest

from reactune.config.sections import TrainConfig
from reactune.train.backends import (
    OWN,
    folder_of,
    is_made,
)

SETTINGS = TrainConfig(
    backend_folder=os.environ.get("REACTUNE_TEST_BACKENDS", ""),
    batch_size=4,
    lora_rank=4,
    lora_alpha=8,
    learning_rate=5e-3,
    checkpoint_steps=2,
    threads=1,
)


def settings_of(backend, **changes):
    """Settings for a back-end that is installed, or a skip."""
    if backend in OWN and not is_made(backend, folder_of(backend, SETTINGS)):
        pytest.skip(
            f"no environment of {backend}; `reactune backend install {backend}`, and name another "
            "folder than the default in REACTUNE_TEST_BACKENDS"
        )
    return SETTINGS.model_copy(update={"backend": backend, **changes})
