"""The settings of the demo, as the `reactune.toml` that a demo folder gets, and that folder.

Only what differs from the defaults stands here, and why.
"""

import json
import os
import secrets
from itertools import chain, count
from pathlib import Path

from reactune.config import CONFIG_NAME, Config, load
from reactune.database import create_store
from reactune.demo.world import CONTEXT_KEYS, INSTRUCTIONS, SYSTEM

STARTED = ".started"  # marks a folder in which a demo was played
MAX_TOKENS = 48
TOKEN_BUDGET = 80_000


def demo_config() -> str:
    """The TOML text. Prompt and length are those the pool was written with; keep them together."""
    instructions = "\n".join(f"{kind} = {json.dumps(text)}" for kind, text in INSTRUCTIONS.items())
    return f"""# The demo: people of src/reactune/demo react to tips of a small base model.

[prompt]
system = {json.dumps(SYSTEM)}
# The tasks come last: a small model writes most about what it read last.
context_keys = {json.dumps(list(CONTEXT_KEYS))}
cut_order = {json.dumps(["free_text", "user_settings", "open_tasks", "time_of_day"])}
max_context_tokens = 128

[prompt.instructions]
{instructions}

[serve]
# Nobody reads on: a tip that is cut here is too long anyway.
max_tokens = {MAX_TOKENS}
parallel = 8
# Nobody waits in a demo, and another program may want the processor.
timeout_seconds = 120
champion_timeout_seconds = 120

[train]
# Two processor cores read some 300 tokens a second this way: five minutes.
method = "kto"
preference_learning_rate = 3e-4
lora_layers = 12
token_budget = {TOKEN_BUDGET}
time_budget_minutes = 8
checkpoint_steps = 20

[dataset]
# A gate needs people: two in ten are held out for it.
split = [0.7, 0.1, 0.2]

[gate]
max_examples = 400

[export]
parity_prompts = 12

[canary]
# Days of the demo stand for weeks: steps are taken, and the rollout ends, early.
min_days = 1
planned_units = 3000
min_units_per_step = 150
max_units = 3000
"""


def unused(folder: Path) -> Path:
    """The folder, or where a demo was played in it before, the first of folder-2, folder-3, ..."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(place for place in chain([folder], numbered) if not (place / STARTED).exists())


def set_up(folder: Path, *, seed: int) -> Config:
    """Settings, key and database of a demo folder; a settings file that is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG_NAME
    if not file.is_file():
        file.write_text(demo_config(), encoding="utf-8")
    config = load(file, (f"train.seed={seed}", f"dataset.seed={seed}"))
    secret = folder / "key"
    if not secret.is_file():
        secret.touch(mode=0o600)
        secret.write_text(secrets.token_hex(32), encoding="utf-8")
    os.environ[config.privacy.key_env] = secret.read_text(encoding="utf-8")
    create_store(config.store_url).dispose()
    (folder / STARTED).touch()
    return config
