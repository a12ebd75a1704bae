"""Share of items whose free greedy text equals the expected answer, white space trimmed."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="exact_match",
    title="exact match",
    summary="free greedy text equals the answer",
    tasks=("classification", "sentiment", "translation", "generation", "extraction"),
    higher_is_better=True,
    is_proportion=True,
)
