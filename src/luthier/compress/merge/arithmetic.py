"""How the task vectors of one weight are added up. t_i = W_i - W is what run i did to the weight W, w_i its weight.

    linear       t = sum_i w_i t_i                               (Ilharco et al. 2023, arXiv 2212.04089, section 2)
    ties         t = mean of the w_i trim(t_i) whose sign is the elected one
                                                                 (Yadav et al. 2023, arXiv 2306.01708, algorithm 1)
    dare_linear  t = sum_i w_i drop(t_i)                         (Yu et al. 2024, arXiv 2311.03099, eq. 1 and 2)
    dare_ties    ties with drop in the place of trim

A uniform soup (Wortsman et al. 2022, arXiv 2203.05482) is linear with w_i = 1/n; a greedy one the same over the runs
that it chooses. Weights multiply first, so that a run of weight 2 has two votes for a sign. The papers' lambda, which
scales what is merged, is a common factor of the weights. As in the usual implementations (PEFT, mergekit) values are
cut weight by weight, not over all weights together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How is added up."""

    method: str
    weights: tuple[float, ...]
    density: float = 1.0
    seed: int = 0


def combine(vectors: Sequence[Tensor | None], mix: Mix, *, name: str) -> Tensor:
    """The merged task vector of one weight.

    Args:
        vectors: of each run, all of one shape; None where it left the weight as it is, which is a vector of zeros.
        mix: method, one weight a run, share of values that is kept, and seed of what DARE drops.
        name: of the weight; what is dropped depends on seed, place of the run and name alone, not on other weights.

    Returns:
        float32, of the same shape.
    """
    present = [vector for vector in vectors if vector is not None]
    assert present, "a weight that no run changed is not merged"
    parts = [torch.zeros_like(present[0]) if vector is None else vector.float() for vector in vectors]
    return _METHODS[mix.method](parts, mix, name)


def trim(vector: Tensor, density: float) -> Tensor:
    """The largest values by size, this share of them, at least one, of equal ones the first; the others are 0."""
    count = max(1, round(density * vector.numel()))
    if count >= vector.numel():
        return vector
    sizes = vector.abs()
    least = sizes.flatten().kthvalue(vector.numel() - count + 1).values
    larger, ties = sizes > least, (sizes == least).flatten()
    firsts = (ties & (ties.cumsum(0) <= count - int(larger.sum()))).view(sizes.shape)
    return torch.where(larger | firsts, vector, 0.0)


def drop(vector: Tensor, density: float, *, seed: int, run: int, name: str) -> Tensor:
    """Each value stays with this probability, divided by it, so that its expectation is what it was."""
    if density >= 1.0:
        return vector
    digest = hashlib.sha256(f"{seed}:{run}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    kept = torch.rand(vector.shape, generator=generator) < density
    return torch.where(kept, vector / density, 0.0)


def agreed_mean(parts: Sequence[Tensor]) -> Tensor:
    """Of each place the mean of the values whose sign is that of their sum; 0 where the sum is."""
    stacked = torch.stack(list(parts))  # [runs, ...]
    elected = stacked.sum(dim=0).sign()
    agrees = (stacked.sign() == elected) & (elected != 0)
    return torch.where(agrees, stacked, 0.0).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def _weighted(parts: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    return [weight * part for part, weight in zip(parts, weights, strict=True)]


def _linear(parts: Sequence[Tensor], mix: Mix, name: str) -> Tensor:
    return torch.stack(_weighted(parts, mix.weights)).sum(dim=0)


def _ties(parts: Sequence[Tensor], mix: Mix, name: str) -> Tensor:
    return agreed_mean(_weighted([trim(part, mix.density) for part in parts], mix.weights))


def _dropped(parts: Sequence[Tensor], mix: Mix, name: str) -> list[Tensor]:
    kept = [drop(part, mix.density, seed=mix.seed, run=run, name=name) for run, part in enumerate(parts)]
    return _weighted(kept, mix.weights)


def _dare_linear(parts: Sequence[Tensor], mix: Mix, name: str) -> Tensor:
    return torch.stack(_dropped(parts, mix, name)).sum(dim=0)


def _dare_ties(parts: Sequence[Tensor], mix: Mix, name: str) -> Tensor:
    return agreed_mean(_dropped(parts, mix, name))


_METHODS: dict[str, Callable[[Sequence[Tensor], Mix, str], Tensor]] = {
    "linear": _linear,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
}
