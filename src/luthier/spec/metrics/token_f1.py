"""F1 of an answer's words against those of the expected one."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="token_f1",
    title="F1 of words",
    summary="F1 of an answer's words",
    tasks=("generation", "extraction"),
    higher_is_better=True,
    is_proportion=True,
)
