"""Mean lead of the preferred answer, in nats: of the implicit reward, or of the mean log-probability a token."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="preference_margin",
    title="preference margin",
    summary="mean lead of the preferred answer, in nats",
    tasks=("preference",),
    higher_is_better=True,
    is_proportion=False,
)
