"""Log-probabilities of tips under a model: what validation, gate, parity and `evaluate` measure."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_SPEED_UP = 1.2  # below it, the precision that bfloat16 costs is not worth it
Row = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt, and of what followed
Progress = Callable[[int], object]


@contextmanager
def open_model(
    base_folder: Path, adapter: Path | None = None, *, dtype: str = "float32", threads: int = 0
) -> Iterator[Any]:
    """The base model, with the adapter on it if one is given; its memory is freed at the end.

    The same adapter gives the same model, in each type.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if threads:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        # transformers 5 warns of its own attribute.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=getattr(torch, dtype))
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
            merge_unbiased(model)
            model = model.unload()
    model.eval()
    yield model
    del model


def merge_unbiased(model: Any) -> None:
    """Add the changes of LoRA layers to their weights, rounded at random where these are bfloat16.

    A small change is less than half the distance between two numbers of bfloat16: rounded to the
    nearest, most of it is gone. Rounded up as often as it lies above the lower one (stochastic
    rounding, arXiv:1502.02551), the sum over many weights is what it was.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    draw = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            kind = weight.dtype
            weight.data = weight.data.float()
            layer.merge()
            if kind == torch.bfloat16:
                weight.data = _rounded_at_random(weight.data, draw)
            weight.data = weight.data.to(kind)


def _rounded_at_random(exact: Any, draw: Any) -> Any:
    """Numbers of float32 as those of bfloat16 just below or above, as often as they are near.

    A number of bfloat16 is the upper 16 bits of one of float32.
    """
    import torch

    bits = exact.contiguous().view(torch.int32)
    below = torch.randint(1 << 16, bits.shape, generator=draw, dtype=torch.int32)
    return ((bits + below.to(bits.device)) & -(1 << 16)).view(torch.float32)


def score(
    model: Any, rows: Sequence[Row], *, batch_tokens: int = 2_048, progress: Progress | None = None
) -> list[npt.NDArray[np.float64]]:
    """Natural log-probability of every completion token given its prompt, row by row.

    The prefix that all rows share (system prompt, instruction, few-shot examples) is computed
    once. `progress` is called with the number of rows that were done since.
    """
    import torch

    scores: list[npt.NDArray[np.float64]] = [np.empty(0)] * len(rows)
    if not rows:
        return scores
    shared = common_prefix_length([row[0] for row in rows])
    with torch.inference_mode():
        prefix = torch.tensor([list(rows[0][0][:shared])])
        cache = model(prefix, use_cache=True).past_key_values if shared else None
        for batch in batches(rows, shared, batch_tokens):
            part = _score_batch(model, [rows[i] for i in batch], shared, cache)
            for index, values in zip(batch, part, strict=True):
                scores[index] = values
            if progress:
                progress(len(batch))
    return scores


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts share, at most all but the last of the shortest."""
    # All others lie between these two in dictionary order, so they share at least as much.
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    limit = min(map(len, prompts)) - 1
    differing = (i for i in range(limit) if first[i] != last[i])
    return next(differing, max(limit, 0))


def batches(rows: Sequence[Row], shared: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of like length, as many as fit into the token count with padding."""
    lengths = [len(prompt) + len(completion) - shared for prompt, completion in rows]
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _score_batch(
    model: Any, rows: Sequence[Row], shared: int, cache: Any
) -> list[npt.NDArray[np.float64]]:
    import torch

    ids = [list(prompt[shared:]) + list(completion) for prompt, completion in rows]
    width = max(map(len, ids))
    inputs = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * (shared + len(row)) + [0] * (width - len(row)) for row in ids])
    past = None
    if cache is not None:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(rows))
    places = torch.zeros_like(inputs, dtype=torch.bool)
    for index, (row, (_, completion)) in enumerate(zip(ids, rows, strict=True)):
        places[index, len(row) - len(completion) - 1 : len(row) - 1] = True
    logits = logits_at(
        model,
        places,
        input_ids=inputs,
        attention_mask=mask,
        past_key_values=past,
        use_cache=past is not None,
    ).float()
    targets = torch.tensor([token for _, completion in rows for token in completion])
    values = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
    lengths = [len(completion) for _, completion in rows]
    return [part.double().numpy() for part in values.split(lengths)]


def logits_at(model: Any, places: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's logits at some places of a batch, a mask over rows and tokens; one row a place.

    Only there is the product with its head computed. What follows the head (Granite's scale, Gemma
    2's soft cap) is done by the model's own `forward`.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0][places],))
    try:
        return type(model).forward(model, *args, **kwargs).logits
    finally:
        hook.remove()


@cache
def best_dtype() -> str:
    """`bfloat16` where this machine multiplies it faster, else `float32`.

    PyTorch's own query says only which instructions the processor has: of two that have
    AVX512_BF16, one is 2.3 times as fast with it and the other takes 1.8 times as long. So this is
    measured, in a few hundredths of a second.
    """
    import torch

    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "float32"
    return "bfloat16" if _speed_up_of_bfloat16() > MIN_SPEED_UP else "float32"


def _speed_up_of_bfloat16() -> float:
    """How many times faster one core multiplies a small model's layer in `bfloat16`.

    Counted in the thread's own processor time, on one thread: what else runs must not decide.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    types = (torch.float32, torch.bfloat16)
    layers = [(torch.ones(256, 576, dtype=t), torch.ones(1536, 576, dtype=t)) for t in types]
    seconds = []
    for _ in range(10):
        for left, right in layers:
            started = time.thread_time()
            torch.nn.functional.linear(left, right)
            seconds.append(time.thread_time() - started)
    torch.set_num_threads(threads)
    return min(seconds[0::2]) / min(seconds[1::2])
