"""Mean distance of the predicted label from the expected one, in steps of their order."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="mae",
    summary="mean steps from the right degree",
    tasks=("classification", "sentiment"),
    higher_is_better=False,
    is_proportion=False,
)
