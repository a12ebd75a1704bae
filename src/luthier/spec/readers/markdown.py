"""Markdown, a row a paragraph."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="markdown",
    summary="Markdown, a row a paragraph",
    suffixes=(".md", ".markdown"),
    is_text=True,
    is_document=True,
)
