"""A step computes each beginning once and the labels only, and gives TRL's own values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from family_fixtures import FAMILIES, SIZES
from reactune.train.forward import speed_up_forward, tree_of

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")
PROMPT = list(range(20, 44))


def batch_of(rows):
    """Rows of (prompt, completion) as TRL's collators pad them."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, labels, mask = [], [], []
    for prompt, completion in rows:
        rest = width - len(prompt) - len(completion)
        ids.append([*prompt, *completion, *[0] * rest])
        labels.append([*[-100] * len(prompt), *completion, *[-100] * rest])
        mask.append([1] * (width - rest) + [0] * rest)
    tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return {name: torch.tensor(value) for name, value in tensors.items()}


# Two tips of one prompt, one that begins like another, and a row of another length.
ROWS = [
    (PROMPT, [50, 51, 52, 53]),
    (PROMPT, [50, 51, 60]),
    ([*PROMPT[:20], 70, 71], [72]),
    (PROMPT, [80, 81, 82, 83, 84, 85]),
]


def model_of(name="llama3", **changes):
    import transformers

    kind, special, _ = FAMILIES[name]
    cls = getattr(transformers, kind)
    torch.manual_seed(3)
    sizes = {**SIZES, "vocab_size": 100, "pad_token_id": 0}
    return cls(cls.config_class(**{**sizes, **special, **changes})).eval()


def computed(model, batch):
    """The output of a step, its gradient at the embeddings, and how many tokens were embedded."""
    model.zero_grad()
    embedded = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: embedded.append(output.shape[:-1].numel())
    )
    out = model(**batch, use_cache=False, fused_lm_head=True)
    hook.remove()
    out.loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    return [out.loss, *(getattr(out, name).float() for name in FIELDS), gradient], embedded[-1]


def test_a_step_that_shares_beginnings_gives_trls_own_losses_and_gradients():
    from trl.trainer.utils import add_fused_lm_head

    batch = batch_of(ROWS)
    found, counts = [], []
    for ours in (False, True):
        model = model_of()
        add_fused_lm_head(model, outputs=FIELDS)
        if ours:
            speed_up_forward(model)
        values, count = computed(model, batch)
        found.append(values)
        counts.append(count)
    for theirs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-5)
    # 24 of the prompt, 2 of the shorter one's end, and 4, 1, 1 and 6 of the tips.
    assert counts == [batch["input_ids"].numel(), 24 + 2 + 4 + 1 + 1 + 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_with_and_without_sharing(family):
    from trl.trainer.utils import add_fused_lm_head

    batch = batch_of(ROWS)
    found, counts = [], []
    for shares in (False, True):
        model = model_of(family)
        add_fused_lm_head(model, outputs=FIELDS)
        speed_up_forward(model, shares=shares)
        values, count = computed(model, batch)
        found.append(values)
        counts.append(count)
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-3, atol=1e-4)
    assert counts == [batch["input_ids"].numel(), 38]


def test_rows_that_a_window_cuts_are_computed_one_by_one():
    from trl.trainer.utils import add_fused_lm_head

    batch = batch_of(ROWS)
    for window, count in ((30, 38), (29, batch["input_ids"].numel())):
        model = model_of("gemma3", sliding_window=window)
        add_fused_lm_head(model, outputs=FIELDS)
        speed_up_forward(model)
        assert computed(model, batch)[1] == count


def test_a_model_that_does_not_take_a_tree_trains_row_by_row():
    from trl.trainer.utils import add_fused_lm_head

    model = model_of()
    add_fused_lm_head(model, outputs=FIELDS)
    forward = type(model.model).forward

    def overlooks_mask(self, *args, attention_mask=None, **kwargs):
        is_tree = attention_mask is not None and attention_mask.dim() == 4
        return forward(self, *args, attention_mask=None if is_tree else attention_mask, **kwargs)

    model.model.forward = overlooks_mask.__get__(model.model)
    speed_up_forward(model)
    batch = batch_of(ROWS)
    with pytest.warns(UserWarning, match="one by one: shared beginnings would change"):
        _, count = computed(model, batch)
    assert count == batch["input_ids"].numel()


rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6)


@given(rows)
def test_a_tree_has_a_node_for_each_beginning_and_each_sees_its_ancestors(rows):
    tree = tree_of([np.array(row) for row in rows])
    beginnings = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert len(tree.ids) == len(beginnings)
    whole = {}
    for row, nodes in zip(rows, tree.nodes, strict=True):
        assert tree.ids[nodes].tolist() == row
        assert tree.depths[nodes].tolist() == list(range(len(row)))
        for end, node in enumerate(nodes.tolist(), 1):
            assert whole.setdefault(node, tuple(row[:end])) == tuple(row[:end])
    for one, mine in whole.items():
        for other, theirs in whole.items():
            assert tree.sees[one, other] == (mine[: len(theirs)] == theirs)
