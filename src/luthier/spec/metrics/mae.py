"""Mean distance of the predicted number from the expected one; of degrees in steps of their order."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="mae",
    title="mean absolute error",
    summary="mean distance from the number, or steps from the degree",
    tasks=("classification", "sentiment", "regression"),
    higher_is_better=False,
    is_proportion=False,
)
