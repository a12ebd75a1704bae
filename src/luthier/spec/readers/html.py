"""HTML, a row a block of text."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="html",
    summary="HTML, a row a block of text",
    suffixes=(".html", ".htm", ".xhtml"),
    is_text=True,
    is_document=True,
)
