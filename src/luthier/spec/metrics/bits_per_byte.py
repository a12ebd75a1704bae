"""Negative log-likelihood of held-out documents in bits, over their bytes: tokenizers do not matter to it."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="bits_per_byte",
    title="bits per byte",
    summary="bits of the documents' tokens over the bytes of their text",
    tasks=("domain",),
    higher_is_better=False,
    is_proportion=False,
)
