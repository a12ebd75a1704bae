"""Share of pairs in which the preferred answer is preferred: by what the method made larger, see its `reward`."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="preference_accuracy",
    title="preference accuracy",
    summary="share of pairs told apart rightly",
    tasks=("preference",),
    higher_is_better=True,
    is_proportion=True,
)
