"""Likeness of a translation to the expected one by their runs of characters, 0 to 100."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="chrf",
    title="chrF",
    summary="likeness of translations by runs of characters, 0 to 100",
    tasks=("translation",),
    higher_is_better=True,
    is_proportion=False,
)
