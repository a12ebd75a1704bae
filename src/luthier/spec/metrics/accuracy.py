"""Share of items whose predicted label is the right one."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="accuracy",
    title="accuracy",
    summary="share of right labels; of several, of items with just these",
    tasks=("classification", "sentiment", "multi_label"),
    higher_is_better=True,
    is_proportion=True,
)
