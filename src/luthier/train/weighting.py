"""What each task counts in the loss of a step.

Notation: a step has R rows, r_k of task k, whose method counts C_k units and sums their losses to S_k; L_k = S_k / C_k.

    loss = sum_k w_k (r_k / R) L_k

so that a task's part is what its rows are of the step, whatever its unit (a token, a row, a pair); of one task alone
it is S / C. `weight` of a data entry is w_k.

- uncertainty: loss = sum_k w_k (r_k / R) (exp(-s_k) L_k + s_k / 2) with a learned s_k = log sigma_k^2 for each task
  (Kendall, Gal and Cipolla 2018, arXiv:1705.07115, eq. 10 with eq. 7's factor for likelihoods left out of L_k);
- pcgrad: of the gradients g_k of the parts, each is freed of what goes against another before they are added (Yu et al.
  2020, arXiv:2001.06782, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from luthier.train.batches import Turn
from luthier.train.inputs import Inputs


class Weighting:
    """The shares of a step's tasks; under 'uncertainty' with parameters of its own."""

    def __init__(self, inputs: Inputs) -> None:
        self._weights = [task.weight if len(inputs.tasks) > 1 else 1.0 for task in inputs.tasks]
        self._learned: Parameter | None = None
        if len(inputs.tasks) > 1 and inputs.mix.loss == "uncertainty":
            self._learned = Parameter(torch.zeros(len(inputs.tasks)))

    def parameters(self) -> dict[str, Parameter]:
        """What is learned beside the model, by a name that no module has."""
        return {} if self._learned is None else {"multi_task.log_variance": self._learned}

    def shares(self, turns: Sequence[Turn]) -> dict[int, float]:
        """Task -> what its mean loss counts in this step."""
        rows = sum(len(turn.rows) for turn in turns)
        found = {turn.task: self._weights[turn.task] * (len(turn.rows) / rows) for turn in turns}
        if self._learned is None:
            return found
        variance = torch.exp(-self._learned.detach())
        return {task: share * float(variance[task]) for task, share in found.items()}

    def set_gradient(self, turns: Sequence[Turn], losses: Mapping[int, float]) -> None:
        """That of the learned weights, from the mean loss of each task over all ranks: they need no other gradient.

        d loss / d s_k = w_k (r_k / R) (1/2 - exp(-s_k) L_k), 0 for a task that the step has not.
        """
        if self._learned is None:
            return
        shares = self.shares(turns)  # w_k (r_k / R) exp(-s_k)
        variance = torch.exp(self._learned.detach())
        gradient = torch.zeros_like(self._learned)
        for task, share in shares.items():
            gradient[task] = share * (0.5 * float(variance[task]) - losses[task])
        self._learned.grad = gradient

    def penalty(self, turns: Sequence[Turn]) -> float:
        """What the loss of a step holds beside the losses of its tasks: sum_k w_k (r_k / R) s_k / 2."""
        if self._learned is None:
            return 0.0
        log_variance = self._learned.detach()
        shares = self.shares(turns)
        return sum(
            0.5 * share * float(torch.exp(log_variance[task]) * log_variance[task]) for task, share in shares.items()
        )


def without_conflict(gradients: Sequence[Tensor], *, seed: Sequence[int]) -> Tensor:
    """The sum of the gradients, each freed of its part against any other; in random order, as the method asks.

    Args:
        gradients: of K tasks, each of shape [P].
        seed: of the order.
    """
    rng = np.random.default_rng(list(seed))
    squares = [float(gradient.double().square().sum()) for gradient in gradients]
    total = torch.zeros_like(gradients[0])
    for number, gradient in enumerate(gradients):
        freed = gradient.clone()
        for other in rng.permutation(len(gradients)):
            if other != number and squares[other] > 0:
                along = float((freed.double() * gradients[other].double()).sum())
                if along < 0:
                    freed -= (along / squares[other]) * gradients[other]
        total += freed
    return total


def flat_gradient(parameters: Iterable[Parameter]) -> Tensor:
    """The gradients of all parameters as one float32 tensor [P], 0 where there is none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([part.detach().flatten().float() for part in parts])


def set_gradient(parameters: Iterable[Parameter], flat: Tensor) -> None:
    """Give each parameter its part of `flat_gradient`."""
    start = 0
    for parameter in parameters:
        part = flat[start : start + parameter.numel()]
        start += parameter.numel()
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
