"""exp of the mean negative log-likelihood a token: of a general text (general.perplexity) or of the answers."""

from typing import get_args

from luthier.records import Task
from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="perplexity",
    title="perplexity",
    summary="exp of the mean negative log-likelihood",
    tasks=get_args(Task),
    higher_is_better=False,
    is_proportion=False,
)
