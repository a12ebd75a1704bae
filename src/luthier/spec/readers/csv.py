"""Cells between commas, semicolons, tabs or bars, with a header."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="csv",
    summary="cells between commas, semicolons, tabs or bars, with a header",
    suffixes=(".csv", ".tsv", ".tab"),
    is_text=True,
)
