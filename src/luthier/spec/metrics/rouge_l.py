"""Likeness of an answer to the expected one by the longest run of words, with gaps, that both have in order."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="rouge_l",
    title="ROUGE-L",
    summary="F1 of the longest common subsequence of words",
    tasks=("generation", "extraction"),
    higher_is_better=True,
    is_proportion=True,
)
