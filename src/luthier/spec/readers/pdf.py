"""A PDF, a row a page."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="pdf",
    summary="a PDF, a row a page",
    suffixes=(".pdf",),
    magic=(b"%PDF",),
    is_document=True,
)
