"""The forward pass of a training: only what the loss counts, and what rows share only once.

All rows of a batch begin with the same system prompt, and the two tips of a pair have one prompt.
So the batch is written as a tree of tokens, one node for each different beginning. A node sees its
ancestors alone, at their distances: states and gradients are those of rows computed one by one.
"""

import math
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from reactune.model.logprobs import logits_at

Places = npt.NDArray[np.int64]
LEAST_SAVED = 0.1  # of a batch's tokens, below which the tree is not worth its mask
MASKED_ATTENTION = ("sdpa", "eager")  # kinds of attention that take a mask of any shape
# Largest mean difference of a token's log-probability that rounding may make.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}


@dataclass(frozen=True)
class Tree:
    """Rows of token ids as nodes, each after its parent."""

    ids: Places = field(repr=False)
    depths: Places = field(repr=False)
    """How many tokens stand before each node in its rows."""
    sees: npt.NDArray[np.bool_] = field(repr=False)
    """Shape (nodes, nodes): whether the second is the first itself or its ancestor."""
    nodes: tuple[Places, ...] = field(repr=False)
    """Of each row, the node of each token."""


def tree_of(rows: Sequence[Places]) -> Tree:
    """The tree of some rows of token ids."""
    ids: list[int] = []
    depths: list[int] = []
    nodes = [np.empty(0, np.int64)] * len(rows)
    grown: list[tuple[int, Places]] = []
    before = path = np.empty(0, np.int64)
    # In this order a row shares most with the one before it.
    for place in sorted(range(len(rows)), key=lambda at: rows[at].tolist()):
        row = rows[place]
        shared = _shared(row, before)
        path = np.concatenate([path[:shared], len(ids) + np.arange(len(row) - shared)])
        ids += row[shared:].tolist()
        depths += range(shared, len(row))
        nodes[place], before = path, row
        grown.append((shared, path))
    sees = np.zeros((len(ids), len(ids)), bool)
    for shared, path in grown:
        depth = np.arange(len(path))
        sees[path[shared:, None], path] = depth[shared:, None] >= depth
    return Tree(np.array(ids), np.array(depths), sees, tuple(nodes))


def _shared(one: Places, other: Places) -> int:
    """How many first tokens two rows have alike."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def speed_up_forward(model: Any, *, shares: bool = True) -> None:
    """Replace the forward that TRL gave a causal language model; same values, fewer products.

    The head is computed where a label counts only; with `shares`, what rows of a batch begin with
    alike is computed once. Whether a model's family takes a tree is seen on the first batch, which
    is computed both ways; where they differ, rows are computed one by one.
    """
    original = model.forward
    takes_trees = None if shares and _may_take_trees(model) else False

    def forward(
        self: Any,
        *args: Any,
        labels: Any = None,
        fused_lm_head: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        nonlocal takes_trees
        if not fused_lm_head:
            return original(*args, labels=labels, **kwargs)
        targets = labels[:, 1:]
        tree = None if takes_trees is False else _tree_of_batch(self, *args, **kwargs)
        if tree is not None and takes_trees is None:
            takes_trees = _agrees(self, tree, targets, *args, **kwargs)
        if tree is not None and takes_trees:
            logits = _logits_on_tree(self, tree, targets)
        else:
            logits = _logits_by_row(self, targets, *args, **kwargs)
        return fused_output(logits, targets, num_items_in_batch)

    model.forward = types.MethodType(forward, model)


def fused_output(logits: Any, targets: Any, num_items_in_batch: Any) -> Any:
    """Log-probabilities of the targets that are not -100, zero elsewhere, in TRL's form.

    `logits` has one row for each of these targets.
    """
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    mask = targets != -100

    def spread(values: Any) -> Any:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    log_probs = torch.log_softmax(logits, dim=-1)
    chosen = log_probs.gather(1, targets[mask][:, None])[:, 0]
    with torch.no_grad():
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        mean_logits = logits.mean(-1)
        is_top1 = logits.argmax(-1) == targets[mask]
    count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return FusedCausalLMOutput(
        loss=-chosen.sum() / count,
        log_probs=spread(chosen),
        entropy=spread(entropy),
        log_sum_sq_probs=None,
        mean_logits=spread(mean_logits),
        is_top1=spread(is_top1),
        label_mask=mask,
        aux_loss=None,
    )


def _may_take_trees(model: Any) -> bool:
    return getattr(model.config, "_attn_implementation", "") in MASKED_ATTENTION


def _tree_of_batch(
    model: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    use_cache: bool = False,
    **others: Any,
) -> Tree | None:
    """The tree of a batch; None where it would save little, or the model is asked for more."""
    if input_ids is None or attention_mask is None or others:
        return None
    kept = attention_mask.bool().cpu().numpy()
    if not kept[:, 0].all() or kept.shape[1] > _window(model):
        return None  # padded on the left, or a token would not see all that stands before it
    ids = input_ids.cpu().numpy()
    tree = tree_of([row[own] for row, own in zip(ids, kept, strict=True)])
    return tree if len(tree.ids) <= (1 - LEAST_SAVED) * ids.size else None


def _window(model: Any) -> float:
    """How many tokens back every layer of a model sees."""
    config = model.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size")
    return min(getattr(config, name, None) or math.inf for name in names)


def _logits_by_row(model: Any, targets: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    places = torch.nn.functional.pad(targets != -100, (0, 1))
    return logits_at(model, places, *args, **kwargs).float()


def _logits_on_tree(model: Any, tree: Tree, targets: Any) -> Any:
    """The logits of `_logits_by_row`, each computed once however many rows ask for it."""
    import torch

    counts = (targets != -100).cpu().numpy()
    asked = np.concatenate(
        [
            path[np.flatnonzero(row[: len(path)])]
            for path, row in zip(tree.nodes, counts, strict=True)
        ]
    )
    different, which = np.unique(asked, return_inverse=True)
    places = torch.zeros((1, len(tree.ids)), dtype=torch.bool)
    places[0, different] = True
    hidden = torch.zeros(tree.sees.shape, dtype=model.dtype)
    hidden.masked_fill_(torch.from_numpy(~tree.sees), torch.finfo(model.dtype).min)
    logits = logits_at(
        model,
        places.to(targets.device),
        input_ids=torch.from_numpy(tree.ids)[None].to(targets.device),
        position_ids=torch.from_numpy(tree.depths)[None].to(targets.device),
        attention_mask=hidden[None, None].to(targets.device),
        use_cache=False,
    )
    return logits[torch.from_numpy(which).to(targets.device)].float()


def _agrees(model: Any, tree: Tree, targets: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether the model gives a batch the same log-probabilities on the tree and row by row."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ways = (
                _logits_on_tree(model, tree, targets),
                _logits_by_row(model, targets, *args, **kwargs),
            )
            on_tree, by_row = (fused_output(each, targets, None).log_probs for each in ways)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        warnings.warn(f"rows are computed one by one: {error}", stacklevel=2)
        return False
    finally:
        model.train(was_training)
    difference = float((on_tree - by_row).abs().sum() / (targets != -100).sum().clamp(min=1))
    name = str(model.dtype).removeprefix("torch.")
    if difference <= TOLERANCES.get(name, 0.0):
        return True
    warnings.warn(
        f"rows are computed one by one: shared beginnings would change a token's log-probability "
        f"by {difference:.2g}",
        stacklevel=2,
    )
    return False
