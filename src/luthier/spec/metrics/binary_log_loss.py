"""Mean negative log of the probability of the right yes or no, over labels and items, in nats."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="binary_log_loss",
    title="log loss a label",
    summary="mean negative log-likelihood of a yes or no",
    tasks=("multi_label",),
    higher_is_better=False,
    is_proportion=False,
)
