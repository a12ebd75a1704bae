"""AdamW and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.nn import Parameter

from luthier.spec.recipe import Train
from luthier.train.shard import is_part


def make_optimizer(parameters: Iterable[Parameter], settings: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) with torch's betas 0.9, 0.999 and eps 1e-8."""
    groups: dict[bool, list[Parameter]] = {}  # torch's fused loops take whole tensors or divided ones, not both
    for parameter in parameters:
        groups.setdefault(is_part(parameter), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group} for group in groups.values()],
        lr=0.0,
        weight_decay=settings.weight_decay or 0.0,
        foreach=True,
    )


def learning_rate(step: int, *, total: int, settings: Train) -> float:
    """Rate of step `step` (0-based) of `total`: linear warm-up, then constant, linear to zero, or a half cosine."""
    assert settings.learning_rate is not None
    assert settings.warmup_ratio is not None
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    match settings.lr_scheduler_type:
        case "linear":
            factor = 1.0 - progress
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        case _:
            factor = 1.0
    return settings.learning_rate * factor
