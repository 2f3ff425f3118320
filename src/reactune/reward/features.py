"""A tip in its prompt as numbers: what training, `reactune score` and serving compute alike.

The features of a tip are hidden states of the base model after some of its layers, side by side:
each token's divided by its root mean square, then the mean over the tip's tokens. The tokens of the
tip see the prompt before them and no other tip.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reactune.model.logprobs import Progress, Row, best_dtype, common_prefix_length

Floats = npt.NDArray[np.float32]
DEPTHS = (0.27, 0.4, 0.53)  # of the layers that are read, together; deeper ones add little
EPSILON = 1e-6  # below a mean square
TIPS_PER_PACK = 16  # of one prompt, in one pass


@dataclass(frozen=True)
class _Pack:
    """Tips of one prompt: the tokens after what all prompts share, each tip one segment."""

    places: tuple[int, ...]
    ids: tuple[int, ...] = field(repr=False)
    segments: tuple[int, ...] = field(repr=False)
    """0 for the prompt, 1 for its first tip, and so on."""
    positions: tuple[int, ...] = field(repr=False)


def reward_layers(count: int) -> tuple[int, ...]:
    """The layers of a model of `count` layers that a reward reads: 8, 12 and 16 of 30."""
    return tuple(sorted({max(1, round(depth * count)) for depth in DEPTHS}))


def layers_of(base_folder: Path) -> int:
    """How many layers a model has."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(base_folder).get_text_config().num_hidden_layers)


@contextmanager
def open_layers(base_folder: Path, layers: int, *, dtype: str = "") -> Iterator[Any]:
    """The base model cut off after its first layers; its memory is freed at the end.

    `dtype` is the faster one of this machine unless it is given.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    with warnings.catch_warnings():
        # transformers 5 warns of its own attribute.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        model = AutoModel.from_pretrained(base_folder, dtype=getattr(torch, dtype or best_dtype()))
    del layers_in(model)[layers:]
    model.config.get_text_config().num_hidden_layers = layers
    model.eval()
    yield model
    del model


def layers_in(model: Any) -> Any:
    """The list of a model's layers, whatever its family calls it."""
    import torch

    count = model.config.get_text_config().num_hidden_layers
    lists = (each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    return next(each for each in lists if len(each) == count)


def tip_features(
    model: Any,
    rows: Sequence[Row],
    layers: Sequence[int],
    *,
    batch_tokens: int = 1_024,
    progress: Progress | None = None,
) -> Floats:
    """The features of each row (token ids of a prompt, and of the tip) after `layers`.

    Shape (rows, number of layers x hidden width). `model` is that of `open_layers`, and the last of
    `layers` its last. What all prompts share is computed once, a prompt once for all its tips.
    `progress` is called with the number of rows that were done since.
    """
    import torch

    width = model.config.get_text_config().hidden_size
    found = np.zeros((len(rows), len(layers) * width), np.float32)
    if not rows:
        return found
    shared = common_prefix_length([prompt for prompt, _ in rows])
    with torch.inference_mode():
        prefix = torch.tensor([list(rows[0][0][:shared])])
        cache = model(prefix, use_cache=True).past_key_values if shared else None
        for batch in _batches(_packs(rows, shared), batch_tokens):
            states = _hidden_states(model, batch, shared, cache, layers)
            for number, one in enumerate(batch):
                segments = np.array(one.segments)
                for segment, place in enumerate(one.places, 1):
                    tokens = np.flatnonzero(segments == segment)
                    found[place] = states[number, tokens].mean(0).numpy()
            if progress:
                progress(sum(len(one.places) for one in batch))
    return found


def _hidden_states(
    model: Any, batch: Sequence[_Pack], shared: int, cache: Any, layers: Sequence[int]
) -> Any:
    """Those of `states_after` for a batch, after what its prompts share."""
    import torch

    past = None
    if cache is not None:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(batch))
    # Added to the scores of attention: not every family's attention takes a mask of booleans.
    seen = torch.from_numpy(_mask(batch, shared))
    mask = torch.zeros(seen.shape, dtype=model.dtype)
    mask.masked_fill_(~seen, torch.finfo(model.dtype).min)
    return states_after(
        model,
        layers,
        input_ids=torch.tensor(_padded([each.ids for each in batch], 0)),
        attention_mask=mask,
        position_ids=torch.tensor(_padded([each.positions for each in batch], 0)),
        past_key_values=past,
        use_cache=past is not None,
    )


def states_after(model: Any, layers: Sequence[int], **inputs: Any) -> Any:
    """Hidden states after some layers, each over its root mean square, side by side.

    Shape (rows, tokens, number of layers x width). Read from the layers themselves, as the model
    would pass the last ones through its final norm.
    """
    import torch

    states: dict[int, Any] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            states[layer] = output[0] if isinstance(output, tuple) else output

        return layers_in(model)[layer - 1].register_forward_hook(hook)

    hooks = [keep(layer) for layer in layers]
    model(**inputs)
    for each in hooks:
        each.remove()
    chosen = [states[layer].float() for layer in layers]
    scales = [torch.rsqrt(each.square().mean(-1, keepdim=True) + EPSILON) for each in chosen]
    return torch.cat([each * scale for each, scale in zip(chosen, scales, strict=True)], dim=-1)


def pass_of(prompt: Sequence[int], tips: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[Any]]:
    """The tips of one prompt as the inputs of one pass of `graph.write_graph`'s graph, by name.

    `ids` and `positions` (1, tokens), `mask` (1, 1, tokens, tokens), added to the scores of
    attention, and `pooling` (tips, tokens), which makes each tip's mean.
    """
    one = _pack(tuple(range(len(tips))), tuple(prompt), tips, 0)
    segments = np.array(one.segments)
    own = segments == np.arange(1, len(tips) + 1)[:, None]
    return {
        "ids": np.array([one.ids], np.int64),
        "mask": np.where(_mask([one], 0), 0, np.finfo(np.float32).min).astype(np.float32),
        "positions": np.array([one.positions], np.int64),
        "pooling": (own / own.sum(1, keepdims=True)).astype(np.float32),
    }


def _mask(batch: Sequence[_Pack], shared: int) -> npt.NDArray[np.bool_]:
    """What each token may see: the shared tokens, its prompt, and its own tip up to itself."""
    segments = np.array(_padded([each.segments for each in batch], -1))
    asking, asked = segments[:, :, None], segments[:, None, :]
    width = segments.shape[1]
    seen = np.tril(np.ones((width, width), bool)) & ((asked == 0) | (asked == asking))
    return np.concatenate([np.ones((len(batch), width, shared), bool), seen], axis=2)[:, None]


def _packs(rows: Sequence[Row], shared: int) -> Iterator[_Pack]:
    """The rows by prompt, at most `TIPS_PER_PACK` of one together."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for place, (prompt, _) in enumerate(rows):
        by_prompt.setdefault(tuple(prompt), []).append(place)
    for prompt, places in by_prompt.items():
        rest = iter(places)
        while some := tuple(islice(rest, TIPS_PER_PACK)):
            yield _pack(some, prompt, [rows[place][1] for place in some], shared)


def _pack(
    places: tuple[int, ...], prompt: tuple[int, ...], tips: Sequence[Sequence[int]], shared: int
) -> _Pack:
    """Tips of one prompt, whose first `shared` tokens were computed already."""
    ids, segments = list(prompt[shared:]), [0] * (len(prompt) - shared)
    positions = list(range(shared, len(prompt)))
    for segment, tip in enumerate(tips, 1):
        ids += tip
        segments += [segment] * len(tip)
        positions += range(len(prompt), len(prompt) + len(tip))
    return _Pack(places, tuple(ids), tuple(segments), tuple(positions))


def _batches(packs: Iterable[_Pack], batch_tokens: int) -> Iterator[list[_Pack]]:
    """Packs of like length, as many as fit into the token count with padding."""
    batch: list[_Pack] = []
    for one in sorted(packs, key=lambda each: -len(each.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]], filler: int) -> list[list[int]]:
    width = max(map(len, rows))
    return [[*row, *[filler] * (width - len(row))] for row in rows]
