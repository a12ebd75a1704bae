"""F1 over all labels of all items together."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="micro_f1",
    title="micro-F1",
    summary="F1 over all labels together",
    tasks=("multi_label",),
    higher_is_better=True,
    is_proportion=True,
)
