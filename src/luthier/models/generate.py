"""A text goes on token after token, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Continuation(NamedTuple):
    """What a model wrote."""

    ids: list[int]
    """Without the token that ended it."""
    end: int | None
    """That token; None where it did not end by itself."""

    @property
    def whole(self) -> list[int]:
        """All that was chosen."""
        return [*self.ids, *([] if self.end is None else [self.end])]


def go_on(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    choose: Callable[[Tensor], int],
) -> Continuation:
    """Let `model` go on with a prompt.

    Args:
        model: a transformers module in evaluation mode; call it without gradients.
        prompt_ids: not empty.
        max_new_tokens: at most.
        stop_ids: that end it.
        choose: the next token from its scores [vocabulary].
    """
    stop, cache = set(stop_ids), None
    out: list[int] = []
    step = torch.tensor([list(prompt_ids)], device=model.device)
    while len(out) < max_new_tokens:
        output = model(input_ids=step, cache=cache, use_cache=True, logits_to_keep=1)
        token = choose(output.logits[0, -1])
        if token in stop:
            return Continuation(out, token)
        out.append(token)
        cache, step = output.cache, torch.tensor([[token]], device=model.device)
    return Continuation(out, None)


def go_on_together(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    count: int,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    choose: Callable[[Tensor], int],
) -> list[Continuation]:
    """Let `model` go on with a prompt in several ways at once, whose prompt is computed once.

    Args:
        model: a transformers module in evaluation mode; call it without gradients.
        prompt_ids: not empty.
        count: of ways.
        max_new_tokens: of each, at most.
        stop_ids: that end one.
        choose: the next token of one from its scores [vocabulary]; asked for those that have not ended, in their order.
    """
    stop, ends = set(stop_ids), list[int | None]([None] * count)
    out: list[list[int]] = [[] for _ in range(count)]
    output = model(input_ids=torch.tensor([list(prompt_ids)], device=model.device), use_cache=True, logits_to_keep=1)
    cache, scores = output.cache, output.logits[:, -1].expand(count, -1)
    cache.batch_repeat_interleave(count)
    for length in range(1, max_new_tokens + 1):
        for place in range(count):
            if ends[place] is not None:
                continue
            token = choose(scores[place])
            if token in stop:
                ends[place] = token
            else:
                out[place].append(token)
        if None not in ends or length == max_new_tokens:
            break
        step = torch.tensor([[own[-1] if own else stop_ids[0]] for own in out], device=model.device)
        output = model(input_ids=step, cache=cache, use_cache=True, logits_to_keep=1)
        cache, scores = output.cache, output.logits[:, -1]
    return [Continuation(ids, end) for ids, end in zip(out, ends, strict=True)]


def greedy(scores: Tensor) -> int:
    """The likeliest token."""
    return int(scores.argmax())


def sampled(rng: np.random.Generator) -> Callable[[Tensor], int]:
    """Each token with its chance: the first whose summed chances exceed a number that `rng` draws from 0 to 1."""

    def choose(scores: Tensor) -> int:
        chances = torch.softmax(scores.double().cpu(), dim=-1).cumsum(dim=-1)
        drawn = torch.tensor([rng.random()], dtype=torch.float64) * chances[-1]
        return min(int(torch.searchsorted(chances, drawn, right=True)), len(chances) - 1)

    return choose
