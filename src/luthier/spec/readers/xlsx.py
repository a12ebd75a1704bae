"""A sheet of an Excel workbook."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="xlsx",
    summary="a sheet of an Excel workbook",
    suffixes=(".xlsx", ".xlsm"),
    magic=(b"PK\x03\x04",),
    holds="xl/workbook.xml",
    options=("sheet",),
)
