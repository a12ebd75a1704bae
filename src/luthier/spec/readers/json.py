"""One JSON array of objects, alone or inside an object."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="json",
    summary="one JSON array of objects, alone or inside an object",
    suffixes=(".json",),
    is_text=True,
)
