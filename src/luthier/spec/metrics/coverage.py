"""Share of items that get a label, where the version may abstain."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="coverage",
    title="share labelled",
    summary="share of items that get a label",
    tasks=("classification", "sentiment"),
    higher_is_better=True,
    is_proportion=True,
)
