"""Tips that a model writes for contexts, in this process and as a service does.

The same prompts, sampling and guard; what the guard refuses is left out, as is what was cut. Their
features are those of the reward.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reactune.config.sections import ServeConfig
from reactune.model.files import BaseModel
from reactune.model.logprobs import Row, best_dtype, open_model
from reactune.model.prompt import Chat, stop_id, tip_token_ids
from reactune.model.sampling import Drawn, draw
from reactune.progress import progress_bar
from reactune.records import Completion, Prompt, Sampling
from reactune.reward.features import Floats as Features
from reactune.reward.features import open_layers, tip_features
from reactune.service.guard import judge


@dataclass(frozen=True)
class Sample:
    """A tip that a model wrote. `logprob` is its mean log-probability per token."""

    text: str
    logprob: float = field(repr=False)


def write_samples(
    base: BaseModel,
    adapter: Path | None,
    chat: Chat,
    prompts: Sequence[Prompt],
    settings: ServeConfig,
    *,
    count: int,
    seed: int,
    name: str = "model",
    read: Sequence[Sequence[int]] | None = None,
) -> list[tuple[Sample, ...]]:
    """As `draw_samples`, of the base model, with the adapter if one is given."""
    with open_model(base.folder, adapter, dtype=best_dtype()) as model:
        return draw_samples(
            model, chat, prompts, settings, count=count, seed=seed, name=name, read=read
        )


def draw_samples(
    model: Any,
    chat: Chat,
    prompts: Sequence[Prompt],
    settings: ServeConfig,
    *,
    count: int,
    seed: int,
    name: str = "model",
    read: Sequence[Sequence[int]] | None = None,
) -> list[tuple[Sample, ...]]:
    """The different tips among `count` texts for each prompt that a service would show.

    The model reads the prompts, or what `read` has in their place, as token ids.
    """
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens, seed)
    with progress_bar(f"tips of {name}", total=len(prompts), unit="prompt") as bar:
        drawn = draw(
            model,
            [prompt.token_ids for prompt in prompts] if read is None else read,
            stop=stop_id(chat),
            sampling=sampling,
            count=count,
            progress=bar.update,
        )
    return [
        _shown(chat, prompt, texts, settings) for prompt, texts in zip(prompts, drawn, strict=True)
    ]


def features_of_rows(
    base: BaseModel, rows: Sequence[Row], layers: Sequence[int], name: str
) -> Features:
    """Features of rows as of `cache.reward_rows` after some layers, shape (rows, width)."""
    with (
        open_layers(base.folder, layers[-1]) as model,
        progress_bar(f"features of {name}", total=len(rows), unit="tip") as bar,
    ):
        return tip_features(model, rows, layers, progress=bar.update)


def features_of_samples(
    base: BaseModel,
    chat: Chat,
    asked: Sequence[Prompt],
    samples: Sequence[Sequence[Sample]],
    layers: Sequence[int],
    name: str,
) -> list[Features]:
    """Features of the tips of each prompt, each of shape (tips, width)."""
    rows = [
        (prompt.token_ids, tip_token_ids(chat, each.text))
        for prompt, some in zip(asked, samples, strict=True)
        for each in some
    ]
    found = features_of_rows(base, rows, layers, f"tips of {name}")
    ends = list(itertools.accumulate(map(len, samples)))
    return [found[end - len(some) : end] for end, some in zip(ends, samples, strict=True)]


def _shown(
    chat: Chat, prompt: Prompt, drawn: Sequence[Drawn], settings: ServeConfig
) -> tuple[Sample, ...]:
    found: dict[str, Sample] = {}
    for one in drawn:
        if not one.is_whole:
            continue
        text = chat.tokenizer.decode(list(one.ids), skip_special_tokens=False)
        completion = Completion(text, len(prompt.token_ids), len(one.ids), "stop", 0.0)
        judged = judge(completion, prompt, settings, marks=chat.marks)
        if judged.verdict == "passed":
            found.setdefault(judged.text, Sample(judged.text, one.logprob))
    return tuple(found.values())
