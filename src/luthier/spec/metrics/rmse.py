"""Root of the mean squared distance of the number from the expected one."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="rmse",
    title="root mean squared error",
    summary="root mean squared error",
    tasks=("regression",),
    higher_is_better=False,
    is_proportion=False,
)
