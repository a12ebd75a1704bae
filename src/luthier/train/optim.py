"""AdamW and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch.nn import Parameter

from luthier.spec.adapter_section import EMBEDDINGS
from luthier.spec.recipe import Train
from luthier.train.shard import is_part

LOG_VARIANCE = "multi_task.log_variance"
"""What `multi_task.loss: uncertainty` learns beside the model."""
LOG_VARIANCE_RATE = 0.05
"""Its learning rate whatever the model's, by which Adam moves it in a step at most: at that of an adapter, tasks whose
losses are 20 times apart would weigh 6 % apart after 60 steps (benchmarks/LOG.md, 2026-11-27)."""

_LAYER = re.compile(r"\.layers\.(\d+)\.|\.h\.(\d+)\.")


def make_optimizer(parameters: Mapping[str, Parameter], settings: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2) with torch's betas 0.9, 0.999 and eps 1e-8.

    Each group has a `rate_factor`, by which the schedule's rate is multiplied. Vectors (norms, biases, magnitudes) do
    not decay.
    """
    factors = rate_factors(parameters, settings)
    # Torch's fused loops take whole tensors or divided ones, not both.
    groups: dict[tuple[bool, bool, float], list[Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault((is_part(parameter), parameter.ndim > 1, factors[name]), []).append(parameter)
    decay = settings.weight_decay or 0.0
    there = all(parameter.device.type == "cuda" for parameter in parameters.values())  # one kernel for all of them
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": decay if decays else 0.0, "rate_factor": factor}
            for (_, decays, factor), group in groups.items()
        ],
        lr=0.0,
        foreach=not there,
        fused=there,
    )


def rate_factors(parameters: Iterable[str], settings: Train) -> dict[str, float]:
    """Name of a parameter -> its learning rate over `train.learning_rate`.

    decay^(top - layer) for layers up to `top`, the last that learns; embeddings stand one below layer 0, everything
    else outside the layers (last norm, head) learns at the full rate (Howard & Ruder 2018, arXiv 1801.06146, section
    3.2; Clark et al. 2020, arXiv 2003.10555, appendix A). B of LoRA: times the ratio (Hayou et al. 2024, arXiv
    2402.12354, definition 2).
    """
    names = tuple(parameters)
    layers = {name: int(match[1] or match[2]) for name in names if (match := _LAYER.search(name))}
    top = max(layers.values(), default=-1)
    made = {}
    for name in names:
        factor = 1.0
        ends = any(f".{end}." in f".{name}" for end in EMBEDDINGS)
        if ends and settings.embedding_learning_rate is not None:
            factor = settings.embedding_learning_rate / (settings.learning_rate or 1.0)
        elif settings.layer_lr_decay is not None and (
            name in layers or (ends and not any(head in name for head in ("lm_head", "embed_out")))
        ):
            factor = settings.layer_lr_decay ** (top - layers.get(name, -1))
        if settings.loraplus_lr_ratio is not None and ".lora_B." in name:
            factor *= settings.loraplus_lr_ratio
        if name == LOG_VARIANCE:
            factor = LOG_VARIANCE_RATE / (settings.learning_rate or 1.0)
        made[name] = factor
    return made


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
