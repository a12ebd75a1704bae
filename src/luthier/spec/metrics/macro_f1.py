"""Mean of the F1 of each class that occurs in the expected answers; a class never predicted counts 0."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="macro_f1",
    title="macro-F1",
    summary="mean F1 over classes",
    tasks=("classification", "sentiment", "multi_label"),
    higher_is_better=True,
    is_proportion=True,
)
