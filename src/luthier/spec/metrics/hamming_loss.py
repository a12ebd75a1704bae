"""Share of the yes and no to every label that are wrong."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="hamming_loss",
    title="Hamming loss",
    summary="share of wrong yes and no",
    tasks=("multi_label",),
    higher_is_better=False,
    is_proportion=True,
)
