"""A classification head: the loss of a row is the cross-entropy of its label's score, at the prompt's last token.

Scores z = W h [C], shares pi of the labels among the training rows, tau = logit_adjustment, e = label_smoothing, g =
focal_gamma:

    p = softmax(z + tau log pi)           logit adjustment (Menon et al. 2021, arXiv 2007.07314, eq. 10)
    q = (1 - e) [k = y] + e / C           label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7)
    loss = (1 - p_y)^g (- sum_k q_k log p_k)              focal loss (Lin et al. 2017, arXiv 1708.02002, eq. 4)

With all three at 0 it is - log p_y. The adjustment is for learning only: what is asked later is z itself.

Where labels are degrees and the method is ordered, - sum_k q_k log p_k is replaced by the mean over the C - 1 places k
between them of

    - Q_k log P_k - (1 - Q_k) log (1 - P_k),     P_k = sum_{j <= k} p_j,  Q_k = sum_{j <= k} q_j

the loss of Cao, Mirjalili and Raschka (2020, arXiv 1901.07884, eq. 4, all places weighing alike). Their P_k share one
direction with C - 1 thresholds, so that no P_k is below the one before; of a softmax that is so whatever the scores,
and the head stays one that plain tools know. Of two labels it is the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.methods.classify import Classify as Settings
from luthier.train.over_prompts import OverPrompts, refuse_other_contract

if TYPE_CHECKING:
    from luthier.spec.section import Method as AnySettings


class Classify(OverPrompts):
    """The method; its unit is the row."""

    def __init__(self, settings: Settings, contract: RequestContract) -> None:
        super().__init__(contract.name)
        self.settings = settings
        self.places = {label: place for place, label in enumerate(contract.labels)}
        rows = torch.tensor(contract.label_rows, dtype=torch.float64)
        self.log_shares = (rows / rows.sum()).log().float()  # [C]

    def row_losses(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        """See `losses`."""
        wanted = torch.tensor([self.places[example.answer] for example in examples], device=scores.device)
        return self.losses(scores, wanted)

    def losses(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Loss of each row.

        Args:
            scores: [K, C].
            wanted: int64 [K], the label's place.

        Returns:
            [K].
        """
        settings = self.settings
        if settings.logit_adjustment:
            scores = scores + settings.logit_adjustment * self.log_shares.to(scores.device, scores.dtype)
        log_p = log_softmax(scores, dim=-1)
        right = log_p.gather(1, wanted[:, None])[:, 0]
        if settings.ordered:
            losses = _by_degree(log_p, wanted, smoothing=settings.label_smoothing)
        else:
            losses = -(1.0 - settings.label_smoothing) * right - settings.label_smoothing * log_p.mean(dim=-1)
        if settings.focal_gamma:
            # Of a row that is right to the last digit, the power's slope is infinite below 1, and its loss 0.
            wrong = (-torch.expm1(right)).clamp(min=torch.finfo(right.dtype).tiny)
            losses = wrong**settings.focal_gamma * losses
        return losses


def _by_degree(log_p: Tensor, wanted: Tensor, *, smoothing: float) -> Tensor:
    """The ordered loss above.

    Args:
        log_p: [K, C].
        wanted: int64 [K].
        smoothing: e.

    Returns:
        [K].
    """
    count = log_p.shape[-1]
    below = torch.ones(count, count, dtype=torch.bool, device=log_p.device).tril()[:-1]  # [C-1, C]: j <= k
    held, gone = (log_p[:, None].masked_fill(~mask, -torch.inf).logsumexp(dim=-1) for mask in (below, ~below))
    wanted_q = smoothing / count + (1.0 - smoothing) * one_hot(wanted, count).to(log_p.dtype)  # [K, C]
    wanted_held = wanted_q @ below.T.to(log_p.dtype)  # [K, C-1]
    return -(wanted_held * held + (1.0 - wanted_held) * gone).mean(dim=-1)


def open_method(settings: AnySettings, contract: RequestContract) -> Classify:
    """For the labels of the contract.

    Raises:
        RunError: the contract is not one for a head: it was made for another method.
    """
    assert isinstance(settings, Settings)
    refuse_other_contract(contract, rows=contract.labels)
    return Classify(settings, contract)
