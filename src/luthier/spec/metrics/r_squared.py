"""Share of the expected numbers' variance that the predicted ones account for; below 0, less than their mean would."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="r_squared",
    title="R squared",
    summary="share of the variance accounted for",
    tasks=("regression",),
    higher_is_better=True,
    is_proportion=False,
)
