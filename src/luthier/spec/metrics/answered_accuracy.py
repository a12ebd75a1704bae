"""Share of right labels among the items that get one; 0 where none does, since nothing is then shown."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="answered_accuracy",
    title="accuracy of labels given",
    summary="share of right labels among those given",
    tasks=("classification", "sentiment"),
    higher_is_better=True,
    is_proportion=True,
)
