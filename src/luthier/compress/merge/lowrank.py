"""Changes of low rank, B A: added up without being multiplied out, and cut to a rank with the least loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """B A, what a LoRA adds to a weight; its scale is in B."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r]"""
    turned: bool = False
    """Whether the weight stands as [in, out], as in GPT-2."""

    def dense(self) -> Tensor:
        """Multiplied out, as the weight stands."""
        product = self.b.double() @ self.a.double()
        return (product.T if self.turned else product).float()

    def squares(self) -> float:
        """Sum of the squares of its values: tr(B^T B A A^T)."""
        a, b = self.a.double(), self.b.double()
        return float(((b.T @ b) * (a @ a.T)).sum())


def stacked(parts: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """sum_i w_i B_i A_i = [w_1 B_1, ..., w_n B_n] [A_1; ...; A_n], exactly, of the rank that all have together."""
    scaled = [weight * part.b for part, weight in zip(parts, weights, strict=True)]
    return LowRank(torch.cat([part.a for part in parts], 0), torch.cat(scaled, 1), parts[0].turned)


def cut(change: LowRank, rank: int) -> LowRank:
    """The nearest change of this rank (Eckart and Young 1936), itself where it has no more.

    B = Q R and A^T = P S by QR, so the singular values of B A are those of the small R S^T.
    """
    if change.a.shape[0] <= rank:
        return change
    q, r = torch.linalg.qr(change.b.double())
    p, s = torch.linalg.qr(change.a.double().T)
    u, sizes, v = torch.linalg.svd(r @ s.T, full_matrices=False)
    return _halved(q @ u, sizes, v @ p.T, rank, change.turned)


def of_dense(matrix: Tensor, rank: int, *, turned: bool) -> LowRank:
    """The change of this rank that is nearest to a matrix, as the weight stands [out, in], or [in, out] if turned."""
    u, sizes, v = torch.linalg.svd((matrix.T if turned else matrix).float(), full_matrices=False)
    return _halved(u, sizes, v, rank, turned)


def _halved(u: Tensor, sizes: Tensor, v: Tensor, rank: int, turned: bool) -> LowRank:
    """U S V^T cut after `rank` values; both factors take the root of the sizes."""
    root = sizes[:rank].sqrt()
    return LowRank((root[:, None] * v[:rank]).float(), (u[:, :rank] * root).float(), turned)


def padded(change: LowRank, rank: int) -> LowRank:
    """The same change with zeros up to a rank, so that all layers of an adapter have one."""
    missing = rank - change.a.shape[0]
    if missing <= 0:
        return change
    zeros_a, zeros_b = change.a.new_zeros(missing, change.a.shape[1]), change.b.new_zeros(change.b.shape[0], missing)
    return LowRank(torch.cat([change.a, zeros_a]), torch.cat([change.b, zeros_b], 1), change.turned)
