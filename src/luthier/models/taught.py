"""How far a model's next-token chances are from a teacher's, without holding the scores of all positions at once.

Scores z of the model and y of the teacher over the V tokens that both know, T the temperature, p = softmax(y / T), q =
softmax(z / T), t the token that stands there (Hinton et al. 2015, arXiv 1503.02531, section 2):

    loss = (1 - a) (- log softmax(z)_t) + a T^2 D(p, q)

with D one of (Agarwal et al. 2024, arXiv 2306.13649, section 2 and equation 1)

    forward_kl   sum p (log p - log q)                                        the model covers all that the teacher says
    reverse_kl   sum q (log q - log p)                                 the model keeps to what the teacher finds likely
    jsd          b sum p (log p - log m) + (1 - b) sum q (log q - log m),  m = b p + (1 - b) q

The gradient by z is made in the same pass, chunk by chunk: (1 - a) (softmax(z) - [t]) + a T g, where g is the gradient
of D by z / T:

    forward_kl   q - p
    reverse_kl   q (log q - log p - D)
    jsd          (1 - b) q (log q - log m - sum q (log q - log m))

T^2 keeps the teacher's part of the gradient at one size whatever T is. Names: N positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from luthier.models.adapters import bare
from luthier.models.forward import forward_logits, hidden_states
from luthier.models.head import has_plain_head, losses_by_chunk, scores_of
from luthier.models.packing import Layout

CHUNK = 128
"""Positions whose scores [chunk, V] are held at once, of the model and of the teacher; about five such tensors live."""

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True)
class Rule:
    """What is learned of a teacher."""

    alpha: float
    """What the teacher counts; the rest is the token that stands there."""
    temperature: float
    divergence: Divergence
    beta: float
    """Of jsd: what the teacher counts in the mixture."""


@dataclass(frozen=True)
class Reading:
    """What a model makes of N positions: what its output head reads, and the head."""

    states: Tensor
    """[N, hidden]; where the scores are more than a product (a cap, a scale), the scores themselves, [N, V]."""
    weight: Tensor | None
    """[V, hidden]; None where `states` are the scores."""
    bias: Tensor | None = None


def read(model: Any, layout: Layout, keep: Tensor) -> Reading:
    """Let a model read a packed row, and keep what it makes of the positions `keep` [N]."""
    if not has_plain_head(model):
        return Reading(forward_logits(model, layout, keep), None)
    head = model.get_output_embeddings()
    return Reading(hidden_states(model, layout)[keep], head.weight, head.bias)


def taught_losses(own: Reading, teacher: Reading, targets: Tensor, rule: Rule, *, said: Tensor | None = None) -> Tensor:
    """The loss of each position, in nats and float32, [N]; gradients go to what `own` was made from alone.

    Args:
        own: of the model that learns.
        teacher: of the teacher, at the same positions; tokens that only one of both has a score for (heads are padded
            to round sizes) are left out of the divergence.
        targets: int64 [N], the tokens that stand there.
        rule: see there.
        said: bool [N], whether the token counts as an answer; of others the divergence alone is learned. None: all do.
    """
    counts = torch.ones(len(targets), device=targets.device) if said is None else said.to(targets.device).float()

    def of_chunk(scores: Tensor, chunk: slice) -> tuple[Tensor, Callable[[], Tensor]]:
        theirs = scores_of(teacher.states[chunk], teacher.weight, teacher.bias)
        losses, by_scores = _of_chunk(scores, theirs, targets[chunk], counts[chunk], rule)
        return losses, lambda: by_scores

    return losses_by_chunk(own.states, own.weight, own.bias, of_chunk, size=CHUNK)


def _of_chunk(scores: Tensor, taught: Tensor, targets: Tensor, counts: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Losses [chunk], and their gradient by `scores` [chunk, V]."""
    place = torch.arange(len(targets), device=targets.device)
    known = min(scores.shape[1], taught.shape[1])
    log_q = log_softmax(scores[:, :known] / rule.temperature, dim=-1)
    log_p = log_softmax(taught[:, :known] / rule.temperature, dim=-1)
    apart, gradient = _DIVERGENCES[rule.divergence](log_p, log_q, rule.beta)
    losses = rule.alpha * rule.temperature**2 * apart
    by_known = gradient.mul_(rule.alpha * rule.temperature)
    if rule.alpha == 1.0:
        by_scores = by_known if known == scores.shape[1] else torch.zeros_like(scores)
        by_scores[:, :known] = by_known
        return losses, by_scores
    log_own = log_softmax(scores, dim=-1)
    shares = (1.0 - rule.alpha) * counts
    losses = losses - shares * log_own[place, targets]
    by_scores = log_own.exp_()
    by_scores[place, targets] -= 1.0
    by_scores.mul_(shares[:, None])[:, :known] += by_known
    return losses, by_scores


def _weighed(p: Tensor, lead: Tensor) -> Tensor:
    """P times lead, written over `lead`; nothing where a teacher rules a token out, though log 0 is infinite."""
    return lead.mul_(p).masked_fill_(p == 0.0, 0.0)


def _forward_kl(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    apart = _weighed(p, log_p.sub_(log_q)).sum(dim=-1)
    return apart, log_q.exp_().sub_(p)


def _reverse_kl(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    lead = log_q.sub_(log_p)
    apart = (q * lead).sum(dim=-1)
    return apart, lead.sub_(apart[:, None]).mul_(q)


def _jsd(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    of_teacher = _weighed(log_p.exp(), log_p.sub_(log_m)).sum(dim=-1)
    q = log_q.exp()
    lead = log_q.sub_(log_m)
    of_own = (q * lead).sum(dim=-1)
    gradient = lead.sub_(of_own[:, None]).mul_(q).mul_(1.0 - beta)
    return beta * of_teacher + (1.0 - beta) * of_own, gradient


_DIVERGENCES = {"forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "jsd": _jsd}
"""(log p, log q, b), both [N, V] and written over -> D of each position [N], and its gradient by z / T [N, V]."""


def share_weights(teacher: Any, model: Any) -> int:
    """Let frozen weights that a teacher has from the same base as the model be held once; how many tensors that are.

    Weights that differ in a single bit, learn, or lie divided between ranks, stay apart.
    """
    frozen = {
        _base_name(name): parameter
        for name, parameter in bare(model).named_parameters()
        if not parameter.requires_grad and type(parameter.data) is Tensor
    }
    shared = 0
    for name, parameter in bare(teacher).named_parameters():
        own = frozen.get(_base_name(name))
        if own is None or own.dtype != parameter.dtype or own.device != parameter.device:
            continue
        if own.shape == parameter.shape and torch.equal(own, parameter):
            parameter.data = own.data
            shared += 1
    return shared


def _base_name(name: str) -> str:
    """What a weight is called where no adapter stands beside it."""
    return name.replace(".base_layer.", ".")
