"""exp of the mean negative log-likelihood a token: of a general text (general.perplexity) or of the answers."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="perplexity",
    summary="exp of the mean negative log-likelihood",
    tasks=("classification", "sentiment", "translation", "generation", "extraction", "preference", "domain"),
    higher_is_better=False,
    is_proportion=False,
)
