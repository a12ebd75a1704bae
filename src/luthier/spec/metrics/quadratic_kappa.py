"""Agreement of degrees beyond chance, mistakes counted by the square of their distance; 1 is perfect, 0 is chance."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="quadratic_kappa",
    title="quadratic weighted kappa",
    summary="quadratic weighted kappa",
    tasks=("classification", "sentiment"),
    higher_is_better=True,
    is_proportion=False,
)
