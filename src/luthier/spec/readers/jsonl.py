"""One JSON object a line."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="jsonl",
    summary="one JSON object a line",
    suffixes=(".jsonl", ".ndjson"),
    is_text=True,
)
