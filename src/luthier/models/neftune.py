"""Noise on the embeddings of tokens while training (Jain et al. 2023, arXiv 2310.05914, algorithm 1).

To the embeddings [L, d] of a row of L tokens it adds alpha / sqrt(L d) times numbers drawn evenly from -1 to 1. In a
packed row each row has its own L. What is drawn follows from torch's random state, which the loop sets from the run's
seed, the step and the rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.packing import Layout


class Neftune(nn.Module):
    """Stands inside the embeddings, so that whoever looks for noise in a model finds it."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.row_lengths: Tensor | None = None
        """Of the packed row that is being computed: for each token, of its row; [T]."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """[1, T, d] with noise."""
        assert self.row_lengths is not None, "the layout is told first"
        lengths = self.row_lengths.to(embeddings.device, embeddings.dtype)
        sizes = self.alpha / (lengths * embeddings.shape[-1]).sqrt()  # [T]
        drawn = torch.empty(embeddings.shape, dtype=embeddings.dtype).uniform_(-1, 1)  # by the processor, everywhere
        return embeddings + drawn.to(embeddings.device) * sizes[None, :, None]


def add_noise(model: Any, alpha: float) -> None:
    """Let `model` add noise to its embeddings, packed rows of training only; its parameters keep their names."""
    from luthier.models.adapters import bare  # which needs `luthier.models.forward`, which looks for noise

    embeddings, noise = bare(model).get_input_embeddings(), Neftune(alpha)
    embeddings.add_module("neftune", noise)

    def tell(module: nn.Module, args: Any, kwargs: Any) -> None:
        noise.row_lengths = row_lengths(kwargs["layout"]) if noise.training else None

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        return noise(output) if noise.training else None

    bare(model).get_decoder().register_forward_pre_hook(tell, with_kwargs=True)
    embeddings.register_forward_hook(add)


def row_lengths(layout: Layout) -> Tensor:
    """For each token of a packed row in which nothing is shared, the number of tokens of its row; [T]."""
    starts = layout.position_ids[0] == 0
    assert int(starts.sum()) == len(layout.starts), "with noise every row is computed by itself"
    rows = torch.cumsum(starts, 0) - 1  # [T]
    return torch.bincount(rows)[rows]
