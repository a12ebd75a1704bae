"""How far the probabilities of the chosen labels lie from the share of them that is right."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="calibration_error",
    title="calibration error",
    summary="probability of the chosen label against how often it is right",
    tasks=("classification", "sentiment"),
    higher_is_better=False,
    is_proportion=False,
)
