"""Odds-ratio preference optimisation: L_SFT + beta L_OR (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7).

With m(y) the mean log-probability a token of an answer, p(y) = exp m(y) and odds(y) = p / (1 - p):

- L_SFT = - m(chosen): over the answer's tokens, as sft learns, and a mean over pairs, so that it does not depend on
  what stands beside a pair. TRL counts the prompt's tokens too, and divides by the tokens of a micro-batch.
- L_OR = - log s(log odds(chosen) - log odds(rejected)), s the logistic function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.methods import orpo
from luthier.spec.section import Method as Settings
from luthier.train.pairs import Pairs, Scores

_CERTAIN = -1e-12
"""Log-probability above which the odds of an answer are those of this one; theirs would not be finite."""


@dataclass(frozen=True)
class Orpo(Pairs):
    """The method."""

    settings: orpo.Orpo

    def losses(self, scores: Scores, examples: Sequence[Example]) -> Tensor:
        odds_P2 = _log_odds(scores.means_P2)
        return -scores.means_P2[:, 0] - self.settings.beta * logsigmoid(odds_P2[:, 0] - odds_P2[:, 1])


def _log_odds(means: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean)."""
    means = means.clamp(max=_CERTAIN)
    return means - torch.log(-torch.expm1(means))


def open_method(settings: Settings, contract: RequestContract) -> Orpo:
    """It asks nothing of the task."""
    assert isinstance(settings, orpo.Orpo)
    return Orpo(settings)
