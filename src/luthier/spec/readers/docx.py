"""A Word document, a row a paragraph."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="docx",
    summary="a Word document, a row a paragraph",
    suffixes=(".docx", ".docm"),
    magic=(b"PK\x03\x04",),
    is_document=True,
    holds="word/document.xml",
)
