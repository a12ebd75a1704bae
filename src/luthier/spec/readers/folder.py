"""Files of one format, in the order of their names; Hugging Face data sets are such folders."""

from luthier.spec.plugins import ReaderFacts

FACTS = ReaderFacts(
    name="folder",
    summary="files of one format, in the order of their names; Hugging Face data sets are such folders",
)
