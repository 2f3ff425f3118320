"""Examples as token ids: what each method of training reads.

The ids come from `prompt.py`; which examples there are is decided before.
"""

from collections.abc import Iterable
from typing import Any

from reactune.prompt import Chat, completion_ids, rebuild
from reactune.train.job import JobMethod

MIN_PAIRS = 50
Tip = tuple[str, str, str, bool]  # kind, logged context, text, liked
Pair = tuple[str, str, str, str]  # kind, logged context, liked text, disliked text


def judged_rows(chat: Chat, tips: Iterable[Tip]) -> list[dict[str, Any]]:
    """Rows of KTO: every tip with its label."""
    return [
        {
            "prompt_ids": list(rebuild(chat, kind, context_json).token_ids),
            "completion_ids": list(completion_ids(chat, text)),
            "label": liked,
        }
        for kind, context_json, text, liked in tips
    ]


def pair_rows(chat: Chat, pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    """Rows of DPO: a liked and a disliked tip for one context."""
    return [
        {
            "prompt_ids": list(rebuild(chat, kind, context_json).token_ids),
            "chosen_ids": list(completion_ids(chat, chosen)),
            "rejected_ids": list(completion_ids(chat, rejected)),
        }
        for kind, context_json, chosen, rejected in pairs
    ]


def rows_by_method(
    chat: Chat, tips: Iterable[Tip], pairs: Iterable[Pair]
) -> dict[JobMethod, list[dict[str, Any]]]:
    """The rows of every method that the examples allow: DPO needs `MIN_PAIRS` pairs."""
    judged = judged_rows(chat, tips)
    paired = pair_rows(chat, pairs)
    rows: dict[JobMethod, list[dict[str, Any]]] = {
        "sft": [row for row in judged if row["label"]],
        "kto": judged,
        "dpo": paired if len(paired) >= MIN_PAIRS else [],
    }
    return {method: found for method, found in rows.items() if found}
