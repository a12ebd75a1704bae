"""Direct preference optimisation and its kin: how much each answer gained on where the model stood.

With r(y) = log pi(y | x) - log pi_ref(y | x) and d = r(chosen) - r(rejected), log-probabilities summed over an answer's
tokens:

- sigmoid: - log s(beta d) (Rafailov et al. 2023, arXiv 2305.18290, equation 7), s the logistic function; with label
  smoothing e: - (1 - e) log s(beta d) - e log s(- beta d) (Mitchell 2023, "A note on DPO with noisy preferences &
  relationship to IPO", equation 3).
- ipo: (d' - 1 / (2 beta))^2, d' as d but each r divided by its answer's number of tokens (Azar et al. 2023, arXiv
  2310.12036, equation 17, tau = beta; averaged as TRL does, whose authors confirmed it with the paper's: without it
  long answers weigh more).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import logsigmoid

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.methods import dpo
from luthier.spec.section import Method as Settings
from luthier.train.pairs import Pairs, Scores
from luthier.train.reference import Reference


@dataclass(frozen=True)
class Dpo(Pairs):
    """The method; it learns once it knows where the model stood."""

    settings: dpo.Dpo
    reference: Reference | None = None

    def beside(self, reference: Reference) -> Dpo:
        return replace(self, reference=reference)

    def losses(self, scores: Scores, examples: Sequence[Example]) -> Tensor:
        assert self.reference is not None, "the reference is opened before training"
        gains_P2 = scores.logprobs_P2 - self.reference.of(examples).to(scores.logprobs_P2.device)
        beta, noise = self.settings.beta, self.settings.label_smoothing
        if self.settings.loss == "ipo":
            means_P2 = gains_P2 / scores.tokens_P2
            return (means_P2[:, 0] - means_P2[:, 1] - 1 / (2 * beta)) ** 2
        lead_P = beta * (gains_P2[:, 0] - gains_P2[:, 1])
        return -(1 - noise) * logsigmoid(lead_P) - noise * logsigmoid(-lead_P)


def open_method(settings: Settings, contract: RequestContract) -> Dpo:
    """It asks nothing of the task."""
    assert isinstance(settings, dpo.Dpo)
    return Dpo(settings)
