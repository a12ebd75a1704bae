"""A head with one score z: with u = (number - mean) / spread of the training rows, the loss of a row is

    (z - u)^2                                  where delta is open: transformers' loss for `regression`, torch's mse
    d^2 / 2 where d = |z - u| <= delta, else delta (d - delta / 2)      Huber (1964, "Robust estimation of a location
                                                                        parameter", section 4); torch's huber_loss

The head starts at zero, so the first prediction is the mean of the training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.methods.regression import Regression as Settings
from luthier.train.over_prompts import OverPrompts, refuse_other_contract

if TYPE_CHECKING:
    from luthier.spec.section import Method as AnySettings


class Regression(OverPrompts):
    """The method."""

    def __init__(self, settings: Settings, contract: RequestContract) -> None:
        super().__init__(contract.name)
        assert contract.scale is not None, "looked at by open_method"
        self.settings, self.scale = settings, contract.scale

    def row_losses(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        """See above; in squared standard deviations."""
        mean, spread = self.scale.mean, self.scale.spread
        wanted = torch.tensor(
            [(float(example.answer) - mean) / spread for example in examples], dtype=scores.dtype, device=scores.device
        )
        if self.settings.huber_delta is not None:
            return huber_loss(scores[:, 0], wanted, reduction="none", delta=self.settings.huber_delta)
        return mse_loss(scores[:, 0], wanted, reduction="none")


def open_method(settings: AnySettings, contract: RequestContract) -> Regression:
    """For the numbers of the contract.

    Raises:
        RunError: the contract is not one for such a head: it was made for another method.
    """
    assert isinstance(settings, Settings)
    refuse_other_contract(contract, rows=None)
    return Regression(settings, contract)
