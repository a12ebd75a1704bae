"""Parquet."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="parquet",
    summary="Parquet",
    suffixes=(".parquet", ".pq"),
    magic=(b"PAR1",),
)
