"""Texts drawn from a model in this process, as a service draws them: many prompts at once.

Training on a model's own texts and the gate's judge read them. A prompt is computed once, however
many texts are drawn for it, and what all prompts share once for all.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from reactune.model.logprobs import Progress, common_prefix_length, logits_at
from reactune.records import Sampling

ROWS = 64  # texts that are drawn together
NUCLEUS = 512  # tokens among which those of `top_p` nearly always are


@dataclass(frozen=True)
class Drawn:
    """One text as token ids, without the stop token, and its mean log-probability per token.

    `logprob` is at temperature 1 and counts the stop token. Not `is_whole` where `max_tokens`
    ended the text.
    """

    ids: tuple[int, ...] = field(repr=False)
    logprob: float
    is_whole: bool


def draw(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop: int,
    sampling: Sampling,
    count: int = 1,
    progress: Progress | None = None,
) -> list[tuple[Drawn, ...]]:
    """`count` texts for each prompt (token ids), which the token `stop` ends.

    As served: of the most probable tokens whose probabilities sum to `top_p` one is drawn at the
    temperature; at 0 it is the most probable one. The same seed gives the same texts on the same
    machine. `progress` is called with the number of prompts that were done since.
    """
    import torch

    drawn: list[tuple[Drawn, ...]] = [()] * len(prompts)
    if not prompts:
        return drawn
    generator = torch.Generator().manual_seed(sampling.seed)
    shared = common_prefix_length(prompts)
    with torch.inference_mode():
        prefix = torch.tensor([list(prompts[0][:shared])])
        cache = model(prefix, use_cache=True).past_key_values if shared else None
        for places in _by_length(prompts, max(1, ROWS // count)):
            rests = [list(prompts[place][shared:]) for place in places]
            batch = _Batch(model, rests, shared, cache, count, stop, sampling, generator)
            for place, texts in zip(places, batch.texts(), strict=True):
                drawn[place] = texts
            if progress:
                progress(len(places))
    return drawn


@dataclass
class _Batch:
    """Prompts without what all share, padded on the left, and their texts as they are drawn."""

    model: Any
    rests: list[list[int]]
    shared: int
    cache: Any
    count: int
    stop: int
    sampling: Sampling
    generator: Any

    def texts(self) -> list[tuple[Drawn, ...]]:
        """The texts of each prompt."""
        import torch

        rows = len(self.rests) * self.count
        ids: list[list[int]] = [[] for _ in range(rows)]
        logprobs = [0.0] * rows
        whole = [False] * rows
        going = list(range(rows))
        logits, cache, mask, positions = self._read_prompts()
        while True:
            tokens, values = self._choose(logits)
            for row, token, value in zip(going, tokens.tolist(), values.tolist(), strict=True):
                ids[row].append(token)
                logprobs[row] += value
                whole[row] = token == self.stop
            if len(ids[going[0]]) == self.sampling.max_tokens or all(whole[row] for row in going):
                break
            kept = torch.tensor([at for at, row in enumerate(going) if not whole[row]])
            if len(kept) < len(going):  # texts that ended cost nothing more
                going = [going[at] for at in kept.tolist()]
                cache.batch_select_indices(kept)
                tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            inputs = {"input_ids": tokens[:, None], "position_ids": positions[:, None]}
            states = self.model(
                **inputs, attention_mask=mask, past_key_values=cache, use_cache=True
            )
            logits, positions = states.logits[:, -1].float(), positions + 1
        found = [
            Drawn(tuple(some[:-1] if is_whole else some), total / len(some), is_whole)
            for some, total, is_whole in zip(ids, logprobs, whole, strict=True)
        ]
        return [tuple(found[i : i + self.count]) for i in range(0, rows, self.count)]

    def _read_prompts(self) -> tuple[Any, Any, Any, Any]:
        """Logits of each text's first token, the cache, its mask, and where that token stands."""
        import torch
        from transformers import DynamicCache

        width = max(map(len, self.rests))
        inputs = torch.tensor([[0] * (width - len(rest)) + rest for rest in self.rests])
        lengths = torch.tensor([len(rest) for rest in self.rests])
        own = torch.arange(width)[None] >= width - lengths[:, None]
        mask = torch.cat([torch.ones(len(own), self.shared, dtype=torch.long), own.long()], dim=1)
        if self.cache is None:
            past = DynamicCache(config=self.model.config)
        else:
            past = copy.deepcopy(self.cache)
            past.batch_repeat_interleave(len(self.rests))
        last = torch.zeros_like(own)
        last[:, -1] = True
        logits = logits_at(
            self.model,
            last,
            input_ids=inputs,
            attention_mask=mask,
            position_ids=(self.shared + own.long().cumsum(1) - 1).clamp(min=0),
            past_key_values=past,
            use_cache=True,
        ).float()
        past.batch_repeat_interleave(self.count)
        positions = (self.shared + lengths).repeat_interleave(self.count)
        logits = logits.repeat_interleave(self.count, 0)
        return logits, past, mask.repeat_interleave(self.count, 0), positions

    def _choose(self, logits: Any) -> tuple[Any, Any]:
        """The next token of each row, and its log-probability at temperature 1."""
        logprobs = logits.log_softmax(-1)
        if self.sampling.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            ordered, order = logprobs.topk(min(NUCLEUS, logprobs.shape[1]))
            tokens = self._drawn(ordered, order)
            # Few rows are so flat that their nucleus is larger: they alone are sorted whole.
            flat = (ordered.exp().sum(-1) < self.sampling.top_p).nonzero()[:, 0]
            if len(flat):
                tokens[flat] = self._drawn(*logprobs[flat].sort(-1, descending=True))
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

    def _drawn(self, ordered: Any, order: Any) -> Any:
        """A token of each row's nucleus: log-probabilities in falling order, and their tokens."""
        import torch

        chances = ordered.exp()
        outside = chances.cumsum(-1) - chances >= self.sampling.top_p
        kept = ordered.masked_fill(outside, -torch.inf)
        weights = (kept / self.sampling.temperature).softmax(-1)
        return order.gather(1, torch.multinomial(weights, 1, generator=self.generator))[:, 0]


def _by_length(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Places of prompts of like length, so many together."""
    places = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
    for start in range(0, len(places), size):
        yield places[start : start + size]
