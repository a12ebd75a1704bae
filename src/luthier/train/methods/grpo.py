"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, equation 3, section 4.1).

To a prompt the model writes G answers o_i, worth r_i. What an answer gains is its advantage over the others,

    A_i = (r_i - mean r) / (std r + 1e-4), or r_i - mean r without scaling (Liu et al. 2025, arXiv 2503.20783),

and the loss of its token t is - A_i p(t) / sg(p(t)) + beta D(t), sg without gradient: each step learns from answers
that it drew itself just before, at temperature 1, so the ratio of the paper is 1 and is never clipped, and what is left
is its gradient, - A_i grad log p(t). D = q / p - log(q / p) - 1 with the base's q estimates how far the model is from
its base (equation 4). What a token counts:

- dapo: each of a step alike (Yu et al. 2025, arXiv 2503.14476, equation 8);
- grpo: 1 / (G |o_i|), a step is the mean over prompts;
- dr_grpo: 1 / (G times the longest an answer may be), as Liu et al. 2025.

Answers that are all worth the same have no advantage, and a prompt with such answers teaches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from luthier.data.shards import Example
from luthier.models.adapters import bare
from luthier.models.forward import in_evaluation
from luthier.models.generate import go_on_together, sampled
from luthier.records import RequestContract
from luthier.rewards import Reward, rewards_of
from luthier.spec.methods import grpo
from luthier.spec.section import Method as Settings
from luthier.train.own import OWN, Written
from luthier.train.rows import Row, supervised_losses

if TYPE_CHECKING:
    from luthier.train.methods import Method
    from luthier.train.trunk import Trunk

EPSILON = 1e-4
"""Beside the spread of rewards, as TRL has it."""

Decode = Callable[[Sequence[int]], str]


@runtime_checkable
class Verified(Protocol):
    """A method that reads what the model wrote."""

    def reading(self, decode: Decode) -> Method:
        """The same method, ready to learn."""
        ...


@dataclass(frozen=True)
class Grpo:
    """The method; its unit is the token of an answer for dapo, else the prompt."""

    settings: grpo.Grpo
    contract: RequestContract
    reward: Reward
    decode: Decode | None = None

    def reading(self, decode: Decode) -> Grpo:
        return replace(self, decode=decode)

    @property
    def own_share(self) -> float:
        return 1.0

    def rewritten(self, model: Any, example: Example, rng: np.random.Generator) -> Written:
        """The row with answers that the model draws, and what they are worth."""
        assert self.decode is not None, "it is told how to read before training"
        contract, settings = self.contract, self.settings
        made = go_on_together(
            bare(model),
            example.prompt_ids,
            count=settings.num_generations,
            max_new_tokens=self._room(example),
            stop_ids=contract.stop_ids,
            choose=sampled(rng),
        )
        worth = [self.reward(self.decode(one.ids), example.answer) for one in made]
        answers = tuple(tuple(one.whole) for one in made)
        return _written(example, answers, worth, advantages(worth, scaled=settings.scale_rewards == "group"))

    def count(self, example: Example) -> int:
        """Tokens of its answers, or one prompt."""
        return self._as_written(example).num_supervised if self.settings.loss_type == "dapo" else 1

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        """All answers behind their prompt, each but for its last token, which is never read."""
        return [row.computed for row in _rows(self._as_written(example))]

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Sum over the units of these rows, of each row times its weight where there are weights."""
        groups = [self._as_written(one) for one in examples]
        rows = [row for group in groups for row in _rows(group)]
        losses = supervised_losses(model, rows, trunk)
        held = _of_base(model, rows) if self.settings.beta else [None] * len(rows)
        factors = [1.0] * len(groups) if weights is None else weights
        parts, place = [], 0
        for group, factor in zip(groups, factors, strict=True):
            for advantage in group.advantages:
                own = self._token_losses(losses[place], held[place], advantage)
                parts.append(factor * self._share(group, len(own)) * own.sum())
                place += 1
        return torch.stack(parts).sum()

    def _token_losses(self, nll: Tensor, base: Tensor | None, advantage: float) -> Tensor:
        """Of one answer, [its tokens]; `nll` is - log p, `base` - log q."""
        own = -advantage * torch.exp(nll.detach() - nll)
        if base is None:
            return own
        apart = nll - base  # log q - log p
        return own + self.settings.beta * (torch.exp(apart) - apart - 1.0)

    def _share(self, group: Written, tokens: int) -> float:
        """What each token of an answer counts."""
        if self.settings.loss_type == "dapo":
            return 1.0
        longest = tokens if self.settings.loss_type == "grpo" else self._longest
        return 1.0 / (len(group.answers) * longest)

    @property
    def _longest(self) -> int:
        return self.settings.max_completion_length or self.contract.max_new_tokens

    def _room(self, example: Example) -> int:
        """Tokens that an answer may have, its end of turn aside."""
        return max(1, min(self._longest, self.contract.max_length - example.prompt_tokens))

    def _as_written(self, example: Example) -> Written:
        """As it is; before anything was written, with as many answers as there will be, as long as they may be."""
        if isinstance(example, Written):
            return example
        count, room = self.settings.num_generations, self._room(example)
        answers = tuple((place,) * room for place in range(count))
        return _written(example, answers, [0.0] * count, [1.0] * count)


def advantages(worth: Sequence[float], *, scaled: bool) -> list[float]:
    """By how much each answer is worth more than the mean, in standard deviations (of a sample) where `scaled`."""
    rewards = np.asarray(worth, dtype=np.float64)
    apart = rewards - rewards.mean()
    if np.ptp(rewards) == 0.0:
        return [0.0] * len(rewards)
    return list(map(float, apart / (rewards.std(ddof=1) + EPSILON) if scaled else apart))


def _written(
    example: Example, answers: tuple[tuple[int, ...], ...], worth: Sequence[float], gains: Sequence[float]
) -> Written:
    row = {**{name: getattr(example, name) for name in Example.__slots__}, "made_by": OWN}
    return Written(**row, answers=answers, rewards=tuple(worth), advantages=tuple(gains))


def _rows(group: Written) -> list[Row]:
    prompt = group.prompt_ids
    return [Row([*prompt, *one], [False] * len(prompt) + [True] * len(one)) for one in group.answers]


def _of_base(model: Any, rows: Sequence[Row]) -> list[Tensor]:
    """- log q of the supervised tokens of each row, by the model with its adapter and all dropout switched off."""
    with in_evaluation(model), model.disable_adapter():
        return supervised_losses(model, rows)


def open_method(settings: Settings, contract: RequestContract) -> Grpo:
    """For answers as the contract has and verifies them; how to read them comes later."""
    assert isinstance(settings, grpo.Grpo)
    reward = rewards_of(contract)
    assert reward is not None, "a recipe without rewards is refused"
    return Grpo(settings, contract, reward)
