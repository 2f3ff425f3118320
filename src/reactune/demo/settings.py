"""The settings of the demo, as the `reactune.toml` that a demo folder gets.

Only what differs from the defaults stands here, and why.
"""

import json

from reactune.demo.world import CONTEXT_KEYS, INSTRUCTIONS, SYSTEM

MAX_TOKENS = 48


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
"""
