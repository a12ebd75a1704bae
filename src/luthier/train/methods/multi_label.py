"""A head with a score for each of C labels, of which a row may have several: the loss is the mean over the labels of

    - w y' log p - (1 - y') log (1 - p),     p = sigmoid(z),   y' = (1 - e) y + e / 2

y 1 for a label that the row has, else 0, e = label_smoothing, w = positive_weight (of y alone). With focal_gamma g each
label's part is multiplied by (1 - p_t)^g, p_t the probability of what is right (Lin et al. 2017, arXiv 1708.02002, eq.
4, where it is of this binary form). With all three at their defaults it is transformers' loss for
`multi_label_classification`: torch's binary_cross_entropy_with_logits, averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.answers import divided
from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.methods.multi_label import MultiLabel as Settings
from luthier.train.over_prompts import OverPrompts, refuse_other_contract

if TYPE_CHECKING:
    from luthier.spec.section import Method as AnySettings


class MultiLabel(OverPrompts):
    """The method."""

    def __init__(self, settings: Settings, contract: RequestContract) -> None:
        super().__init__(contract.name)
        self.settings, self.separator = settings, contract.separator
        self.places = {label: place for place, label in enumerate(contract.tags)}

    def row_losses(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        """See above; in nats."""
        has = torch.zeros_like(scores)
        for row, example in enumerate(examples):
            for label in divided(example.answer, self.separator):
                has[row, self.places[label]] = 1.0
        settings = self.settings
        wanted = (1.0 - settings.label_smoothing) * has + settings.label_smoothing / 2
        losses = -settings.positive_weight * wanted * logsigmoid(scores) - (1.0 - wanted) * logsigmoid(-scores)
        if settings.focal_gamma:
            right = logsigmoid(torch.where(has > 0, scores, -scores))
            wrong = (-torch.expm1(right)).clamp(min=torch.finfo(right.dtype).tiny)
            losses = wrong**settings.focal_gamma * losses
        return losses.mean(dim=1)


def open_method(settings: AnySettings, contract: RequestContract) -> MultiLabel:
    """For the labels of the contract.

    Raises:
        RunError: the contract is not one for such a head: it was made for another method.
    """
    assert isinstance(settings, Settings)
    refuse_other_contract(contract, rows=contract.tags)
    return MultiLabel(settings, contract)
