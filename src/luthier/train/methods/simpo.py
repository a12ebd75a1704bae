"""Simple preference optimisation: - log s(beta (m(chosen) - m(rejected)) - gamma), s the logistic function.

m is the mean log-probability a token of an answer (Meng et al. 2024, arXiv 2405.14734, equation 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.methods import simpo
from luthier.spec.section import Method as Settings
from luthier.train.pairs import Pairs, Scores


@dataclass(frozen=True)
class Simpo(Pairs):
    """The method."""

    settings: simpo.Simpo

    def losses(self, scores: Scores, examples: Sequence[Example]) -> Tensor:
        lead_P = self.settings.beta * (scores.means_P2[:, 0] - scores.means_P2[:, 1])
        return -logsigmoid(lead_P - self.settings.gamma)


def open_method(settings: Settings, contract: RequestContract) -> Simpo:
    """It asks nothing of the task."""
    assert isinstance(settings, simpo.Simpo)
    return Simpo(settings)
