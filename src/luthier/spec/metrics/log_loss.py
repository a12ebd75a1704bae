"""Mean negative log of the probability that the expected label is given, in nats."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="log_loss",
    title="log loss",
    summary="mean negative log-likelihood of the label",
    tasks=("classification", "sentiment"),
    higher_is_better=False,
    is_proportion=False,
)
