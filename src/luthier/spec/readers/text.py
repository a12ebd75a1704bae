"""Plain text, a row a paragraph."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="text",
    summary="plain text, a row a paragraph",
    suffixes=(".txt", ".text"),
    is_text=True,
    is_document=True,
)
