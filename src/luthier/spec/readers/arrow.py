"""Arrow IPC (Feather), as a file or a stream."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="arrow",
    summary="Arrow IPC (Feather), as a file or a stream",
    suffixes=(".arrow", ".feather", ".ipc", ".arrows"),
    magic=(b"ARROW1",),
)
