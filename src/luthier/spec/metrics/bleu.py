"""Likeness of a translation to the expected one by their runs of words, 0 to 100."""

from luthier.spec.plugins import MetricFacts

FACTS = MetricFacts(
    name="bleu",
    title="BLEU",
    summary="likeness of translations by runs of one to four words, 0 to 100",
    tasks=("translation",),
    higher_is_better=True,
    is_proportion=False,
)
