"""A table of an SQLite database, or a query of it."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="sqlite",
    summary="a table of an SQLite database, or a query of it",
    suffixes=(".sqlite", ".sqlite3", ".db"),
    magic=(b"SQLite format 3\x00",),
    options=("query",),
)
