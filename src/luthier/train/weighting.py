"""What each task counts in the loss of a step.

Notation: a step has R rows, r_k of task k, whose method counts C_k units and sums their losses to S_k; L_k = S_k / C_k.

    loss = sum_k w_k (r_k / R) L_k

so that a task's part is what its rows are of the step, whatever its unit (a token, a row, a pair); of one task alone
it is S / C. `weight` of a data entry is w_k.

- uncertainty: loss = sum_k w_k (r_k / R) (exp(-s_k) L_k + s_k / 2) with a learned s_k = log sigma_k^2 for each task
  (Kendall, Gal and Cipolla 2018, arXiv:1705.07115, eq. 10 with eq. 7's factor for likelihoods left out of L_k);
- pcgrad: of the gradients g_k of the parts, each is freed of what goes against another before they are added (Yu et al.
  2020, arXiv:2001.06782, algorithm 1), by those parameters that several tasks of the step share: a task's own head has
  nothing to go against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from luthier.train.batches import Turn
from luthier.train.inputs import Inputs
from luthier.train.optim import LOG_VARIANCE


class Weighting:
    """The shares of a step's tasks; under 'uncertainty' with parameters of its own."""

    def __init__(self, inputs: Inputs) -> None:
        self._weights = [task.weight if len(inputs.tasks) > 1 else 1.0 for task in inputs.tasks]
        self._learned: Parameter | None = None
        if len(inputs.tasks) > 1 and inputs.mix.loss == "uncertainty":
            self._learned = Parameter(torch.zeros(len(inputs.tasks)))

    def parameters(self) -> dict[str, Parameter]:
        """What is learned beside the model, by a name that no module has."""
        return {} if self._learned is None else {LOG_VARIANCE: self._learned}

    def factors(self) -> dict[int, float]:
        """Task -> exp(-s), what has been learned that it counts; none where nothing is learned of it."""
        if self._learned is None:
            return {}
        return {task: float(one) for task, one in enumerate(torch.exp(-self._learned.detach()))}

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


class Apart:
    """The gradients of a step's tasks, one after the other, until they are added without their conflicts."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._parameters = tuple(parameters)
        self._found: list[list[Tensor | None]] = []

    def take(self) -> None:
        """Take the gradient that a task has left; nothing is left then."""
        self._found.append([p.grad for p in self._parameters])
        for parameter in self._parameters:
            parameter.grad = None

    def add(self, *, seed: Sequence[int]) -> None:
        """Leave the sum without conflicts; a parameter that no task has computed is left without a gradient."""
        places = range(len(self._parameters))
        shared = [place for place in places if sum(own[place] is not None for own in self._found) > 1]
        for place in set(places).difference(shared):
            self._parameters[place].grad = next((own[place] for own in self._found if own[place] is not None), None)
        if not shared:
            return
        flat = []  # [K][P]
        for own in self._found:
            flat.append(torch.cat([_flat(own[place], self._parameters[place]) for place in shared]))
            own.clear()  # held once
        freed = torch.split(without_conflict(flat, seed=seed), [self._parameters[place].numel() for place in shared])
        for place, part in zip(shared, freed, strict=True):
            parameter = self._parameters[place]
            parameter.grad = part.view_as(parameter).to(parameter.dtype)


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


def _flat(gradient: Tensor | None, parameter: Parameter) -> Tensor:
    """In float32, [size of the parameter]; 0 where there is none."""
    return (torch.zeros_like(parameter) if gradient is None else gradient).detach().flatten().float()
