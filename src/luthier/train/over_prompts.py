"""What the methods with a head share: scores at the prompt's last token, and a loss a row of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.models.classifier import class_scores
from luthier.models.forward import is_noisy
from luthier.models.packing import SHARED, lay_out_rows
from luthier.records import RequestContract

if TYPE_CHECKING:
    from luthier.train.trunk import Trunk


def scores_at_ends(model: Any, rows: Sequence[Sequence[int]], task: str, trunk: Trunk | None = None) -> Tensor:
    """Scores of a task's head at the last token of each row, in one forward pass; float32 [K, C].

    What rows begin with alike is computed once, unless noise makes every row its own. Where there is a trunk, the
    layers that learn start at its states.
    """
    layout, places = lay_out_rows(rows, shared=max(map(len, rows)) + 1 if is_noisy(model) else SHARED)
    last = torch.stack([place[-1] for place in places])
    with nullcontext() if trunk is None else trunk.under(model, layout, rows, places):
        return class_scores(model, layout, last, task)


class ByHead:
    """A method whose loss is made of scores of a head: no token of an answer is learned, whether it is read or not."""

    by_head = True


def learns_by_head(method: object) -> bool:
    """Whether a method, by itself or on a trunk, is one of those."""
    return bool(getattr(method, "by_head", False))


class OverPrompts(ByHead, ABC):
    """A method whose unit is the row.

    Args:
        task: whose head it is.
    """

    def __init__(self, task: str) -> None:
        self.task = task

    def count(self, example: Example) -> int:
        """One."""
        return 1

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        """The prompt, as it is asked; the answer's words are not read."""
        return [example.prompt_ids]

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Loss of the rows, summed; what prompts share is computed once."""
        scores = scores_at_ends(model, [example.prompt_ids for example in examples], self.task, trunk)
        losses = self.row_losses(scores, examples)
        if weights is not None:
            losses = losses * torch.tensor(weights, dtype=losses.dtype, device=losses.device)
        return losses.sum()

    @abstractmethod
    def row_losses(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        """Loss of each row.

        Args:
            scores: [K, C].
            examples: K rows.

        Returns:
            [K].
        """


def refuse_other_contract(contract: RequestContract, *, rows: Sequence[str] | None) -> None:
    """Check that a contract is for such a head.

    Args:
        contract: of the task.
        rows: labels that have a count each; None for a head that says a number.

    Raises:
        RunError: it was made for another method.
    """
    fits = contract.scale is not None if rows is None else bool(rows) and len(contract.label_rows) == len(rows)
    if contract.answered_by != "head" or not fits:
        raise RunError(
            f"the request contract of {contract.name!r} is not made for a head of this kind",
            way_out="run `luthier prepare` again",
        )
