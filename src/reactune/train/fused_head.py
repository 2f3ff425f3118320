"""TRL's fused head on a CPU: logits only where a label is, which TRL does on GPUs alone.

Two thirds of a row are prompt, and a vocabulary row per position is the largest product of a small
model. Only the forward of one model is exchanged; losses stay TRL's.
"""

import types
from typing import Any


def score_only_labelled_positions(model: Any) -> None:
    """Exchange the forward that TRL gave the causal language model; same values, fewer products."""
    original = model.forward

    def forward(
        self: Any,
        *args: Any,
        labels: Any = None,
        fused_lm_head: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            return original(*args, labels=labels, **kwargs)
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        return fused_output(hidden, labels[:, 1:], self.get_output_embeddings(), num_items_in_batch)

    model.forward = types.MethodType(forward, model)


def fused_output(hidden: Any, targets: Any, head: Any, num_items_in_batch: Any) -> Any:
    """Log-probabilities of the targets that are not -100, zero elsewhere, as TRL reports them."""
    import torch
    from trl.trainer.utils import FusedCausalLMOutput

    mask = targets != -100

    def spread(values: Any) -> Any:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    logits = head(hidden[mask]).float()
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
