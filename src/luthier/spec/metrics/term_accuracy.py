"""Share of the glossary's terms in the questions whose accepted target stands in the answer."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="term_accuracy",
    title="term accuracy",
    summary="terms of the glossary that the answer keeps",
    tasks=("translation", "generation"),
    higher_is_better=True,
    is_proportion=True,
)
