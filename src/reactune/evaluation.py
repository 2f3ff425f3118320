"""Models before held-out reactions: validation, gate and `reactune evaluate` all measure here.

Joins log-probabilities (`scoring.py`) with examples; the rule is `release/gate.py`'s.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from reactune.config import GateConfig
from reactune.data.rules import Example
from reactune.model import BaseModel
from reactune.prompt import Chat, completion_ids, few_shot, rebuild
from reactune.release.gate import GateReport, HeldOut, examine, fits_better, ranks_better
from reactune.scoring import Row, best_dtype, open_model, score

Floats = npt.NDArray[np.float64]
MIN_SHARED_CONTEXTS = 50  # pairs within one context, below which pairs within one kind are taken


def sample(examples: Sequence[Example], *, limit: int, seed: int) -> list[Example]:
    """At most `limit` examples, as many of each label as there are, in the order of tip_id."""
    ordered = sorted(examples, key=lambda example: example.tip_id)
    random.Random(seed).shuffle(ordered)
    liked = [example for example in ordered if example.label]
    disliked = [example for example in ordered if not example.label]
    half = max(limit // 2, limit - len(disliked) if len(disliked) < limit // 2 else limit // 2)
    chosen = liked[:half] + disliked[: limit - min(half, len(liked))]
    return sorted(chosen, key=lambda example: example.tip_id)


def held_out(examples: Sequence[Example]) -> list[HeldOut]:
    """What the gate knows of examples: pairs within one context where there are enough of them."""
    contexts: dict[tuple[str, str], list[int]] = {}
    for example in examples:
        counts = contexts.setdefault((example.kind, example.context_json), [0, 0])
        counts[example.label] += 1
    shared = sum(liked * disliked for disliked, liked in contexts.values())
    by_context = shared >= MIN_SHARED_CONTEXTS
    return [
        HeldOut(
            user=example.user_key,
            group=f"{example.kind} {example.context_json}" if by_context else example.kind,
            liked=example.label,
        )
        for example in examples
    ]


def rows_of(chat: Chat, examples: Sequence[Example]) -> list[Row]:
    """Token ids of prompt and tip, as the model would be asked at serving."""
    return [
        (rebuild(chat, e.kind, e.context_json).token_ids, completion_ids(chat, e.tip))
        for e in examples
    ]


def few_shot_rows(
    chat: Chat, examples: Sequence[Example], train: Sequence[Example], settings: GateConfig
) -> list[Row]:
    """As `rows_of`, after earlier turns with liked tips of the same kind from the training part."""
    shots: dict[str, list[tuple[str, str]]] = {}
    for kind in {example.kind for example in examples}:
        liked = sorted((e for e in train if e.label and e.kind == kind), key=lambda e: e.tip_id)
        chosen = random.Random(settings.seed).sample(liked, min(settings.few_shot, len(liked)))
        shots[kind] = [(e.context_json, e.tip) for e in chosen]
    return [
        (
            few_shot(chat, rebuild(chat, e.kind, e.context_json), shots[e.kind]),
            completion_ids(chat, e.tip),
        )
        for e in examples
    ]


def score_rows(
    base: BaseModel,
    adapter: Path | None,
    rows: Sequence[Sequence[Row]],
    *,
    name: str,
    kinds: Sequence[str],
) -> list[list[Floats]]:
    """Token log-probabilities of several lists of rows under one model, opened once."""
    results = []
    with open_model(base.folder, adapter, dtype=best_dtype()) as model:
        for one in rows:
            scores: list[Floats] = [np.empty(0)] * len(one)
            with tqdm(total=len(one), desc=f"score {name}", unit="tip", leave=False) as bar:
                for places in places_with_one_prefix(one, kinds):
                    part = score(model, [one[i] for i in places], progress=bar.update)
                    for place, values in zip(places, part, strict=True):
                        scores[place] = values
            results.append(scores)
    return results


def places_with_one_prefix(rows: Sequence[Row], kinds: Sequence[str]) -> list[list[int]]:
    """Rows to be scored together: those of one prompt if prompts repeat, else those of one kind.

    What they share is then computed once.
    """
    prompts = [tuple(prompt) for prompt, _ in rows]
    keys: Sequence[object] = prompts if 2 * len(set(prompts)) <= len(rows) else kinds
    groups: dict[object, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def gate_report(
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    train: Sequence[Example],
    adapters: Mapping[str, Path],
    settings: GateConfig,
) -> GateReport:
    """Base, few-shot base and each of `adapters` ("tuned" is one of them) on the same examples."""
    rows, kinds = rows_of(chat, examples), [example.kind for example in examples]
    shots = few_shot_rows(chat, examples, train, settings)
    plain, prompted = score_rows(base, None, [rows, shots], name="base", kinds=kinds)
    scores = {"base": plain, "few-shot": prompted}
    for name, adapter in adapters.items():
        (scores[name],) = score_rows(base, adapter, [rows], name=name, kinds=kinds)
    return examine(held_out(examples), scores, settings=settings)


def validation_reports(
    base: BaseModel,
    chat: Chat,
    examples: Sequence[Example],
    adapters: Mapping[str, Path],
    settings: GateConfig,
) -> dict[str, GateReport]:
    """How each method's adapter does beside the base on the validation part."""
    rows, kinds = rows_of(chat, examples), [example.kind for example in examples]
    (plain,) = score_rows(base, None, [rows], name="base", kinds=kinds)
    reports = {}
    for method, adapter in adapters.items():
        (tuned,) = score_rows(base, adapter, [rows], name=method, kinds=kinds)
        reports[method] = examine(
            held_out(examples), {"base": plain, "tuned": tuned}, settings=settings
        )
    return reports


def best_method(reports: Mapping[str, GateReport], settings: GateConfig) -> str:
    """The method to keep after validation, by the gate's own rule.

    Of methods that certainly rank better than the base the one that ranks best, by mean
    log-probability or by gain; where none does, of those that certainly fit better the one with
    the lowest loss: a ranking that is not told from the base's by this many users is chance.
    """

    def rank(method: str) -> tuple[int, float, float]:
        base = next(row for row in reports[method].rows if row.model == "base")
        tuned = next(row for row in reports[method].rows if row.model == "tuned")
        gain = tuned.gain_accuracy.value if tuned.gain_accuracy else 0.0
        accuracy, fit = max(tuned.accuracy.value, gain), -tuned.loss.value
        if ranks_better(base, settings):
            return 2, accuracy, fit
        return (1, fit, accuracy) if fits_better(base, settings) else (0, accuracy, fit)

    return max(reports, key=rank)
