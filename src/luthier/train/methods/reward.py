"""A reward model: a head with one score r, read at the last token of an answer, its end of turn included.

Of answers w, which was preferred, and l to a prompt x, the loss of a pair is

    - log s(r(x, w) - r(x, l)) + c (r(x, w) + r(x, l))^2

s the logistic function, c = center_rewards_coefficient. The first part is the likelihood of the choice by Bradley and
Terry (1952, "Rank analysis of incomplete block designs"), as Ouyang et al. (2022, arXiv 2203.02155, equation 1) learn
it. It does not change where all scores move alike; the second holds them around 0 (Eisenstein et al. 2023, arXiv
2312.09244). Both are those of TRL's RewardTrainer, whose margins of single pairs are not read here.

The head starts at zero: the first loss is log 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.records import RequestContract
from luthier.spec.methods.reward import RewardModel as Settings
from luthier.train.over_prompts import ByHead, scores_at_ends

if TYPE_CHECKING:
    from luthier.spec.section import Method as AnySettings
    from luthier.train.trunk import Trunk


class RewardModel(ByHead):
    """The method; its unit is the pair."""

    def __init__(self, settings: Settings, task: str) -> None:
        self.settings, self.task = settings, task

    def count(self, example: Example) -> int:
        """One pair."""
        return 1

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        """Both answers behind their prompt, to their last tokens, at which they are scored."""
        return [example.input_ids, [*example.prompt_ids, *example.rejected_ids]]

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Sum of the losses of the pairs, each times its weight; what answers begin with alike is computed once."""
        rows = [row for example in examples for row in self.computed(example)]
        losses = self.losses(scores_at_ends(model, rows, self.task, trunk).view(-1, 2))
        if weights is not None:
            losses = losses * torch.tensor(weights, dtype=losses.dtype, device=losses.device)
        return losses.sum()

    def losses(self, scores_P2: Tensor) -> Tensor:
        """Loss of each pair, see above.

        Args:
            scores_P2: of the preferred answers, and of the others.

        Returns:
            [P], in nats.
        """
        losses = -logsigmoid(scores_P2[:, 0] - scores_P2[:, 1])
        if self.settings.center_rewards_coefficient:
            losses = losses + self.settings.center_rewards_coefficient * scores_P2.sum(dim=1) ** 2
        return losses


def open_method(settings: AnySettings, contract: RequestContract) -> RewardModel:
    """For the pairs of the contract.

    Raises:
        RunError: the contract is not one for a head that scores answers: it was made for another method.
    """
    assert isinstance(settings, Settings)
    if not contract.scores_answers:
        raise RunError(
            f"the request contract of {contract.name!r} is not made for a head that scores answers",
            way_out="run `luthier prepare` again",
        )
    return RewardModel(settings, contract.name)
