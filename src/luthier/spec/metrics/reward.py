"""Mean of what the task's rewards give for the greedy answers, 0 to 1."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="reward",
    title="reward",
    summary="what rules that verify the greedy answer give, 0 to 1",
    tasks=("translation", "generation", "extraction"),
    higher_is_better=True,
    is_proportion=True,
)
